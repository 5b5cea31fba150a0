-- Where the logs of conversations stand: for each user $1, those with an id above $2 and up to $3,
-- in order of id, at most $4, and those he left among them.
select span.ord, p.conversation_id, c.last_seq, p.left_seq, p.history_from_seq, c.member_count
from unnest($1::uuid[], $2::uuid[], $3::uuid[])
    with ordinality as span (user_id, after_id, to_id, ord)
cross join lateral (
    select conversation_id, left_seq, history_from_seq
    from participants
    -- Compared as rows, in the order of the index of users: with an `=` the primary key would do as
    -- well in the eyes of a plan made for empty tables, and it reads everyone in the range.
    where (user_id, conversation_id) > (span.user_id, span.after_id)
        and (user_id, conversation_id) <= (span.user_id, span.to_id)
    order by user_id, conversation_id
    limit $4
) p
join conversations c on c.id = p.conversation_id
order by span.ord, p.conversation_id
