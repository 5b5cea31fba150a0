//! What must hold of the stored data, looked at from outside: for `tidings verify`.
//!
//! The statements serve both databases. Each gives what is wrong: a conversation (or an outbox row),
//! perhaps a user, and two numbers that its text explains. They read everything and change nothing.

use uuid::Uuid;

/// Of each check so many findings are shown.
pub const SHOWN: usize = 10;

/// What one check found wrong.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// What must hold.
    pub rule: &'static str,
    /// Where it does not; at most [`SHOWN`] and one more, which says that there are others.
    pub broken: Vec<String>,
}

pub(super) struct Check {
    rule: &'static str,
    /// What the two numbers are.
    numbers: [&'static str; 2],
    pub sql: &'static str,
    /// Takes a time as its parameter: what is younger may still be under way.
    pub timed: bool,
}

/// Subject, user, two numbers.
pub(super) type Row = (Uuid, Option<Uuid>, i64, i64);

impl Check {
    pub fn verdict(&self, rows: Vec<Row>) -> Verdict {
        let broken = rows.into_iter().map(|(subject, user, a, b)| {
            let user = user.map(|user| format!(", user {user}")).unwrap_or_default();
            let [first, second] = self.numbers;
            format!("{subject}{user}: {first} {a}, {second} {b}")
        });
        Verdict { rule: self.rule, broken: broken.collect() }
    }
}

macro_rules! checks {
    ($($rule:literal, $numbers:expr, $timed:literal, $sql:literal;)+) => {
        pub(super) const CHECKS: &[Check] = &[$(Check {
            rule: $rule,
            numbers: $numbers,
            sql: concat!($sql, " limit 11"),
            timed: $timed,
        }),+];
    };
}

checks! {
    "the head of each log is a change that is there",
    ["last_seq", "info_seq"], false,
    "select c.id, cast(null as uuid), c.last_seq, c.info_seq
    from conversations c
    where c.info_seq <> c.last_seq
        and not exists (
            select 1 from messages m where m.conversation_id = c.id and m.seq = c.last_seq)
        and not exists (
            select 1 from messages m
            where m.conversation_id = c.id and m.change_seq = c.last_seq and m.change_seq > m.seq)
        and not exists (
            select 1 from participants p
            where p.conversation_id = c.id and p.change_seq = c.last_seq)";

    "no message is above the head of its log",
    ["change_seq", "last_seq"], false,
    "select c.id, cast(null as uuid), m.change_seq, c.last_seq
    from messages m
    join conversations c on c.id = m.conversation_id
    where m.seq > c.last_seq or m.change_seq > c.last_seq";

    "no message changed before it was sent",
    ["seq", "change_seq"], false,
    "select m.conversation_id, m.sender_id, m.seq, m.change_seq
    from messages m
    where m.change_seq < m.seq";

    "a log in which only messages were sent has no gap",
    ["last_seq", "messages"], false,
    "select c.id, cast(null as uuid), c.last_seq, n.messages
    from conversations c
    join (
        select conversation_id, count(*) as messages, max(change_seq - seq) as changed
        from messages
        group by conversation_id
    ) n on n.conversation_id = c.id
    where c.info_seq = 1 and n.changed = 0 and n.messages <> c.last_seq - 1
        and not exists (
            select 1 from participants p where p.conversation_id = c.id and p.change_seq > 1)";

    "the last message is the one shown as such",
    ["last_seq", "highest seq"], false,
    "select c.id, cast(null as uuid), c.last_seq, m.seq
    from conversations c
    join messages m on m.conversation_id = c.id
    where m.seq = (select max(l.seq) from messages l where l.conversation_id = c.id)
        and (c.last_message_id is null or c.last_message_id <> m.id)";

    "members read no more than was delivered to them, and nothing above the head",
    ["delivered_seq", "read_seq"], false,
    "select c.id, p.user_id, p.delivered_seq, p.read_seq
    from participants p
    join conversations c on c.id = p.conversation_id
    where p.left_seq is null
        and (p.read_seq > p.delivered_seq or p.delivered_seq > c.last_seq)";

    "members are settled from where they joined up to the head",
    ["settled_seq", "joined_seq"], false,
    "select c.id, p.user_id, p.settled_seq, p.joined_seq
    from participants p
    join conversations c on c.id = p.conversation_id
    where p.left_seq is null and (p.settled_seq > c.last_seq or p.settled_seq < p.joined_seq)";

    "members join, change and leave within the log",
    ["change_seq", "last_seq"], false,
    "select c.id, p.user_id, p.change_seq, c.last_seq
    from participants p
    join conversations c on c.id = p.conversation_id
    where p.change_seq > c.last_seq or p.joined_seq > p.change_seq
        or (p.left_seq is not null and p.left_seq > p.change_seq)";

    "conversations count their members",
    ["member_count", "members"], false,
    "select c.id, cast(null as uuid), cast(c.member_count as bigint), n.members
    from conversations c
    join (
        select conversation_id, count(*) as members
        from participants
        where left_seq is null
        group by conversation_id
    ) n on n.conversation_id = c.id
    where c.member_count <> n.members";

    "who lacks a message for long is known as a laggard",
    ["settled_seq", "lacks seq"], true,
    "select p.conversation_id, p.user_id, p.settled_seq, min(m.seq)
    from participants p
    join messages m on m.conversation_id = p.conversation_id and m.seq > p.settled_seq
    where p.left_seq is null and m.sender_id <> p.user_id and m.deleted_at is null
        and m.created_at < $1
        and not exists (
            select 1 from laggards l
            where l.conversation_id = p.conversation_id and l.user_id = p.user_id)
    group by p.conversation_id, p.user_id, p.settled_seq";

    "laggards that are due are looked after",
    ["tries", "due"], true,
    "select l.conversation_id, l.user_id, cast(l.tries as bigint), cast(1 as bigint)
    from laggards l
    where l.due_at < $1 and (l.lease_until is null or l.lease_until < $1)";

    "what was written is dispatched, or taken over from a node that died",
    ["rows", "due"], true,
    "select o.id, cast(null as uuid), cast(1 as bigint), cast(1 as bigint)
    from outbox o
    where o.lease_until < $1";
}
