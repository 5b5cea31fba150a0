-- Takes away what message $1 said, now and in earlier versions, at its conversation's next seq; its
-- place stays. $2: the outbox row's id, $3: its lease in ms. The conversation is locked.
with bumped as (
    update conversations
    set last_seq = last_seq + 1
    where id = (select conversation_id from messages where id = $1)
    returning id, last_seq as seq, date_trunc('milliseconds', clock_timestamp()) as at
),
forgotten as (
    delete from message_edits
    where message_id = $1
),
to_dispatch as (
    insert into outbox (id, lease_until, conversation_ids, message_ids, seqs, kinds)
    select $2, clock_timestamp() + $3 * interval '1 millisecond',
        array[id], array[$1::uuid], array[seq], array[2::int2]
    from bumped
)
update messages m
set content = null, mentions = null, metadata = null, change_seq = b.seq, deleted_at = b.at
from bumped b
where m.id = $1
returning b.seq, b.at
