-- ?1: [[conversation, user], ...], a row for each, in this order; no states for those not present.
select p.settled_seq, p.delivered_seq, c.last_seq, c.member_count
from jsonb_each(?1) e
    left join participants p on p.conversation_id = unhex(e.value ->> 0)
        and p.user_id = unhex(e.value ->> 1) and p.left_seq is null
    left join conversations c on c.id = p.conversation_id
order by e.key
