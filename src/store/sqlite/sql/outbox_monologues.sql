-- Senders of ?1: [[conversation, sender, seq], ...] who are more than ?2 behind only by what they
-- wrote themselves are moved up to it. The look stops at the first message of others, and starts
-- where the last move ended, so it is short however long the monologue is.
update participants
set settled_seq = s.seq
from (
    select unhex(value ->> 0) as conversation_id, unhex(value ->> 1) as sender_id,
        value ->> 2 as seq
    from jsonb_each(?1)
) s
where participants.conversation_id = s.conversation_id and participants.user_id = s.sender_id
    and participants.left_seq is null and participants.settled_seq < s.seq - ?2
    and not exists (
        select 1 from messages m
        where m.conversation_id = s.conversation_id
            and m.seq > participants.settled_seq and m.seq <= s.seq
            and m.sender_id <> s.sender_id and m.deleted_at is null)
