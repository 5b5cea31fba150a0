-- ?1: [[conversation, user, settled, delivered], ...]
update participants
set settled_seq = max(participants.settled_seq, r.settled_seq),
    delivered_seq = max(participants.delivered_seq, r.delivered_seq)
from (
    select unhex(value ->> 0) as conversation_id, unhex(value ->> 1) as user_id,
        value ->> 2 as settled_seq, value ->> 3 as delivered_seq
    from jsonb_each(?1)
) r
where participants.conversation_id = r.conversation_id and participants.user_id = r.user_id
