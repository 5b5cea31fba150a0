select role, can_send_messages from participants
where conversation_id = ?1 and user_id = ?2 and left_seq is null
