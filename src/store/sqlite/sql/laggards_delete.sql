-- ?1: [[user, conversation], ...]
delete from laggards
where (user_id, conversation_id) in (
    select unhex(value ->> 0), unhex(value ->> 1) from jsonb_each(?1))
