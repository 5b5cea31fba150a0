-- Moves watermarks by proven runs. $1..$5 are parallel arrays, one element per run, those of one
-- member not overlapping; $6: in groups above it only watermarks move. One row comes back per run;
-- none for a run of no member, or above the log's head.
with input as materialized (
    select *
    from unnest($1::uuid[], $2::uuid[], $3::int8[], $4::int8[], $5::boolean[])
        with ordinality as i (conversation_id, user_id, lo, hi, device, ord)
),
-- In (conversation, user) order: two flushes do not deadlock. The watermarks are those under the
-- lock. A head in the snapshot means that all messages up to it are in the snapshot, too, for
-- seqs commit in their order. (`offset 0`: not before the member, or a plan made for empty tables
-- reads all members of the conversation to find one.)
locked as materialized (
    select i.*, p.settled_seq, p.delivered_seq, c.last_seq as head, c.member_count
    from input i
    join participants p on p.conversation_id = i.conversation_id and p.user_id = i.user_id
    cross join lateral (
        select last_seq, member_count
        from conversations
        where id = i.conversation_id
        offset 0
    ) c
    where p.left_seq is null and i.lo <= i.hi and i.hi <= c.last_seq
    order by p.conversation_id, p.user_id, i.lo
    for no key update of p
),
-- The line a run must reach down to: the end of the member's run before it, as if that had moved.
lined as (
    select *,
        greatest(settled_seq, max(hi) over (
            partition by conversation_id, user_id order by lo
            rows between unbounded preceding and 1 preceding
        )) as line
    from locked
),
-- A run moves if nothing that others said and that still stands lies between the line and it, and
-- if the same holds for the member's runs before it. Mostly `line >= lo - 1`, and nobody looks.
judged as materialized (
    select *,
        bool_and(line >= lo - 1 or not exists (
            select
            from messages m
            where m.conversation_id = lined.conversation_id
                and m.seq > lined.line and m.seq < lined.lo
                and m.sender_id <> lined.user_id and m.deleted_at is null
        )) over (partition by conversation_id, user_id order by lo rows unbounded preceding)
            as moves
    from lined
),
reached as materialized (
    select conversation_id, user_id, max(head) as head,
        greatest(max(hi), max(settled_seq)) as settled_seq,
        coalesce(max(hi) filter (where device), 0) as delivered_seq
    from judged
    where moves
    group by conversation_id, user_id
),
moved as (
    update participants p
    set settled_seq = greatest(p.settled_seq, r.settled_seq),
        delivered_seq = greatest(p.delivered_seq, r.delivered_seq)
    from reached r
    where p.conversation_id = r.conversation_id and p.user_id = r.user_id
        and (p.settled_seq < r.settled_seq or p.delivered_seq < r.delivered_seq)
),
noted as (
    insert into receipts (conversation_id, user_id, kind, from_seq, up_to_seq, at)
    select conversation_id, user_id, 0, greatest(delivered_seq + 1, lo), hi,
        date_trunc('milliseconds', now())
    from judged
    where moves and device and hi > delivered_seq and member_count <= $6
    on conflict do nothing
),
-- In (conversation, user) order, as all who lock laggards.
behind as materialized (
    select l.user_id, l.conversation_id, r.settled_seq, r.head
    from reached r
    join laggards l on l.user_id = r.user_id and l.conversation_id = r.conversation_id
    order by l.conversation_id, l.user_id
    for update of l
),
-- `l.last_seq <= r.head`: a laggard made because of a message that this snapshot does not hold yet
-- must not be judged by it.
freed as (
    delete from laggards l
    using behind r
    where l.user_id = r.user_id and l.conversation_id = r.conversation_id
        and l.last_seq <= r.head
        and not exists (
            select
            from messages m
            where m.conversation_id = r.conversation_id and m.seq > r.settled_seq
                and m.sender_id <> r.user_id and m.deleted_at is null
        )
)
select ord, moves,
    case
        when moves and device and hi > delivered_seq and member_count <= $6
        then greatest(delivered_seq + 1, lo)
    end as delivered_from
from judged
