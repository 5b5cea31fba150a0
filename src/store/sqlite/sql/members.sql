-- Members, and those who left in the last ten minutes: events from before may still be on their way.
select c.members_version, p.user_id, p.joined_seq, p.history_from_seq, p.left_seq,
    p.can_send_messages, p.muted_until
from conversations c
    left join participants p on p.conversation_id = c.id and (p.left_seq is null
        or p.left_at >= cast(round(unixepoch('subsec') * 1000) as integer) - 600000)
where c.id = ?1
