-- Message $2, if member $1 can see it. (`offset 0`: found by its id and by nothing else.)
select m.id, m.conversation_id, m.seq, m.change_seq, m.sender_id, m.client_message_id,
    m.message_type, m.parent_message_id, m.created_at, m.edited_at, m.deleted_at,
    case when m.deleted_at is null then m.content end as content,
    case when m.deleted_at is null then m.mentions end as mentions,
    case when m.deleted_at is null then m.metadata end as metadata,
    (select count(*) from messages r where r.parent_message_id = m.id and r.deleted_at is null)
        as reply_count
from (select * from messages where id = $2 offset 0) m
join lateral (
    select history_from_seq
    from participants
    where conversation_id = m.conversation_id and user_id = $1 and left_seq is null
    offset 0
) p on m.seq >= p.history_from_seq
