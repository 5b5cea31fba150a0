-- ?1: [user, ...]
update laggards
set due_at = cast(round(unixepoch('subsec') * 1000) as integer)
where user_id in (select unhex(value) from json_each(?1))
    and due_at > cast(round(unixepoch('subsec') * 1000) as integer)
