-- The most powerful present member, the oldest of several.
select user_id, role from participants
where conversation_id = ?1 and left_seq is null
order by role desc, joined_seq, user_id
limit 1
