select count(*) as rows,
    coalesce(extract(epoch from now() - min(created_at)) * 1000, 0)::int8 as oldest_ms
from outbox
