-- Deletes the outbox rows $1 and makes laggards of the members who are still behind. $2: from how
-- many places of the log on a member's line is moved over what holds no messages of others; $3: in how
-- many milliseconds the laggards are due.
with gone as (
    delete from outbox
    where id = any($1::uuid[])
    returning conversation_ids, seqs, kinds
),
-- Only messages can be lacking, and of each conversation only the highest seq matters.
heads as materialized (
    select e.conversation_id, max(e.seq) as head
    from gone
    cross join lateral unnest(gone.conversation_ids, gone.seqs, gone.kinds)
        as e (conversation_id, seq, kind)
    where e.kind = 0
    group by e.conversation_id
),
-- In the healthy case only the senders are behind, by what they said themselves.
behind as materialized (
    select h.conversation_id, p.user_id, h.head, p.settled_seq,
        exists (
            select
            from messages m
            where m.conversation_id = h.conversation_id
                and m.seq > p.settled_seq and m.seq <= h.head
                and m.sender_id <> p.user_id and m.deleted_at is null
        ) as lacks
    from heads h
    join participants p on p.conversation_id = h.conversation_id
    where p.left_seq is null and p.joined_seq <= h.head and p.settled_seq < h.head
),
-- One who is a laggard already keeps his turn: a busy conversation must not undo the back-off.
made as (
    insert into laggards (user_id, conversation_id, due_at, last_seq)
    select user_id, conversation_id, now() + $3 * interval '1 millisecond', head
    from behind
    where lacks
    order by conversation_id, user_id
    on conflict (user_id, conversation_id) do update
    set last_seq = greatest(laggards.last_seq, excluded.last_seq)
),
-- The look above reads all that lies over a member's line. This keeps it short under a monologue,
-- without a write for each message of a sender. Who is locked by others is left for the next time.
far as materialized (
    select b.conversation_id, b.user_id, b.head
    from behind b
    join participants p on p.conversation_id = b.conversation_id and p.user_id = b.user_id
    where not b.lacks and b.head - b.settled_seq >= $2
    for no key update of p skip locked
)
update participants p
set settled_seq = greatest(p.settled_seq, f.head)
from far f
where p.conversation_id = f.conversation_id and p.user_id = f.user_id
