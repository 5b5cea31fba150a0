-- The last undeleted message of each sender in each conversation among ?1: [message, ...].
select m.conversation_id, m.sender_id, max(m.seq) as seq
from json_each(?1) e
    cross join messages m on m.id = unhex(e.value)
where m.deleted_at is null
group by m.conversation_id, m.sender_id
