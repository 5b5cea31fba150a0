-- User $2 leaves conversation $1 at seq $3 and time $4, and lacks nothing there any more. The
-- participant is locked before the laggard, as by those who settle: hence `returning`, and `using`.
with leaver as (
    update participants
    set left_seq = $3, left_at = $4, change_seq = $3
    where conversation_id = $1 and user_id = $2
    returning conversation_id, user_id
)
delete from laggards l
using leaver
where l.conversation_id = leaver.conversation_id and l.user_id = leaver.user_id
