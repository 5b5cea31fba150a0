-- The conversations $2 of members $1, pairwise, and up to how many members are shown ($3).
with mine as (
    select c.*, $3::int4 as members_shown, p.user_id, p.role, p.can_send_messages, p.delivered_seq,
        p.read_seq, p.muted_until, p.history_from_seq
    from unnest($1::uuid[], $2::uuid[]) as named (user_id, conversation_id)
    cross join lateral (
        -- Found by both, and not among all the members.
        select *
        from participants
        where conversation_id = named.conversation_id and user_id = named.user_id
            and left_seq is null
        offset 0
    ) p
    join conversations c on c.id = p.conversation_id
)
