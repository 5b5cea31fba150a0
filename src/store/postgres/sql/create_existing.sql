-- The conversation that stands in the way of a new one: of the same pair, or the very same, made by
-- an earlier try of $2 whose answer got lost.
select id
from conversations
where direct_key = $3
union
select id
from conversations
where id = $1 and created_by = $2
