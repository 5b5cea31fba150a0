insert into conversations (id, kind, title, direct_key, created_by, created_at, last_seq, info_seq,
    members_version, member_count, last_activity_at)
select ?1, ?2, ?3, ?4, ?5, now, 1, 1, 1, ?6, now
from (select cast(round(unixepoch('subsec') * 1000) as integer) as now)
returning last_seq, members_version, created_at as now
