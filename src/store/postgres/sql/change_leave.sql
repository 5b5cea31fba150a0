-- User $2 leaves conversation $1 at seq $3 and time $4, and lacks nothing there any more.
with leaver as (
    update participants
    set left_seq = $3, left_at = $4, change_seq = $3
    where conversation_id = $1 and user_id = $2
)
delete from laggards
where conversation_id = $1 and user_id = $2
