-- Where member $1 and conversation $2 stand in the database that is asked, and which data it holds.
select p.change_seq, c.last_seq,
    (select store_epoch from store_meta where only_row) as store_epoch
from participants p
join conversations c on c.id = p.conversation_id
where p.conversation_id = $2 and p.user_id = $1 and p.left_seq is null
