-- At most ?4 earlier versions of the message ?2 after seq ?3, oldest first, if the member ?1 can see it: one row
-- without seq if there are none, no row if he cannot.
select e.seq, e.content, e.mentions, e.metadata, e.edited_at
from messages m
    cross join participants p on p.conversation_id = m.conversation_id and p.user_id = ?1
    left join message_edits e on e.message_id = m.id and m.deleted_at is null
        and e.seq > ?3
where m.id = ?2 and p.left_seq is null and m.seq >= p.history_from_seq
order by e.seq
limit ?4
