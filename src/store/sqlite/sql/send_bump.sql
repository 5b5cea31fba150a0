-- ?1: [[conversation, its new last seq, its new last message], ...], ?2: now
update conversations
set last_seq = b.last_seq, last_message_id = b.last_message_id, last_activity_at = ?2
from (
    select unhex(value ->> 0) as id, value ->> 1 as last_seq, unhex(value ->> 2) as last_message_id
    from jsonb_each(?1)
) b
where conversations.id = b.id
