-- Where the log of the conversation ?2 stands, and from where on its member ?1 may look; no row if he is
-- none.
select c.last_seq, p.history_from_seq
from participants p
    cross join conversations c on c.id = p.conversation_id
where p.conversation_id = ?2 and p.user_id = ?1 and p.left_seq is null
