-- Those of the users $2 who are present members of conversation $1.
select user_id, role, can_send_messages, muted_until
from participants
where conversation_id = $1 and user_id = any($2::uuid[]) and left_seq is null
