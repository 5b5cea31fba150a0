-- Where the logs of the conversations of ?1 stand: those with an id above ?2 and up to ?3, in order
-- of id, at most ?4, and those he left among them.
select p.conversation_id, c.last_seq, p.left_seq, p.history_from_seq, c.member_count
from participants p indexed by participants_user
    cross join conversations c on c.id = p.conversation_id
where p.user_id = ?1 and p.conversation_id > ?2 and p.conversation_id <= ?3
order by p.conversation_id
limit ?4
