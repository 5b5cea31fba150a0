-- Makes conversation $1 of kind $2 with title $3 and direct_key $4 by user $5, with the other
-- members $6; $7 is the outbox row's id, $8 its lease in ms. No row if it exists already: then
-- create_existing.sql tells which it is. (A race is waited for here, by the unique key.)
with made as (
    insert into conversations (id, kind, title, direct_key, created_by, created_at, last_seq,
                               info_seq, members_version, member_count, last_activity_at)
    select $1, $2, $3, $4, $5, at, 1, 1, 1, 1 + cardinality($6::uuid[]), at
    from date_trunc('milliseconds', clock_timestamp()) as at
    on conflict do nothing
    returning id, created_at
),
joined as (
    insert into participants (conversation_id, user_id, role, joined_at, joined_seq, change_seq,
                              history_from_seq, delivered_seq, read_seq, settled_seq)
    select made.id, m.user_id, case when m.user_id = $5 then 2 else 0 end, made.created_at,
        1, 1, 1, 1, 1, 1
    from made
    cross join unnest($6::uuid[] || $5::uuid) as m (user_id)
),
to_dispatch as (
    insert into outbox (id, lease_until, conversation_ids, message_ids, seqs, kinds)
    select $7, clock_timestamp() + $8 * interval '1 millisecond', array[id], array[null::uuid],
        array[1::int8], array[3::int2]
    from made
)
select created_at as at
from made
