-- ?1: [[conversation, user, delivered, read], ...]
update participants
set delivered_seq = max(participants.delivered_seq, r.delivered_seq),
    read_seq = max(participants.read_seq, r.read_seq)
from (
    select unhex(value ->> 0) as conversation_id, unhex(value ->> 1) as user_id,
        value ->> 2 as delivered_seq, value ->> 3 as read_seq
    from jsonb_each(?1)
) r
where participants.conversation_id = r.conversation_id and participants.user_id = r.user_id
