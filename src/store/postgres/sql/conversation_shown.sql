-- Follows a `with mine as (..)`: what a member is shown of each of his conversations.
select m.id, m.kind, m.title, m.created_by, m.created_at, m.last_seq, m.last_activity_at,
    m.user_id, m.role, m.can_send_messages, m.delivered_seq, m.read_seq, m.muted_until,
    -- The last message is the newest: if he may not see it, he may see none.
    (
        select last.id
        from messages last
        where last.id = m.last_message_id and last.seq >= m.history_from_seq
    ) as last_message_id,
    (
        select count(*)
        from (
            select
            from messages u
            where u.conversation_id = m.id
                and u.seq > m.read_seq and u.seq >= m.history_from_seq
                and u.sender_id <> m.user_id and u.deleted_at is null
            limit 100
        ) unread
    ) as unread_count,
    case
        when m.member_count <= m.members_shown then (
            select json_agg(
                json_build_object(
                    'user_id', q.user_id, 'role', q.role,
                    'can_send_messages', q.can_send_messages,
                    'joined_at_ms', (extract(epoch from q.joined_at) * 1000)::int8,
                    'delivered_seq', q.delivered_seq, 'read_seq', q.read_seq
                )
                order by q.user_id
            )
            from participants q
            where q.conversation_id = m.id and q.left_seq is null
        )
    end as members
from mine m
order by m.last_activity_at desc, m.id desc
