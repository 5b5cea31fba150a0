-- Who left lacks nothing there any more.
delete from laggards where user_id = ?2 and conversation_id = ?1
