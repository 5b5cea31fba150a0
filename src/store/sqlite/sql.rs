//! Every statement, one file each, so that a test can prepare them all and look at their plans.
//! Lists of values travel as one JSON parameter, so the number of statements never grows with them;
//! `jsonb_each` gives those that are lists again without writing each as text to be parsed anew.

use serde::Serialize;
use uuid::Uuid;
use uuid::fmt::Simple;

macro_rules! statements {
    ($($name:ident = $file:literal),+ $(,)?) => {
        $(pub(super) const $name: &str = include_str!(concat!("sql/", $file, ".sql"));)+

        #[cfg(test)]
        pub(super) const ALL: &[(&str, &str)] = &[$(($file, $name)),+];
    };
}

statements! {
    ACQUAINTED = "acquainted",
    AMEND_DELETE = "amend_delete",
    AMEND_EDIT = "amend_edit",
    AMEND_FORGET = "amend_forget",
    AMEND_JUDGE = "amend_judge",
    AMEND_KEEP = "amend_keep",
    CONVERSATION = "conversation",
    CONVERSATIONS = "conversations",
    CONVERSATION_ADVANCE = "conversation_advance",
    CONVERSATION_CREATE = "conversation_create",
    CONVERSATION_FIND = "conversation_find",
    CONVERSATION_FOR_EVENT = "conversation_for_event",
    CONVERSATION_STATE = "conversation_state",
    CONVERSATION_TITLE = "conversation_title",
    EDITS = "edits",
    HISTORY = "history",
    HISTORY_AFTER = "history_after",
    HISTORY_FROM = "history_from",
    IS_MEMBER = "is_member",
    LACKING = "lacking",
    LAGGARDS_CLAIM = "laggards_claim",
    LAGGARDS_DELETE = "laggards_delete",
    LAGGARDS_HASTEN = "laggards_hasten",
    LAGGARDS_LACK = "laggards_lack",
    LAGGARDS_POSTPONE = "laggards_postpone",
    LAGGARDS_SETTLED = "laggards_settled",
    LAGGARDS_STATE = "laggards_state",
    MEMBERS = "members",
    MEMBERS_ABSENT = "members_absent",
    MEMBERS_JOIN = "members_join",
    MEMBERS_VERSION = "members_version",
    MEMBER_FREE = "member_free",
    MEMBER_HEIR = "member_heir",
    MEMBER_LEAVE = "member_leave",
    MEMBER_SET = "member_set",
    MEMBER_STATE = "member_state",
    MESSAGE = "message",
    MESSAGES_BY_ID = "messages_by_id",
    OUTBOX_CLAIM = "outbox_claim",
    OUTBOX_DELETE = "outbox_delete",
    OUTBOX_INSERT = "outbox_insert",
    OUTBOX_LAGGARDS = "outbox_laggards",
    OUTBOX_MONOLOGUES = "outbox_monologues",
    OUTBOX_SENT = "outbox_sent",
    OUTBOX_STATE = "outbox_state",
    PARTICIPANTS = "participants",
    PARTICIPANTS_OF = "participants_of",
    RECEIPTS = "receipts",
    RECEIPTS_EXPIRE = "receipts_expire",
    RECEIPTS_NOTE = "receipts_note",
    RECEIVE_MOVE = "receive_move",
    RECEIVE_STATES = "receive_states",
    SEND_BUMP = "send_bump",
    SEND_JUDGE = "send_judge",
    SEND_STORE = "send_store",
    SETTLE_GAPS = "settle_gaps",
    SETTLE_MOVE = "settle_move",
    SETTLE_STATES = "settle_states",
    STANDING = "standing",
    STORE_EPOCH = "store_epoch",
    THREAD = "thread",
    THREAD_AFTER = "thread_after",
    SYNC_HEADS = "sync_heads",
    SYNC_PAGES = "sync_pages",
    TOLD = "told",
}

/// A list as a statement's parameter.
pub(super) fn json<T: Serialize>(rows: impl IntoIterator<Item = T>) -> String {
    let rows: Vec<T> = rows.into_iter().collect();
    serde_json::to_string(&rows).expect("lists of strings and numbers always serialize")
}

/// An id inside a JSON parameter; the statements read it with `unhex`.
pub(super) fn hex(id: Uuid) -> Simple {
    id.simple()
}
