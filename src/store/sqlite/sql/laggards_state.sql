select (select count(*) from laggards) as rows,
    coalesce(max(0, cast(round(unixepoch('subsec') * 1000) as integer)
        - (select min(due_at) from laggards)), 0) as overdue
