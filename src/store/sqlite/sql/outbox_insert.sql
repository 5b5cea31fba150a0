insert into outbox (id, lease_until, created_at, conversation_ids, message_ids, seqs, kinds)
values (?1, ?2 + ?3, ?2, ?4, ?5, ?6, ?7)
