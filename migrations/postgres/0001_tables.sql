-- The tables of Tidings. Times are the database's own. `seq` is a place in a conversation's change
-- log: message created, edited, deleted, membership or info changed each take the next number.

create table store_meta (
    -- Renewed by the operator after a restore that may have lost commits: clients then read anew.
    store_epoch uuid not null default gen_random_uuid(),
    only_row boolean primary key default true check (only_row)
);
insert into store_meta default values;

-- No index on what changes with each message, and room on each page: nearly all updates are HOT.
create table conversations (
    id uuid primary key,
    kind int2 not null,
    title text,
    direct_key text unique,
    created_by uuid not null,
    created_at timestamptz not null,
    last_seq int8 not null,
    info_seq int8 not null,
    -- Raised by each change of membership, role or permission, in its transaction: a send judged
    -- under an older version is judged again.
    members_version int8 not null,
    -- Present members; changed only by who holds this row's lock.
    member_count int4 not null,
    last_message_id uuid,
    -- Of the last message, or the creation; whole milliseconds, as list cursors carry it.
    last_activity_at timestamptz not null
) with (fillfactor = 50);

create table participants (
    conversation_id uuid not null references conversations (id),
    user_id uuid not null,
    role int2 not null,
    can_send_messages boolean not null default true,
    joined_at timestamptz not null,
    joined_seq int8 not null,
    left_at timestamptz,
    left_seq int8,
    change_seq int8 not null,
    -- Nothing before it is ever shown to this member.
    history_from_seq int8 not null,
    -- Monotonic. delivered and read are shown to people; settled is the line below which each
    -- message of others was proven delivered to a device or handed to the offline sink.
    delivered_seq int8 not null,
    read_seq int8 not null,
    settled_seq int8 not null,
    muted_until timestamptz,
    primary key (conversation_id, user_id)
) with (fillfactor = 70);
create index participants_user on participants (user_id, conversation_id);
-- Changes since S. Only of those who were not there from the beginning: most never change, and an
-- index on all of them would look as good as the primary key to a plan made for empty tables.
create index participants_change on participants (conversation_id, change_seq)
    where change_seq > 1;

create table messages (
    id uuid primary key,
    conversation_id uuid not null,
    seq int8 not null,
    change_seq int8 not null,
    sender_id uuid not null,
    client_message_id text,
    -- SHA-256 of what was first sent.
    body_hash bytea not null,
    message_type int2 not null,
    content text,
    parent_message_id uuid,
    mentions jsonb,
    metadata jsonb,
    created_at timestamptz not null,
    edited_at timestamptz,
    deleted_at timestamptz,
    constraint messages_seq unique (conversation_id, seq)
);
create unique index messages_client_id on messages (sender_id, client_message_id)
    where client_message_id is not null;
-- Changes since S are the messages with `seq > S`, by the key above, and those of before that were
-- edited or deleted since, by this one. So a new message costs one index entry less, and no plan
-- made for empty tables can take it for the key of (conversation_id, seq).
create index messages_change on messages (conversation_id, change_seq) where change_seq > seq;
create index messages_parent on messages (parent_message_id, seq)
    where parent_message_id is not null;

create table message_edits (
    message_id uuid not null,
    -- The change_seq at which this version stood.
    seq int8 not null,
    content text,
    mentions jsonb,
    metadata jsonb,
    edited_at timestamptz not null,
    primary key (message_id, seq)
);

-- One row per receipt action, a run of seqs. kind: 0 delivered, 1 read.
create table receipts (
    conversation_id uuid not null,
    user_id uuid not null,
    kind int2 not null,
    from_seq int8 not null,
    up_to_seq int8 not null,
    at timestamptz not null,
    primary key (conversation_id, user_id, kind, up_to_seq)
);

-- One row per write batch, gone a grace after its dispatch. kinds: 0 message created, 1 edited,
-- 2 deleted, 3 conversation changed (whose message id is null).
create table outbox (
    id uuid primary key,
    lease_until timestamptz not null,
    created_at timestamptz not null default now(),
    conversation_ids uuid[] not null,
    message_ids uuid[] not null,
    seqs int8[] not null,
    kinds int2[] not null
);
create index outbox_lease on outbox (lease_until);

-- Who is behind: the work list of Reconcile, bounded by members, not by messages.
create table laggards (
    user_id uuid not null,
    conversation_id uuid not null,
    due_at timestamptz not null,
    lease_until timestamptz,
    tries int4 not null default 0,
    -- The highest seq that made him one. A statement that does not see the log up to here must not
    -- conclude from what it sees that he lacks nothing.
    last_seq int8 not null,
    primary key (user_id, conversation_id)
);
create index laggards_due on laggards (due_at);
