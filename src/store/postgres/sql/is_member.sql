select exists (
    select
    from participants
    where conversation_id = $2 and user_id = $1 and left_seq is null
) as is_member
