update participants set left_seq = ?3, left_at = ?4, change_seq = ?3
where conversation_id = ?1 and user_id = ?2
