-- ?2: [[user, role], ...] join ?1 by the change ?3 at ?4 and see it from the seq ?5 on; a former
-- member starts anew.
insert into participants (conversation_id, user_id, role, can_send_messages, joined_at, joined_seq,
    change_seq, history_from_seq, delivered_seq, read_seq, settled_seq)
select ?1, unhex(value ->> 0), value ->> 1, 1, ?4, ?3, ?3, ?5, ?3, ?3, ?3
from jsonb_each(?2)
where true
on conflict (conversation_id, user_id) do update set
    role = excluded.role, can_send_messages = excluded.can_send_messages,
    joined_at = excluded.joined_at, joined_seq = excluded.joined_seq,
    left_at = null, left_seq = null, change_seq = excluded.change_seq,
    history_from_seq = excluded.history_from_seq, delivered_seq = excluded.delivered_seq,
    read_seq = excluded.read_seq, settled_seq = excluded.settled_seq, muted_until = null
