-- ?1: [[conversation, user, kind, from, up to], ...]
insert into receipts (conversation_id, user_id, kind, from_seq, up_to_seq, at)
select unhex(value ->> 0), unhex(value ->> 1), value ->> 2, value ->> 3, value ->> 4,
    cast(round(unixepoch('subsec') * 1000) as integer)
from jsonb_each(?1)
where true
on conflict do nothing
