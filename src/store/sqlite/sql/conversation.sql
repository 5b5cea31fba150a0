-- As the member ?1 sees the conversation ?2.
select c.id, c.kind, c.title, c.created_by, c.created_at, c.last_seq, c.last_activity_at,
    (select m.id from messages m
        where m.id = c.last_message_id and m.seq >= p.history_from_seq) as last_message_id,
    p.role, p.can_send_messages, p.delivered_seq, p.read_seq, p.muted_until,
    (select count(*) from (
        select 1 from messages m
        where m.conversation_id = c.id and m.seq > p.read_seq
            and m.sender_id <> p.user_id and m.deleted_at is null
        limit 100)) as unread_count
from participants p
    cross join conversations c on c.id = p.conversation_id
where p.conversation_id = ?2 and p.user_id = ?1 and p.left_seq is null
