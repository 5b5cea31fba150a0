-- Takes the next seq. ?2: by how much the number of members grows; ?3: 1 if members, their roles or
-- permissions change.
update conversations
set last_seq = last_seq + 1, member_count = member_count + ?2, members_version = members_version + ?3
where id = ?1
returning last_seq, members_version, cast(round(unixepoch('subsec') * 1000) as integer) as now
