-- The conversation ?1 as its member ?2 finds it.
select c.kind, c.title, c.member_count, p.role
from conversations c
    cross join participants p on p.conversation_id = c.id
where c.id = ?1 and p.user_id = ?2 and p.left_seq is null
