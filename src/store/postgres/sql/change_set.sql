-- Role and right of member $2 of conversation $1, at seq $3; null leaves as is. $6: he is muted until
-- $7 now, or not any more if that is null.
update participants
set role = coalesce($4, role),
    can_send_messages = coalesce($5, can_send_messages),
    muted_until = case when $6 then $7 else muted_until end,
    change_seq = $3
where conversation_id = $1 and user_id = $2
