select role, can_send_messages, muted_until from participants
where conversation_id = ?1 and user_id = ?2 and left_seq is null
