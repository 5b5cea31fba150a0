-- Takes the change's seq. $2: by how much the number of members grows; $3: members, roles or
-- permissions change. $4, $5: the title changes to this.
update conversations
set last_seq = last_seq + 1,
    member_count = member_count + $2,
    members_version = members_version + case when $3 then 1 else 0 end,
    info_seq = case when $4 then last_seq + 1 else info_seq end,
    title = case when $4 then $5 else title end
where id = $1
returning last_seq as seq, members_version, date_trunc('milliseconds', clock_timestamp()) as at
