-- A page of $4 conversations of member $1, newest activity first, after the place ($2, $3). Only
-- direct ones name their members: it is how a list tells them apart. The page is cut before
-- anything else is looked at, for a member may have thousands.
with mine as materialized (
    select c.*, case when c.kind = 0 then 2 else 0 end as members_shown, p.user_id, p.role,
        p.can_send_messages, p.delivered_seq, p.read_seq, p.muted_until, p.history_from_seq
    from participants p
    join conversations c on c.id = p.conversation_id
    where p.user_id = $1 and p.left_seq is null
        and ($2::timestamptz is null or (c.last_activity_at, c.id) < ($2, $3::uuid))
    order by c.last_activity_at desc, c.id desc
    limit $4
)
