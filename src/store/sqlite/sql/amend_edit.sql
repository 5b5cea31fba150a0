-- The message ?1 says this from the seq ?5 and the time ?6 on.
update messages
set content = ?2, mentions = ?3, metadata = ?4, change_seq = ?5, edited_at = ?6
where id = ?1
