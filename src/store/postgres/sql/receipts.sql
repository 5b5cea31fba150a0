-- How far the others are with message $2, for member $1, at most $3 in order of user id after $4:
-- those who were members when it was sent and still are. A row with no user says that the message
-- can be seen. (`offset 0`: found by its id and by nothing else.)
with shown as materialized (
    select m.conversation_id, m.seq, m.sender_id
    from (select * from messages where id = $2 offset 0) m
    join lateral (
        select history_from_seq
        from participants
        where conversation_id = m.conversation_id and user_id = $1 and left_seq is null
        offset 0
    ) p on m.seq >= p.history_from_seq
),
others as (
    select s.conversation_id, s.seq, p.user_id, p.delivered_seq, p.read_seq
    from shown s
    join participants p on p.conversation_id = s.conversation_id
    where p.left_seq is null and p.joined_seq <= s.seq and p.user_id <> s.sender_id
        and p.user_id > coalesce($4::uuid, '00000000-0000-0000-0000-000000000000')
    order by p.user_id
    limit $3
)
select null::uuid as user_id, false as delivered, null::timestamptz as delivered_at,
    false as read, null::timestamptz as read_at
from shown
union all
select o.user_id, o.delivered_seq >= o.seq, d.at, o.read_seq >= o.seq, r.at
from others o
-- The first action that reached it.
left join lateral (
    select at, from_seq
    from receipts
    where conversation_id = o.conversation_id and user_id = o.user_id and kind = 0
        and up_to_seq >= o.seq
    order by up_to_seq
    limit 1
) d on d.from_seq <= o.seq
left join lateral (
    select at, from_seq
    from receipts
    where conversation_id = o.conversation_id and user_id = o.user_id and kind = 1
        and up_to_seq >= o.seq
    order by up_to_seq
    limit 1
) r on r.from_seq <= o.seq
order by user_id nulls first
