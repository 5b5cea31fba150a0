select count(*) as rows,
    greatest(coalesce(extract(epoch from now() - min(due_at)) * 1000, 0), 0)::int8 as oldest_ms
from laggards
