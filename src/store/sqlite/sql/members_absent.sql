-- Those of ?2: [user, ...] who are not in ?1 now, each once.
select distinct unhex(e.value) as user_id
from json_each(?2) e
where not exists (
    select 1 from participants p
    where p.conversation_id = ?1 and p.user_id = unhex(e.value) and p.left_seq is null)
