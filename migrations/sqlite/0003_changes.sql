-- A message that never changed stands in the log of changes where it stands in the log of messages
-- (change_seq = seq), and is found there: so that storing one touches an index less.
drop index messages_change;
create index messages_change on messages (conversation_id, change_seq) where change_seq > seq;
