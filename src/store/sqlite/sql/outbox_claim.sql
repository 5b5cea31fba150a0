-- Oldest first, at most ?1, for ?2 milliseconds.
update outbox
set lease_until = cast(round(unixepoch('subsec') * 1000) as integer) + ?2
where id in (
    select id from outbox
    where lease_until <= cast(round(unixepoch('subsec') * 1000) as integer)
    order by lease_until, id
    limit ?1)
returning id, created_at, conversation_ids, message_ids, seqs, kinds
