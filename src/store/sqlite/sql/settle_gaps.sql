-- ?1: [[conversation, user, after, before], ...], in this order: does an undeleted message of others
-- lie between the two?
select exists (
    select 1 from messages m
    where m.conversation_id = unhex(e.value ->> 0)
        and m.seq > (e.value ->> 2) and m.seq < (e.value ->> 3)
        and m.sender_id <> unhex(e.value ->> 1) and m.deleted_at is null)
from jsonb_each(?1) e
order by e.key
