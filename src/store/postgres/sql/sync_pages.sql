-- What member $1 of conversation $2 lacks above seq $3: a row for each message, or one without a
-- message. All of it is one snapshot.
--
-- A message stands at the place of its latest change. Those never changed are found by seq, the
-- others by change_seq. Neither way is gone further than $4 and one more, which tells that there is
-- more, and a page is complete up to `upto`; the caller cuts it to $4.
select w.ord, c.last_seq, p.left_seq, p.history_from_seq, u.upto,
    w.since < 1 or c.info_seq > w.since or exists (
        select
        from participants q
        where q.conversation_id = w.conversation_id
            and q.change_seq > w.since and q.change_seq > 1
    ) as info_changed,
    case
        when u.upto < c.last_seq then (
            select array_agg(late.seq order by late.seq)
            from messages late
            where late.conversation_id = w.conversation_id
                and late.seq > u.start and late.seq <= u.upto
                and late.change_seq > u.upto and late.deleted_at is null
        )
    end as pending,
    m.id, m.conversation_id, m.seq, m.change_seq, m.sender_id, m.client_message_id,
    m.message_type, m.parent_message_id, m.created_at, m.edited_at, m.deleted_at,
    case when m.deleted_at is null then m.content end as content,
    case when m.deleted_at is null then m.mentions end as mentions,
    case when m.deleted_at is null then m.metadata end as metadata,
    (select count(*) from messages r where r.parent_message_id = m.id and r.deleted_at is null)
        as reply_count
from unnest($1::uuid[], $2::uuid[], $3::int8[], $4::int8[])
    with ordinality as w (user_id, conversation_id, since, room, ord)
join participants p on p.conversation_id = w.conversation_id and p.user_id = w.user_id
join conversations c on c.id = w.conversation_id
cross join lateral (
    -- Nothing that he may see stands before history_from_seq, changes included.
    select s.start, least(
        (
            select m.seq
            from messages m
            where m.conversation_id = w.conversation_id and m.seq > s.start
            order by m.seq
            offset w.room
            limit 1
        ),
        (
            select m.change_seq
            from messages m
            where m.conversation_id = w.conversation_id and m.change_seq > s.start
                and m.change_seq > m.seq
            order by m.change_seq
            offset w.room
            limit 1
        ),
        c.last_seq
    ) as upto
    from (select greatest(w.since, p.history_from_seq - 1) as start offset 0) s
) u
left join lateral (
    select *
    from messages
    where conversation_id = w.conversation_id
        and seq > u.start and seq <= u.upto and change_seq = seq
    union all
    select *
    from (
        select *
        from messages
        where conversation_id = w.conversation_id
            and change_seq > u.start and change_seq <= u.upto and change_seq > seq
        -- Found by its change_seq and by nothing else.
        offset 0
    ) changed
    where changed.seq >= p.history_from_seq
) m on p.left_seq is null
order by w.ord, m.change_seq
