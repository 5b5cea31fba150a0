-- ?1: [id, ...]
delete from outbox where id in (select unhex(value) from json_each(?1))
returning id, conversation_ids, message_ids, seqs, kinds
