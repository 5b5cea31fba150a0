-- Who of conversation $1 stands highest beside $2; among equals the oldest.
select user_id, role, can_send_messages, muted_until
from participants
where conversation_id = $1 and user_id <> $2 and left_seq is null
order by role desc, joined_seq, user_id
limit 1
