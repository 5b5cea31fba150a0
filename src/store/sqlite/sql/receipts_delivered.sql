-- ?1: [[conversation, user, from, up to], ...]; only of conversations with at most ?2 members.
insert into receipts (conversation_id, user_id, kind, from_seq, up_to_seq, at)
select c.id, unhex(e.value ->> 1), 0, e.value ->> 2, e.value ->> 3,
    cast(round(unixepoch('subsec') * 1000) as integer)
from json_each(?1) e
    cross join conversations c on c.id = unhex(e.value ->> 0)
where c.member_count <= ?2
