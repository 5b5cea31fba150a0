-- Present members of each of ?1: [conversation, ...], in order of user id.
select p.conversation_id, p.user_id, p.role, p.can_send_messages, p.joined_at, p.delivered_seq,
    p.read_seq
from json_each(?1) e
    cross join participants p on p.conversation_id = unhex(e.value) and p.left_seq is null
order by p.conversation_id, p.user_id
