-- Message $1 gets the content $2, the mentions $3 and the metadata $4 at its conversation's next
-- seq; the version it was is kept. $5: the outbox row's id, $6: its lease in ms. The conversation
-- is locked.
with old as materialized (
    select id, conversation_id, change_seq, content, mentions, metadata,
        coalesce(edited_at, created_at) as since
    from messages
    where id = $1
),
bumped as (
    update conversations c
    set last_seq = c.last_seq + 1
    from old
    where c.id = old.conversation_id
    returning c.id, c.last_seq as seq, date_trunc('milliseconds', clock_timestamp()) as at
),
kept as (
    insert into message_edits (message_id, seq, content, mentions, metadata, edited_at)
    select id, change_seq, content, mentions, metadata, since
    from old
),
to_dispatch as (
    insert into outbox (id, lease_until, conversation_ids, message_ids, seqs, kinds)
    select $5, clock_timestamp() + $6 * interval '1 millisecond',
        array[id], array[$1::uuid], array[seq], array[1::int2]
    from bumped
)
update messages m
set content = $2, mentions = $3::text::jsonb, metadata = $4::text::jsonb, change_seq = b.seq,
    edited_at = b.at
from bumped b
where m.id = $1
returning b.seq, b.at
