//! Every statement, from its file. The list is what `check_statements` prepares, and whose plans
//! the tests look at.

macro_rules! statements {
    ($($name:ident = $($file:literal)+;)+) => {
        $(pub const $name: &str = concat!($(include_str!(concat!("sql/", $file, ".sql"))),+);)+

        /// With the names of the files each comes from.
        pub const ALL: &[(&str, &str)] = &[$((statements!(@name $($file)+), $name)),+];
    };
    (@name $first:literal $($more:literal)*) => { concat!($first $(, " ", $more)*) };
}

statements! {
    ACQUAINTED = "acquainted";
    AMEND_DELETE = "amend_delete";
    AMEND_EDIT = "amend_edit";
    AMEND_JUDGE = "amend_judge";
    AMEND_LOCK = "amend_lock";
    CHANGE_BUMP = "change_bump";
    CHANGE_HEIR = "change_heir";
    CHANGE_JOIN = "change_join";
    CHANGE_LEAVE = "change_leave";
    CHANGE_LOCK = "change_lock";
    CHANGE_MEMBERS = "change_members";
    CHANGE_OUTBOX = "change_outbox";
    CHANGE_SET = "change_set";
    CLAIM_LAGGARDS = "claim_laggards";
    CLAIM_OUTBOX = "claim_outbox";
    CONVERSATION_EVENT = "conversation_event";
    CREATE = "create";
    CREATE_EXISTING = "create_existing";
    EDITS = "edits";
    EPOCH = "epoch";
    EXPIRE_RECEIPTS = "expire_receipts";
    HASTEN_LAGGARDS = "hasten_laggards";
    HISTORY = "history";
    HISTORY_AFTER = "history_after";
    HISTORY_JUDGE = "history_judge";
    IS_MEMBER = "is_member";
    LACKING = "lacking";
    LAGGARDS_STATE = "laggards_state";
    MEMBERS = "members";
    MEMBERS_VERSION = "members_version";
    MESSAGE = "message";
    MESSAGES = "messages";
    MIGRATIONS_APPLIED = "migrations_applied";
    OUTBOX_STATE = "outbox_state";
    PARTICIPANTS = "participants";
    POSTPONE_LAGGARDS = "postpone_laggards";
    RECEIPTS = "receipts";
    RECEIVE = "receive";
    SEND = "send";
    SETTLE = "settle";
    SETTLE_OUTBOX = "settle_outbox";
    STANDING = "standing";
    THREAD = "thread";
    THREAD_AFTER = "thread_after";
    SYNC_HEADS = "sync_heads";
    SYNC_PAGES = "sync_pages";
    TOLD = "told";
    CONVERSATION = "conversation_mine" "conversation_shown";
    CONVERSATIONS = "conversations_mine" "conversation_shown";
    CONVERSATIONS_NAMED = "conversations_named" "conversation_shown";
}
