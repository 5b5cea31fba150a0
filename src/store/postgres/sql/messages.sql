-- Messages by id, as they are now.
select m.id, m.conversation_id, m.seq, m.change_seq, m.sender_id, m.client_message_id,
    m.message_type, m.parent_message_id, m.created_at, m.edited_at, m.deleted_at,
    case when m.deleted_at is null then m.content end as content,
    case when m.deleted_at is null then m.mentions end as mentions,
    case when m.deleted_at is null then m.metadata end as metadata,
    (select count(*) from messages r where r.parent_message_id = m.id and r.deleted_at is null)
        as reply_count
from messages m
where m.id = any($1::uuid[])
