-- The message ?1 keeps its place and says nothing from the seq ?2 and the time ?3 on.
update messages
set content = null, mentions = null, metadata = null, change_seq = ?2, deleted_at = ?3
where id = ?1
