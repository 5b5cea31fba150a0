-- Claims at most $1 due laggards for $2 ms, oldest first, and says what each lacks. Nodes that
-- claim at the same time skip each other's rows.
with due as materialized (
    select user_id, conversation_id, due_at, tries, last_seq
    from laggards
    where due_at <= now() and (lease_until is null or lease_until <= now())
    order by due_at
    limit $1
    for update skip locked
),
looked as materialized (
    select d.user_id, d.conversation_id, d.due_at, d.tries, p.settled_seq, p.muted_until,
        last.seq as last_seq, first.created_at as oldest_at,
        -- This snapshot holds the message that made him one, so what it shows is all.
        d.last_seq <= c.last_seq as certain
    from due d
    join conversations c on c.id = d.conversation_id
    left join participants p
        on p.conversation_id = d.conversation_id and p.user_id = d.user_id and p.left_seq is null
    left join lateral (
        select m.created_at
        from messages m
        where m.conversation_id = p.conversation_id and m.seq > p.settled_seq
            and m.sender_id <> p.user_id and m.deleted_at is null
        order by m.seq
        limit 1
    ) first on true
    left join lateral (
        select m.seq
        from messages m
        where m.conversation_id = p.conversation_id and m.seq > p.settled_seq
            and m.sender_id <> p.user_id and m.deleted_at is null
        order by m.seq desc
        limit 1
    ) last on true
),
freed as (
    delete from laggards l
    using looked k
    where l.user_id = k.user_id and l.conversation_id = k.conversation_id
        and k.last_seq is null and k.certain
),
claimed as (
    update laggards l
    set lease_until = now() + $2 * interval '1 millisecond'
    from looked k
    where l.user_id = k.user_id and l.conversation_id = k.conversation_id
        and k.last_seq is not null
)
select k.user_id, k.conversation_id, k.tries, k.settled_seq, k.last_seq, k.muted_until,
    (extract(epoch from clock_timestamp() - k.oldest_at) * 1000)::int8 as age_ms,
    (
        select count(*)
        from (
            select
            from messages m
            where m.conversation_id = k.conversation_id and m.seq > k.settled_seq
                and m.sender_id <> k.user_id and m.deleted_at is null
            limit 101
        ) lacking
    ) as behind
from looked k
where k.last_seq is not null
order by k.due_at
