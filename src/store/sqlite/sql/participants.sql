-- Present members of ?1 in order of user id, after ?2 if given, at most ?3.
select user_id, role, can_send_messages, joined_at, delivered_seq, read_seq
from participants
where conversation_id = ?1 and user_id > coalesce(?2, x'') and left_seq is null
order by user_id
limit ?3
