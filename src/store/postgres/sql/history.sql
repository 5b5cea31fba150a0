-- The newest $4 messages of conversation $2 older than message $3 (null: than none), as far as
-- member $1 may look, and where the log stands. No row also if he is no member or may not see $3: history_judge.sql tells.
with page as (
    select p.conversation_id, p.history_from_seq, c.last_seq,
        case
            when $3::uuid is null then c.last_seq + 1
            -- `offset 0`: found by its id and by nothing else, whatever the planner believes.
            else (
                select before.seq
                from (select conversation_id, seq from messages where id = $3 offset 0) before
                where before.conversation_id = p.conversation_id
                    and before.seq >= p.history_from_seq
            )
        end as before_seq
    from participants p
    join conversations c on c.id = p.conversation_id
    where p.conversation_id = $2 and p.user_id = $1 and p.left_seq is null
)
select page.last_seq, page.history_from_seq, m.id, m.conversation_id, m.seq, m.change_seq,
    m.sender_id, m.client_message_id, m.message_type, m.parent_message_id, m.created_at,
    m.edited_at, m.deleted_at,
    case when m.deleted_at is null then m.content end as content,
    case when m.deleted_at is null then m.mentions end as mentions,
    case when m.deleted_at is null then m.metadata end as metadata,
    (select count(*) from messages r where r.parent_message_id = m.id and r.deleted_at is null)
        as reply_count
from page
cross join lateral (
    select *
    from messages m
    where m.conversation_id = page.conversation_id
        and m.seq >= page.history_from_seq and m.seq < page.before_seq
    order by m.seq desc
    limit $4
) m
order by m.seq desc
