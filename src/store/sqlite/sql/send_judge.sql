-- Judges a batch, in its order; the write lock is held, so nothing moves before the rows are stored.
-- ?1: [[conversation, sender, client_message_id, body_hash, parent, [mentioned user, ...]], ...]
-- verdict: see Verdict in messages.rs. The order of the cases is the promise: what was sent before
-- is given again even if its sender has left since.
with batch as (
    select key as ord,
        unhex(value ->> 0) as conversation_id,
        unhex(value ->> 1) as sender_id,
        value ->> 2 as client_message_id,
        unhex(value ->> 3) as body_hash,
        unhex(value ->> 4) as parent_message_id,
        value -> 5 as mentioned
    from jsonb_each(?1)
)
select
    case
        when first.id is not null and first.body_hash = b.body_hash then 1
        when first.id is not null then 2
        when p.user_id is null then 3
        when not p.can_send_messages then 4
        when b.parent_message_id is not null and parent.id is null then 5
        when parent.deleted_at is not null then 6
        when exists (
            select 1 from json_each(b.mentioned) u
            where not exists (
                select 1 from participants q
                where q.conversation_id = b.conversation_id and q.user_id = unhex(u.value)
                    and q.left_seq is null)) then 7
        else 0
    end as verdict,
    first.id as first_id,
    coalesce(c.last_seq, 0) as last_seq,
    coalesce(c.members_version, 0) as members_version,
    cast(round(unixepoch('subsec') * 1000) as integer) as now
from batch b
    left join messages first
        on first.sender_id = b.sender_id and first.client_message_id = b.client_message_id
    left join conversations c on c.id = b.conversation_id
    left join participants p
        on p.conversation_id = b.conversation_id and p.user_id = b.sender_id and p.left_seq is null
    left join messages parent
        on parent.id = b.parent_message_id and parent.conversation_id = b.conversation_id
            and parent.seq >= p.history_from_seq
order by b.ord
