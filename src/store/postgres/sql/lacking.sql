-- Undeleted messages of others above seq $3 in conversation $2, oldest first, for member $1.
select m.id, m.conversation_id, m.seq, m.change_seq, m.sender_id, m.client_message_id,
    m.message_type, m.parent_message_id, m.created_at, m.edited_at, m.deleted_at, m.content,
    m.mentions, m.metadata,
    (select count(*) from messages r where r.parent_message_id = m.id and r.deleted_at is null)
        as reply_count
from participants p
join messages m
    on m.conversation_id = p.conversation_id and m.seq > $3 and m.seq >= p.history_from_seq
where p.conversation_id = $2 and p.user_id = $1 and p.left_seq is null
    and m.sender_id <> $1 and m.deleted_at is null
order by m.seq
limit $4
