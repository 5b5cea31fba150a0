-- The replies to the message ?5, newest first, before the seq ?3, at most ?4.
select m.id, m.conversation_id, m.seq, m.change_seq, m.sender_id, m.client_message_id,
    m.message_type, m.content, m.parent_message_id,
    (select count(*) from messages r
        where r.parent_message_id = m.id and r.deleted_at is null) as reply_count,
    m.mentions, m.metadata, m.created_at, m.edited_at, m.deleted_at
from participants p
    cross join messages m on m.parent_message_id = ?5
        and m.seq >= p.history_from_seq and m.seq < ?3 and m.conversation_id = ?2
where p.conversation_id = ?2 and p.user_id = ?1 and p.left_seq is null
order by m.seq desc
limit ?4
