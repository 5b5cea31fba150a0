-- Present members of conversation $1, and those who left so lately that events of before may still
-- be under way to them, with the version of this very snapshot. A row without user: none at all.
select c.members_version, p.user_id, p.joined_seq, p.history_from_seq, p.left_seq,
    p.can_send_messages, p.muted_until
from conversations c
left join participants p
    on p.conversation_id = c.id
    and (p.left_seq is null or p.left_at > now() - interval '10 minutes')
where c.id = $1
