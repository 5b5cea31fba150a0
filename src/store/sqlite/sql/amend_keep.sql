-- Keeps the version that the message ?1 is now.
insert into message_edits (message_id, seq, content, mentions, metadata, edited_at)
select id, change_seq, content, mentions, metadata, coalesce(edited_at, created_at)
from messages
where id = ?1
