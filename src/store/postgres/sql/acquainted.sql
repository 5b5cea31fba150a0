-- Those of $2 who share a conversation with $1 now, and $1 himself if named.
select named.user_id
from (select distinct user_id from unnest($2::uuid[]) as n (user_id)) named
where named.user_id = $1
    or exists (
        select
        -- `offset 0`: looked up for each of them, instead of listing all whom $1 may know.
        from (
            select conversation_id
            from participants
            where user_id = named.user_id and left_seq is null
            offset 0
        ) other
        cross join lateral (
            select
            from participants
            where conversation_id = other.conversation_id and user_id = $1 and left_seq is null
            offset 0
        ) own
    )
