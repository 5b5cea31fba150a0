-- Commits one batch of messages. $1..$10 are parallel arrays, one element per message, no two of
-- the same sender with the same client_message_id; $11 the outbox row's id, $12 its lease in ms.
-- One row comes back per message, except for those whose conversation moved on meanwhile.
--
-- The cost per message falls with the batch because no CTE is joined to another one: planned as a
-- nested loop that would be quadratic. Rows travel inside arrays through `update .. returning`.
with input as materialized (
    select *
    from unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::text[], $5::bytea[], $6::int2[],
                $7::text[], $8::uuid[], $9::text[], $10::text[])
        with ordinality as i (id, conversation_id, sender_id, client_message_id, body_hash,
                              message_type, content, parent_id, mentions, metadata, ord)
),
-- All in the statement's one snapshot, members_version too. A message sent before is found before
-- anything is asked of the sender: he gets it again also when he left since.
judged as materialized (
    select i.*, first.id as first_id, sender.members_version,
        case
            when first.id is not null and first.body_hash = i.body_hash then 1
            when first.id is not null then 2
            when sender.user_id is null then 3
            when not sender.can_send_messages then 4
            when i.parent_id is not null and not coalesce(
                parent.conversation_id = i.conversation_id
                    and parent.seq >= sender.history_from_seq,
                false
            ) then 5
            when parent.deleted_at is not null then 6
            when i.mentions is not null and exists (
                select
                from jsonb_array_elements(i.mentions::jsonb) mention
                left join lateral (
                    select user_id
                    from participants
                    where conversation_id = i.conversation_id
                        and user_id = (mention ->> 'user_id')::uuid
                        and left_seq is null
                    offset 0
                ) named on true
                where named.user_id is null
            ) then 7
            else 0
        end::int2 as verdict
    from input i
    -- `offset 0`: each is looked up by just these columns. A plan made while the tables are empty,
    -- and kept, would else join whole tables, or read a conversation to find the parent.
    left join lateral (
        select id, body_hash
        from messages
        where sender_id = i.sender_id and client_message_id = i.client_message_id
        offset 0
    ) first on true
    left join lateral (
        select p.user_id, p.can_send_messages, p.history_from_seq, c.members_version
        from participants p
        join conversations c on c.id = p.conversation_id
        where p.conversation_id = i.conversation_id and p.user_id = i.sender_id
            and p.left_seq is null
        offset 0
    ) sender on true
    left join lateral (
        select conversation_id, seq, deleted_at
        from messages
        where id = i.parent_id
        offset 0
    ) parent on true
),
grouped as materialized (
    select conversation_id, min(members_version) as members_version, count(*)::int4 as n,
        array_agg(ord) as ords, array_agg(id) as ids, array_agg(sender_id) as senders,
        array_agg(client_message_id) as client_ids, array_agg(body_hash) as hashes,
        array_agg(message_type) as types, array_agg(content) as contents,
        array_agg(parent_id) as parents, array_agg(mentions) as mentions,
        array_agg(metadata) as metadatas
    from (select * from judged where verdict = 0 order by conversation_id, ord) in_order
    group by conversation_id
),
-- In id order, as every writer does: no deadlock, also across nodes.
locked as materialized (
    select g.*
    from conversations c
    join grouped g on g.conversation_id = c.id
    order by c.id
    for no key update of c
),
-- The seqs come from the row as it is under its lock, never from the snapshot. A member removed
-- while the lock was waited for shows as another members_version: that conversation is left out.
bumped as (
    update conversations c
    set last_seq = c.last_seq + k.n,
        last_message_id = k.ids[k.n],
        last_activity_at = date_trunc('milliseconds', clock_timestamp())
    from locked k
    where c.id = k.conversation_id and c.members_version = k.members_version
    returning c.id, c.last_seq - k.n as base, c.last_activity_at as at, k.members_version, k.ords,
        k.ids, k.senders, k.client_ids, k.hashes, k.types, k.contents, k.parents, k.mentions,
        k.metadatas
),
inserted as (
    insert into messages (id, conversation_id, seq, change_seq, sender_id, client_message_id,
                          body_hash, message_type, content, parent_message_id, mentions, metadata,
                          created_at)
    select u.id, b.id, b.base + u.n, b.base + u.n, u.sender_id, u.client_message_id, u.body_hash,
        u.message_type, u.content, u.parent_id, u.mentions::jsonb, u.metadata::jsonb, b.at
    from bumped b
    cross join lateral unnest(b.ids, b.senders, b.client_ids, b.hashes, b.types, b.contents,
                              b.parents, b.mentions, b.metadatas)
        with ordinality as u (id, sender_id, client_message_id, body_hash, message_type, content,
                              parent_id, mentions, metadata, n)
    returning id, conversation_id, seq
),
to_dispatch as (
    insert into outbox (id, lease_until, conversation_ids, message_ids, seqs, kinds)
    select $11, clock_timestamp() + $12 * interval '1 millisecond',
        array_agg(conversation_id), array_agg(id), array_agg(seq), array_agg(0::int2)
    from inserted
    having count(*) > 0
)
select u.ord, 0::int2 as verdict, b.base + u.n as seq, b.at, b.members_version,
    null::uuid as first_id
from bumped b
cross join lateral unnest(b.ords) with ordinality as u (ord, n)
union all
select ord, verdict, null, null, null, first_id
from judged
where verdict <> 0
