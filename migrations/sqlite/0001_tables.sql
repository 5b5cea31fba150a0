-- The tables of Tidings, as SQLite has them: the same names and meanings as on Postgres. Ids are
-- blobs of 16 bytes, times integers (milliseconds since 1970, UTC), arrays and JSON are text.
-- `seq` is a place in a conversation's change log: message created, edited, deleted, membership or
-- info changed each take the next number.
--
-- Small rows live in their primary key (without rowid). Rows with contents keep a rowid: large rows
-- make a wide key tree, and every index would repeat the id.

create table store_meta (
    only_row integer primary key default 1 check (only_row = 1),
    -- Renewed by the operator after a restore that may have lost commits: clients then read anew.
    store_epoch blob not null check (length(store_epoch) = 16)
) strict;
-- A random UUID; the two fixed digits make it a version 4.
insert into store_meta (store_epoch)
select unhex(substr(h, 1, 12) || '4' || substr(h, 14, 3) || '8' || substr(h, 18))
from (select hex(randomblob(16)) as h);

create table conversations (
    id blob primary key,
    kind integer not null,
    title text,
    direct_key text unique,
    created_by blob not null,
    created_at integer not null,
    last_seq integer not null,
    info_seq integer not null,
    -- Raised by each change of membership, role or permission.
    members_version integer not null,
    -- Present members.
    member_count integer not null,
    last_message_id blob,
    -- Of the last message, or the creation.
    last_activity_at integer not null
) strict, without rowid;

create table participants (
    conversation_id blob not null references conversations (id),
    user_id blob not null,
    role integer not null,
    can_send_messages integer not null default 1 check (can_send_messages in (0, 1)),
    joined_at integer not null,
    joined_seq integer not null,
    left_at integer,
    left_seq integer,
    change_seq integer not null,
    -- Nothing before it is ever shown to this member.
    history_from_seq integer not null,
    -- Monotonic. delivered and read are shown to people; settled is the line below which each
    -- message of others was proven delivered to a device or handed to the offline sink.
    delivered_seq integer not null,
    read_seq integer not null,
    settled_seq integer not null,
    muted_until integer,
    primary key (conversation_id, user_id)
) strict, without rowid;
create index participants_user on participants (user_id, conversation_id);
create index participants_change on participants (conversation_id, change_seq);

create table messages (
    id blob not null,
    conversation_id blob not null,
    seq integer not null,
    change_seq integer not null,
    sender_id blob not null,
    client_message_id text,
    -- SHA-256 of what was first sent.
    body_hash blob not null,
    message_type integer not null,
    content text,
    parent_message_id blob,
    mentions text,
    metadata text,
    created_at integer not null,
    edited_at integer,
    deleted_at integer
) strict;
create unique index messages_id on messages (id);
create unique index messages_seq on messages (conversation_id, seq);
create unique index messages_client_id on messages (sender_id, client_message_id)
    where client_message_id is not null;
create index messages_change on messages (conversation_id, change_seq);
create index messages_parent on messages (parent_message_id, seq)
    where parent_message_id is not null;

create table message_edits (
    message_id blob not null,
    -- The change_seq at which this version stood.
    seq integer not null,
    content text,
    mentions text,
    metadata text,
    edited_at integer not null,
    primary key (message_id, seq)
) strict;

-- One row per receipt action, a run of seqs. kind: 0 delivered, 1 read.
create table receipts (
    conversation_id blob not null,
    user_id blob not null,
    kind integer not null,
    from_seq integer not null,
    up_to_seq integer not null,
    at integer not null,
    primary key (conversation_id, user_id, kind, up_to_seq)
) strict, without rowid;

-- One row per write batch, gone a grace after its dispatch. kinds: 0 message created, 1 edited,
-- 2 deleted, 3 conversation changed (whose message id is null). The arrays are JSON, ids in hex.
create table outbox (
    id blob not null primary key,
    lease_until integer not null,
    created_at integer not null,
    conversation_ids text not null,
    message_ids text not null,
    seqs text not null,
    kinds text not null
) strict;
create index outbox_lease on outbox (lease_until);

-- Who is behind: the work list of Reconcile, bounded by members, not by messages.
-- (Postgres also notes the seq that made a laggard, for statements that see less than all of the log.
-- Here each look is under the one write lock and sees it all.)
create table laggards (
    user_id blob not null,
    conversation_id blob not null,
    due_at integer not null,
    lease_until integer,
    tries integer not null default 0,
    primary key (user_id, conversation_id)
) strict, without rowid;
create index laggards_due on laggards (due_at);
