-- The messages of others in stretches of logs, of each the last ?2.
-- ?1: [[conversation, user, from, up to], ...]
select e.key, m.sender_id, m.id, m.seq
from jsonb_each(?1) e
    cross join messages m on m.conversation_id = unhex(e.value ->> 0)
        and m.seq >= max(e.value ->> 2, (
            select min(seq) from (
                select seq from messages l
                where l.conversation_id = unhex(e.value ->> 0)
                    and l.seq >= (e.value ->> 2) and l.seq <= (e.value ->> 3)
                    and l.sender_id <> unhex(e.value ->> 1) and l.deleted_at is null
                order by l.seq desc limit ?2)))
        and m.seq <= (e.value ->> 3)
        and m.sender_id <> unhex(e.value ->> 1) and m.deleted_at is null
order by e.key, m.seq
