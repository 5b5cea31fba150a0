delete from message_edits where message_id = ?1
