-- Removes those of ?1: [[conversation, user, ...], ...] who lack nothing now.
delete from laggards
where (user_id, conversation_id) in (
        select unhex(value ->> 1), unhex(value ->> 0) from jsonb_each(?1))
    and not exists (
        select 1 from participants p
            cross join messages m on m.conversation_id = p.conversation_id
                and m.seq > p.settled_seq and m.sender_id <> p.user_id and m.deleted_at is null
        where p.conversation_id = laggards.conversation_id and p.user_id = laggards.user_id
            and p.left_seq is null)
