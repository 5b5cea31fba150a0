-- ?1: [[user, conversation, since], ...]. What each lacks above `since`: a row without a message,
-- then a row for each message.
--
-- A message stands at the place of its latest change. Those never changed are found by seq, the
-- others by change_seq. Neither way is gone further than ?2 and one more, which tells that there is
-- more, and a page is complete up to `upto`; the caller cuts it to ?2.
with wanted as materialized (
    select e.key as ord, c.last_seq, p.conversation_id, p.left_seq, p.history_from_seq,
        max(e.value ->> 2, p.history_from_seq - 1) as start,
        max(c.info_seq, (
            select max(q.change_seq) from participants q indexed by participants_change
            where q.conversation_id = c.id)) as info_head
    from jsonb_each(?1) e
        cross join participants p on p.conversation_id = unhex(e.value ->> 1)
            and p.user_id = unhex(e.value ->> 0)
        cross join conversations c on c.id = p.conversation_id
),
page as materialized (
    select wanted.*, min(
        coalesce((select m.seq from messages m indexed by messages_seq
            where m.conversation_id = wanted.conversation_id and m.seq > wanted.start
            order by m.seq limit 1 offset ?2), wanted.last_seq),
        coalesce((select m.change_seq from messages m indexed by messages_change
            where m.conversation_id = wanted.conversation_id and m.change_seq > wanted.start
                and m.change_seq > m.seq
            order by m.change_seq limit 1 offset ?2), wanted.last_seq),
        wanted.last_seq) as upto
    from wanted
),
found as (
    select ord, null as id from page
    union all
    select page.ord, m.rowid
    from page cross join messages m indexed by messages_seq
        on m.conversation_id = page.conversation_id
            and m.seq > page.start and m.seq <= page.upto and m.change_seq = m.seq
    where page.left_seq is null
    union all
    select page.ord, m.rowid
    from page cross join messages m indexed by messages_change
        on m.conversation_id = page.conversation_id and m.change_seq > m.seq
            and m.change_seq > page.start and m.change_seq <= page.upto
            and m.seq >= page.history_from_seq
    where page.left_seq is null
)
select page.ord, page.last_seq, page.left_seq, page.history_from_seq, page.upto, page.info_head,
    case when m.id is null and page.upto < page.last_seq then (
        select json_group_array(late.seq order by late.seq)
        from messages late indexed by messages_seq
        where late.conversation_id = page.conversation_id
            and late.seq > page.start and late.seq <= page.upto
            and late.change_seq > page.upto and late.deleted_at is null) end as pending,
    m.id, m.conversation_id, m.seq, m.change_seq, m.sender_id, m.client_message_id,
    m.message_type, m.content, m.parent_message_id,
    (select count(*) from messages r
        where r.parent_message_id = m.id and r.deleted_at is null) as reply_count,
    m.mentions, m.metadata, m.created_at, m.edited_at, m.deleted_at
from found
    cross join page on page.ord = found.ord
    left join messages m on m.rowid = found.id
order by page.ord, m.change_seq
