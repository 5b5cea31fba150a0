-- Takes over at most $1 outbox rows whose lease ran out, for $2 ms. Nodes that claim at the same
-- time skip each other's rows.
with due as materialized (
    select id
    from outbox
    where lease_until <= now()
    order by lease_until, id
    limit $1
    for update skip locked
),
claimed as (
    update outbox o
    set lease_until = now() + $2 * interval '1 millisecond'
    from due
    where o.id = due.id
    returning o.id, o.created_at, o.conversation_ids, o.message_ids, o.seqs, o.kinds
)
select id, conversation_ids, message_ids, seqs, kinds
from claimed
order by created_at, id
