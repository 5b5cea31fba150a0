-- At most $3 present members of conversation $2 in order of user id after $4, for member $1.
select q.user_id, q.role, q.can_send_messages,
    (extract(epoch from q.joined_at) * 1000)::int8 as joined_at_ms, q.delivered_seq, q.read_seq
from participants p
join participants q on q.conversation_id = p.conversation_id and q.left_seq is null
where p.conversation_id = $2 and p.user_id = $1 and p.left_seq is null
    and ($4::uuid is null or q.user_id > $4)
order by q.user_id
limit $3
