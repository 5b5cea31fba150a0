-- Gives claimed laggards back: due again $3 ms from now. Locked in (conversation, user) order.
with given as materialized (
    select l.user_id, l.conversation_id, g.delay_ms
    from unnest($1::uuid[], $2::uuid[], $3::int8[]) as g (user_id, conversation_id, delay_ms)
    join laggards l on l.user_id = g.user_id and l.conversation_id = g.conversation_id
    order by l.conversation_id, l.user_id
    for update of l
)
update laggards l
set due_at = now() + g.delay_ms * interval '1 millisecond', lease_until = null, tries = l.tries + 1
from given g
where l.user_id = g.user_id and l.conversation_id = g.conversation_id
