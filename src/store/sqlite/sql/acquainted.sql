-- ?2: [user, ...]
select unhex(e.value) as user_id
from json_each(?2) e
where unhex(e.value) = ?1 or exists (
    select 1 from participants mine
        cross join participants theirs on theirs.conversation_id = mine.conversation_id
            and theirs.user_id = unhex(e.value) and theirs.left_seq is null
    where mine.user_id = ?1 and mine.left_seq is null)
