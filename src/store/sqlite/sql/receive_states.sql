-- ?1: [[user, message], ...], a row for each, in this order; nulls for what the user cannot see.
select m.conversation_id, m.seq, p.settled_seq, p.delivered_seq, p.read_seq, c.member_count
from jsonb_each(?1) e
    left join messages m on m.id = unhex(e.value ->> 1)
    left join participants p on p.conversation_id = m.conversation_id
        and p.user_id = unhex(e.value ->> 0) and p.left_seq is null and m.seq >= p.history_from_seq
    left join conversations c on c.id = p.conversation_id
order by e.key
