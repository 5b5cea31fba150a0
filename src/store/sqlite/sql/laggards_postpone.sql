-- ?1: [[user, conversation, milliseconds], ...]
update laggards
set due_at = cast(round(unixepoch('subsec') * 1000) as integer) + d.delay,
    lease_until = null, tries = tries + 1
from (
    select unhex(value ->> 0) as user_id, unhex(value ->> 1) as conversation_id,
        value ->> 2 as delay
    from jsonb_each(?1)
) d
where laggards.user_id = d.user_id and laggards.conversation_id = d.conversation_id
