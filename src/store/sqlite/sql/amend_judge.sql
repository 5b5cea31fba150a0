-- The message ?1 as the member ?2 finds it, whether he may send, and whether one of ?3: [user, ...]
-- is no member. No row if he cannot see it.
select m.id, m.conversation_id, m.seq, m.change_seq, m.sender_id, m.client_message_id,
    m.message_type, m.content, m.parent_message_id,
    (select count(*) from messages r
        where r.parent_message_id = m.id and r.deleted_at is null) as reply_count,
    m.mentions, m.metadata, m.created_at, m.edited_at, m.deleted_at,
    p.can_send_messages,
    exists (
        select 1 from json_each(?3) u
        where not exists (
            select 1 from participants q
            where q.conversation_id = m.conversation_id and q.user_id = unhex(u.value)
                and q.left_seq is null)) as mentions_stranger
from messages m
    cross join participants p on p.conversation_id = m.conversation_id and p.user_id = ?2
where m.id = ?1 and p.left_seq is null and m.seq >= p.history_from_seq
