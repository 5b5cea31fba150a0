-- What the users $1 are known to lack is due now. Locked in (conversation, user) order.
with waiting as materialized (
    select l.user_id, l.conversation_id
    from laggards l
    where l.user_id = any($1::uuid[]) and l.due_at > now()
    order by l.conversation_id, l.user_id
    for update of l
)
update laggards l
set due_at = now()
from waiting w
where l.user_id = w.user_id and l.conversation_id = w.conversation_id
