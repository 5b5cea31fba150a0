-- How far the others are with message ?1, at most ?3 in order of user id after ?2 if given: those who
-- were members when it was sent and still are.
select p.user_id, p.delivered_seq >= m.seq as delivered,
    (select at from (
        select at, from_seq from receipts r
        where r.conversation_id = m.conversation_id and r.user_id = p.user_id and r.kind = 0
            and r.up_to_seq >= m.seq
        order by r.up_to_seq limit 1) where from_seq <= m.seq) as delivered_at,
    p.read_seq >= m.seq as read,
    (select at from (
        select at, from_seq from receipts r
        where r.conversation_id = m.conversation_id and r.user_id = p.user_id and r.kind = 1
            and r.up_to_seq >= m.seq
        order by r.up_to_seq limit 1) where from_seq <= m.seq) as read_at
from messages m
    cross join participants p on p.conversation_id = m.conversation_id
        and p.user_id > coalesce(?2, x'')
where m.id = ?1 and p.left_seq is null and p.joined_seq <= m.seq and p.user_id <> m.sender_id
order by p.user_id
limit ?3
