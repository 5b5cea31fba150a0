-- The users $2 join conversation $1, or join it again, at seq $3 and time $4: nothing of an earlier
-- membership is left. $5: with history, that is with all of it.
insert into participants (conversation_id, user_id, role, joined_at, joined_seq, change_seq,
                          history_from_seq, delivered_seq, read_seq, settled_seq)
select $1, user_id, 0, $4, j.seq, j.seq, case when $5 then 1 else j.seq end, j.seq, j.seq, j.seq
from unnest($2::uuid[]) as joining (user_id)
cross join (select $3::int8 as seq) j
order by user_id
on conflict (conversation_id, user_id) do update
set role = excluded.role,
    can_send_messages = true,
    joined_at = excluded.joined_at,
    joined_seq = excluded.joined_seq,
    left_at = null,
    left_seq = null,
    change_seq = excluded.change_seq,
    history_from_seq = excluded.history_from_seq,
    delivered_seq = excluded.delivered_seq,
    read_seq = excluded.read_seq,
    settled_seq = excluded.settled_seq,
    muted_until = null
