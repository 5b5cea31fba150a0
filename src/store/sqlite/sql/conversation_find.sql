-- What stands in the way of a new conversation: one of the same pair, or the very same, made by an
-- earlier try of ?3 whose answer was lost.
select id from conversations where id = ?1 and created_by = ?3
union all
select id from conversations where direct_key = ?2
limit 1
