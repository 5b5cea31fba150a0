-- What each of ?1: [[user, conversation], ...] lacks, in this order; nulls for who is no member now.
-- Counted up to 101.
select p.settled_seq, p.muted_until,
    (select count(*) from (
        select 1 from messages m
        where m.conversation_id = p.conversation_id and m.seq > p.settled_seq
            and m.sender_id <> p.user_id and m.deleted_at is null
        limit 101)) as behind,
    (select m.seq from messages m
        where m.conversation_id = p.conversation_id and m.seq > p.settled_seq
            and m.sender_id <> p.user_id and m.deleted_at is null
        order by m.seq desc limit 1) as last_seq,
    (select cast(round(unixepoch('subsec') * 1000) as integer) - m.created_at from messages m
        where m.conversation_id = p.conversation_id and m.seq > p.settled_seq
            and m.sender_id <> p.user_id and m.deleted_at is null
        order by m.seq limit 1) as age
from jsonb_each(?1) e
    left join participants p on p.conversation_id = unhex(e.value ->> 1)
        and p.user_id = unhex(e.value ->> 0) and p.left_seq is null
order by e.key
