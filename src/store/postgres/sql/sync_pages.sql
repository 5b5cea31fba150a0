-- What member $1 of conversation $2 lacks above seq $3: a row for each message, or one without a
-- message. All of it is one snapshot.
--
-- A message stands at the place of its latest change. Those never changed are found by seq, the
-- others by change_seq. Neither way is gone further than $4 and one more, which tells that there is
-- more, and a page is complete up to `upto`; the caller cuts it to $4.
--
-- (`offset 0` and `materialized`: found by these keys and by no others, and once for each page.)
with page as materialized (
    select w.ord, w.conversation_id, c.last_seq, p.left_seq, p.history_from_seq, p.start, u.upto,
        greatest(c.info_seq, (
            select q.change_seq
            from participants q
            where q.conversation_id = w.conversation_id and q.change_seq > 1
            order by q.change_seq desc
            limit 1
        )) as info_head,
        case
            when u.upto < c.last_seq then (
                select array_agg(late.seq order by late.seq)
                from messages late
                where late.conversation_id = w.conversation_id
                    and late.seq > p.start and late.seq <= u.upto
                    and late.change_seq > u.upto and late.deleted_at is null
            )
        end as pending
    from unnest($1::uuid[], $2::uuid[], $3::int8[], $4::int8[])
        with ordinality as w (user_id, conversation_id, since, room, ord)
    cross join lateral (
        -- Nothing that he may see stands before history_from_seq, changes included.
        select left_seq, history_from_seq, greatest(w.since, history_from_seq - 1) as start
        from participants
        where conversation_id = w.conversation_id and user_id = w.user_id
        offset 0
    ) p
    join conversations c on c.id = w.conversation_id
    cross join lateral (
        select least(
            (
                select m.seq
                from messages m
                where m.conversation_id = w.conversation_id and m.seq > p.start
                order by m.seq
                offset w.room
                limit 1
            ),
            (
                select m.change_seq
                from messages m
                where m.conversation_id = w.conversation_id and m.change_seq > p.start
                    and m.change_seq > m.seq
                order by m.change_seq
                offset w.room
                limit 1
            ),
            c.last_seq
        ) as upto
        offset 0
    ) u
)
select page.ord, page.last_seq, page.left_seq, page.history_from_seq, page.upto, page.info_head,
    page.pending, m.id, m.conversation_id, m.seq, m.change_seq, m.sender_id, m.client_message_id,
    m.message_type, m.parent_message_id, m.created_at, m.edited_at, m.deleted_at,
    case when m.deleted_at is null then m.content end as content,
    case when m.deleted_at is null then m.mentions end as mentions,
    case when m.deleted_at is null then m.metadata end as metadata,
    (select count(*) from messages r where r.parent_message_id = m.id and r.deleted_at is null)
        as reply_count
from page
left join lateral (
    select *
    from messages
    where conversation_id = page.conversation_id
        and seq > page.start and seq <= page.upto and change_seq = seq
    union all
    select *
    from (
        select *
        from messages
        where conversation_id = page.conversation_id
            and change_seq > page.start and change_seq <= page.upto and change_seq > seq
        offset 0
    ) changed
    where changed.seq >= page.history_from_seq
) m on page.left_seq is null
order by page.ord, m.change_seq
