-- The outbox row $1 of a change of conversation $3 at seq $4, with a lease of $2 ms.
insert into outbox (id, lease_until, conversation_ids, message_ids, seqs, kinds)
values ($1, clock_timestamp() + $2 * interval '1 millisecond', array[$3::uuid],
        array[null::uuid], array[$4::int8], array[3::int2])
