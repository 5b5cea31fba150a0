-- Why a page of history is empty: no row if $1 is no member of $2, else whether he sees message $3.
select exists (
    select
    from (select conversation_id, seq from messages where id = $3 offset 0) m
    where m.conversation_id = p.conversation_id and m.seq >= p.history_from_seq
) as sees
from participants p
where p.conversation_id = $2 and p.user_id = $1 and p.left_seq is null
