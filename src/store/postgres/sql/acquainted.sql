-- Those of $2 who share a conversation with $1 now, and $1 himself if named.
select named.user_id
from (select distinct user_id from unnest($2::uuid[]) as n (user_id)) named
where named.user_id = $1
    or exists (
        select
        from participants other
        join participants own
            on own.conversation_id = other.conversation_id and own.user_id = $1
            and own.left_seq is null
        where other.user_id = named.user_id and other.left_seq is null
    )
