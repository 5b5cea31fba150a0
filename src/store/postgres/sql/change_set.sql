-- Role and right of member $2 of conversation $1, at seq $3; null leaves as is.
update participants
set role = coalesce($4, role),
    can_send_messages = coalesce($5, can_send_messages),
    change_seq = $3
where conversation_id = $1 and user_id = $2
