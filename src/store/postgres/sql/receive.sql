-- Moves watermarks as devices tell it. $1..$3 are parallel arrays, one element per receipt: user,
-- message, whether it was read; $4: in groups above it only watermarks move. One row comes back per
-- receipt of a message that the user can see.
with input as materialized (
    select *
    from unnest($1::uuid[], $2::uuid[], $3::boolean[])
        with ordinality as i (user_id, message_id, is_read, ord)
),
-- (`offset 0`: found by their ids and by nothing else, whatever the tables' size was for the plan.)
seen as materialized (
    select i.ord, i.user_id, i.is_read, m.conversation_id, m.seq
    from input i
    cross join lateral (
        select conversation_id, seq from messages where id = i.message_id offset 0
    ) m
    cross join lateral (
        select history_from_seq
        from participants
        where conversation_id = m.conversation_id and user_id = i.user_id and left_seq is null
        offset 0
    ) p
    where m.seq >= p.history_from_seq
),
wanted as (
    select conversation_id, user_id, max(seq) as delivered,
        coalesce(max(seq) filter (where is_read), 0) as read
    from seen
    group by conversation_id, user_id
),
-- In (conversation, user) order, as all who lock members; the watermarks are those under the lock.
locked as materialized (
    select w.*, p.settled_seq, p.delivered_seq, p.read_seq, c.member_count <= $4 as is_told
    from wanted w
    join participants p on p.conversation_id = w.conversation_id and p.user_id = w.user_id
    cross join lateral (
        select member_count from conversations where id = w.conversation_id offset 0
    ) c
    where p.left_seq is null
    order by p.conversation_id, p.user_id
    for no key update of p
),
moved as (
    update participants p
    set delivered_seq = greatest(p.delivered_seq, l.delivered),
        read_seq = greatest(p.read_seq, l.read)
    from locked l
    where p.conversation_id = l.conversation_id and p.user_id = l.user_id
        and (p.delivered_seq < l.delivered or p.read_seq < l.read)
),
noted as (
    insert into receipts (conversation_id, user_id, kind, from_seq, up_to_seq, at)
    select l.conversation_id, l.user_id, k.kind, k.was + 1, k.up_to,
        date_trunc('milliseconds', now())
    from locked l
    cross join lateral (
        values (0::int2, l.delivered_seq, l.delivered), (1::int2, l.read_seq, l.read)
    ) as k (kind, was, up_to)
    where l.is_told and k.up_to > k.was
    on conflict do nothing
)
select s.ord, s.conversation_id, s.user_id, s.seq, l.settled_seq, l.delivered_seq, l.delivered, l.read_seq, l.read,
    l.is_told
from seen s
join locked l on l.conversation_id = s.conversation_id and l.user_id = s.user_id
order by s.ord
