-- Message $1 as member $2 finds it, whether he may send, and whether one of the users $3 is no
-- member. No row if he cannot see it. (`offset 0`: found by its id and by nothing else.)
select m.id, m.conversation_id, m.seq, m.change_seq, m.sender_id, m.client_message_id,
    m.message_type, m.parent_message_id, m.created_at, m.edited_at, m.deleted_at,
    case when m.deleted_at is null then m.content end as content,
    case when m.deleted_at is null then m.mentions end as mentions,
    case when m.deleted_at is null then m.metadata end as metadata,
    (select count(*) from messages r where r.parent_message_id = m.id and r.deleted_at is null)
        as reply_count,
    p.can_send_messages,
    exists (
        select
        from unnest($3::uuid[]) as mentioned (user_id)
        left join lateral (
            select user_id
            from participants
            where conversation_id = m.conversation_id and user_id = mentioned.user_id
                and left_seq is null
            offset 0
        ) named on true
        where named.user_id is null
    ) as mentions_stranger
from (select * from messages where id = $1 offset 0) m
join lateral (
    select can_send_messages, history_from_seq
    from participants
    where conversation_id = m.conversation_id and user_id = $2 and left_seq is null
    offset 0
) p on m.seq >= p.history_from_seq
