-- ?1: [[id, conversation, seq, sender, client_message_id, body_hash, type, content, parent, mentions,
-- metadata], ...], ?2: now. An element that is JSON null comes out of -> as the text 'null'.
insert into messages (id, conversation_id, seq, change_seq, sender_id, client_message_id, body_hash,
    message_type, content, parent_message_id, mentions, metadata, created_at)
select unhex(value ->> 0), unhex(value ->> 1), value ->> 2, value ->> 2, unhex(value ->> 3),
    value ->> 4, unhex(value ->> 5), value ->> 6, value ->> 7, unhex(value ->> 8),
    nullif(value -> 9, 'null'), nullif(value -> 10, 'null'), ?2
from jsonb_each(?1)
