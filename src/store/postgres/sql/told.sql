-- The messages of others in stretches of logs, of each the last $5. $1..$4 are parallel arrays:
-- conversation, user, from, up to.
select i.ord, m.sender_id, m.id, m.seq
from unnest($1::uuid[], $2::uuid[], $3::int8[], $4::int8[])
    with ordinality as i (conversation_id, user_id, lo, hi, ord)
cross join lateral (
    select id, seq, sender_id
    from messages
    where conversation_id = i.conversation_id and seq >= i.lo and seq <= i.hi
        and sender_id <> i.user_id and deleted_at is null
    order by seq desc
    limit $5
) m
order by i.ord, m.seq
