-- The message ?2, if the member ?1 can see it.
select m.id, m.conversation_id, m.seq, m.change_seq, m.sender_id, m.client_message_id,
    m.message_type, m.content, m.parent_message_id,
    (select count(*) from messages r
        where r.parent_message_id = m.id and r.deleted_at is null) as reply_count,
    m.mentions, m.metadata, m.created_at, m.edited_at, m.deleted_at
from messages m
    cross join participants p on p.conversation_id = m.conversation_id and p.user_id = ?1
where m.id = ?2 and p.left_seq is null and m.seq >= p.history_from_seq
