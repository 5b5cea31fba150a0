-- The conversations of ?1, newest activity first, after (?2, ?3), at most ?4. What is counted and
-- looked up per conversation is so for those of the page only.
with page as materialized (
    select c.id, c.last_activity_at
    from participants p
        cross join conversations c on c.id = p.conversation_id
    where p.user_id = ?1 and p.left_seq is null
        and (?2 is null or (c.last_activity_at, c.id) < (?2, ?3))
    order by c.last_activity_at desc, c.id desc
    limit ?4
)
select c.id, c.kind, c.title, c.created_by, c.created_at, c.last_seq, c.last_activity_at,
    (select m.id from messages m
        where m.id = c.last_message_id and m.seq >= p.history_from_seq) as last_message_id,
    p.role, p.can_send_messages, p.delivered_seq, p.read_seq, p.muted_until,
    (select count(*) from (
        select 1 from messages m
        where m.conversation_id = c.id and m.seq > p.read_seq
            and m.sender_id <> p.user_id and m.deleted_at is null
        limit 100)) as unread_count
from page
    cross join conversations c on c.id = page.id
    cross join participants p on p.conversation_id = page.id and p.user_id = ?1
order by page.last_activity_at desc, page.id desc
