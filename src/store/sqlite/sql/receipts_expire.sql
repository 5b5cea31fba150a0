-- At most ?2 receipts older than ?1 milliseconds.
delete from receipts
where (conversation_id, user_id, kind, up_to_seq) in (
    select conversation_id, user_id, kind, up_to_seq from receipts
    where at < cast(round(unixepoch('subsec') * 1000) as integer) - ?1
    limit ?2)
