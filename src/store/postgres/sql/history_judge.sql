-- Why a page of history is empty: no row if $1 is no member of $2, else which he sees of the messages
-- $3, before or after which it lies, and $4, whose thread it is of.
select
    exists (
        select
        from (select conversation_id, seq from messages where id = $3 offset 0) m
        where m.conversation_id = p.conversation_id and m.seq >= p.history_from_seq
    ) as sees_anchor,
    exists (
        select
        from (select conversation_id, seq from messages where id = $4 offset 0) m
        where m.conversation_id = p.conversation_id and m.seq >= p.history_from_seq
    ) as sees_thread
from participants p
where p.conversation_id = $2 and p.user_id = $1 and p.left_seq is null
