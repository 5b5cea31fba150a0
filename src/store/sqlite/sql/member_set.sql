update participants set role = ?3, can_send_messages = ?4, change_seq = ?5, muted_until = ?6
where conversation_id = ?1 and user_id = ?2
