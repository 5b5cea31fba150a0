-- ?1: [[conversation, sender, seq], ...], of each conversation the two senders with the highest seqs:
-- a member is behind if he is behind the highest that is not his own. Whoever joined after it has
-- settled_seq above it. One who is a laggard already keeps his time; the others are due in ?2
-- milliseconds.
insert into laggards (user_id, conversation_id, due_at)
select p.user_id, p.conversation_id, cast(round(unixepoch('subsec') * 1000) as integer) + ?2
from jsonb_each(?1) e
    cross join participants p on p.conversation_id = unhex(e.value ->> 0)
        and p.user_id <> unhex(e.value ->> 1) and p.settled_seq < (e.value ->> 2)
        and p.left_seq is null
where true
on conflict (user_id, conversation_id) do nothing
