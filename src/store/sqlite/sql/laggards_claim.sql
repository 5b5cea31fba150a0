-- Most overdue first, at most ?1, for ?2 milliseconds.
update laggards
set lease_until = cast(round(unixepoch('subsec') * 1000) as integer) + ?2
where (user_id, conversation_id) in (
    select user_id, conversation_id from laggards
    where due_at <= cast(round(unixepoch('subsec') * 1000) as integer)
        and (lease_until is null
            or lease_until <= cast(round(unixepoch('subsec') * 1000) as integer))
    order by due_at
    limit ?1)
returning user_id, conversation_id, due_at, tries
