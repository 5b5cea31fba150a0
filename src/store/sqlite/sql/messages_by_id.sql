-- ?1: [id, ...]
select m.id, m.conversation_id, m.seq, m.change_seq, m.sender_id, m.client_message_id,
    m.message_type, m.content, m.parent_message_id,
    (select count(*) from messages r
        where r.parent_message_id = m.id and r.deleted_at is null) as reply_count,
    m.mentions, m.metadata, m.created_at, m.edited_at, m.deleted_at
from json_each(?1) e
    cross join messages m on m.id = unhex(e.value)
