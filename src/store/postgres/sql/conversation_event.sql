-- Conversation $1 as events show it: nobody's own state, and no message, for not all who get the
-- event may see it. Members if at most $2.
select c.id, c.kind, c.title, c.created_by, c.created_at, c.last_seq,
    case
        when c.member_count <= $2::int4 then (
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
            where q.conversation_id = c.id and q.left_seq is null
        )
    end as members
from conversations c
where c.id = $1
