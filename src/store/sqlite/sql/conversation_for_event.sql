select id, kind, title, created_by, created_at, last_seq, null as last_message_id
from conversations
where id = ?1
