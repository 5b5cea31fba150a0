-- Whether a page that member $1 would get from a replica is what he gets here. The replica stood at
-- $3 with his membership, at $4 with conversation $2, and holds the data of $5. The page's oldest
-- message is $7, the newest $8, or it reaches to the head; its messages are $9. No row if he is no member.
-- 0: it is; 1: the replica is more than $6 changes behind; 2: something of it may have changed.
select (case
    when c.last_seq - $4 > $6 then 1
    -- A lead is of another log.
    when p.change_seq <> $3 or c.last_seq < $4 then 2
    when (select store_epoch from store_meta where only_row) <> $5 then 2
    when c.last_seq = $4 then 0
    -- A new message counts in another's replies.
    when exists (
        select
        from messages m
        where m.conversation_id = c.id and m.seq > $4
            and (m.seq between $7 and $8 or m.parent_message_id = any ($9::uuid[]))
    ) then 2
    -- So does one that was deleted.
    when exists (
        select
        from messages m
        where m.conversation_id = c.id and m.change_seq > $4 and m.change_seq > m.seq
            and (m.seq between $7 and $8 or m.parent_message_id = any ($9::uuid[]))
    ) then 2
    else 0
end)::int2 as verdict
from participants p
join conversations c on c.id = p.conversation_id
where p.conversation_id = $2 and p.user_id = $1 and p.left_seq is null
