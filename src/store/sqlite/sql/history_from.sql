-- Whether the user ?1 may read the conversation ?2, and the seqs of the messages ?3 and ?4 if he may see
-- them.
select
    (select m.seq from messages m
        where m.id = ?3 and m.conversation_id = ?2 and m.seq >= p.history_from_seq) as anchor_seq,
    (select m.seq from messages m
        where m.id = ?4 and m.conversation_id = ?2 and m.seq >= p.history_from_seq) as thread_seq
from participants p
where p.conversation_id = ?2 and p.user_id = ?1 and p.left_seq is null
