-- Whether the user ?1 may read the conversation ?2, and the seq of the message ?3 if he may see it.
select (select m.seq from messages m
        where m.id = ?3 and m.conversation_id = ?2 and m.seq >= p.history_from_seq) as before_seq
from participants p
where p.conversation_id = ?2 and p.user_id = ?1 and p.left_seq is null
