-- At most $2 receipts older than $1 milliseconds.
delete from receipts
where ctid = any(array(
    select ctid
    from receipts
    where at < now() - $1 * interval '1 millisecond'
    limit $2
    for update skip locked
))
