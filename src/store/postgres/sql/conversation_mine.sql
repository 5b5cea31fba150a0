-- Conversation $2 of member $1, and up to how many members are shown ($3).
with mine as (
    select c.*, $3::int4 as members_shown, p.user_id, p.role, p.can_send_messages, p.delivered_seq,
        p.read_seq, p.muted_until, p.history_from_seq
    from participants p
    join conversations c on c.id = p.conversation_id
    where p.user_id = $1 and p.conversation_id = $2 and p.left_seq is null
)
