select count(*) as rows,
    coalesce(cast(round(unixepoch('subsec') * 1000) as integer) - min(created_at), 0) as age
from outbox
