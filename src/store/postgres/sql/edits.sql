-- At most $4 earlier versions of message $2 after seq $3, oldest first, if member $1 can see it: one row without seq
-- if there are none, no row if he cannot.
select e.seq, e.content, e.mentions, e.metadata, e.edited_at
from (select id, conversation_id, seq, deleted_at from messages where id = $2 offset 0) m
join lateral (
    select history_from_seq
    from participants
    where conversation_id = m.conversation_id and user_id = $1 and left_seq is null
    offset 0
) p on m.seq >= p.history_from_seq
left join lateral (
    select seq, content, mentions, metadata, edited_at
    from message_edits
    where message_id = m.id and m.deleted_at is null and seq > $3
    order by seq
    limit $4
) e on true
order by e.seq
