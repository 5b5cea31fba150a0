//! What goes into the store and what comes out of it; nothing here knows SQL.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::clock::Timestamp;
use crate::ids::{ConversationId, MessageId, OutboxId, Seq, UserId};
use crate::protocol::command::EditMessage;
use crate::protocol::model::{ChangeKind, Kind, Mention, Message, MessageType, ReceiptKind, Role};
use crate::protocol::problem::Problem;

/// A message to be stored, valid in itself; whether the sender may send is judged by the statement.
#[derive(Clone, Debug)]
pub struct NewMessage {
    pub id: MessageId,
    pub conversation_id: ConversationId,
    pub sender_id: UserId,
    pub client_message_id: Option<String>,
    /// SHA-256 over what was sent: the same `client_message_id` with another hash is refused.
    pub body_hash: [u8; 32],
    pub message_type: MessageType,
    pub content: String,
    pub parent_message_id: Option<MessageId>,
    pub mentions: Option<Vec<Mention>>,
    pub metadata: Option<serde_json::Value>,
}

/// The outbox row of a write batch: its id, and for how long the writing node dispatches alone.
#[derive(Clone, Copy, Debug)]
pub struct OutboxLease {
    pub id: OutboxId,
    pub lease: Duration,
}

/// What became of one message of a batch.
#[derive(Clone, Debug, PartialEq)]
pub enum SendOutcome {
    Stored(Stored),
    /// Sent before with the same body: the first message as it is now, whatever happened to it or
    /// to the sender's rights since.
    Duplicate(Box<Message>),
    /// The `client_message_id` was used before with another body.
    DifferentBody,
    /// No such conversation, or the sender is not a member: no difference is shown.
    NotFound,
    /// A member without `can_send_messages`.
    Forbidden,
    /// The parent is not a message of this conversation that the sender can see.
    ParentNotFound,
    /// The parent was deleted.
    ParentDeleted,
    /// Someone mentioned is not a member.
    MentionNotMember,
    /// The conversation's members changed between judging and locking: judge again.
    Again,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stored {
    pub seq: Seq,
    pub created_at: Timestamp,
    pub members_version: i64,
}

/// A change of a conversation or of its members. Each takes one seq.
#[derive(Clone, Debug)]
pub enum Change {
    /// `members` without the creator, who becomes owner. A direct one has exactly one other
    /// member and exists once per pair.
    Create { kind: Kind, title: Option<String>, created_by: UserId, members: Vec<UserId> },
    /// By an owner or admin of a group. Present members are left as they are.
    AddMembers { by: UserId, user_ids: Vec<UserId>, with_history: bool },
    /// By an owner or admin (an admin removes members only), or oneself (leaving). The last
    /// owner's leaving makes the oldest admin, else the oldest member, owner.
    RemoveMember { by: UserId, user_id: UserId },
    /// Role and right by an owner or admin; roles are given and owners touched by owners only. How
    /// long he wants no pushes is each member's own affair, in direct conversations, too.
    SetMember {
        by: UserId,
        user_id: UserId,
        role: Option<Role>,
        can_send_messages: Option<bool>,
        muted_until: Option<Option<Timestamp>>,
    },
    /// By an owner or admin of a group.
    SetTitle { by: UserId, title: Option<String> },
}

impl Change {
    /// It names nothing but how long its maker wants no pushes.
    pub(super) fn is_own_affair(&self) -> bool {
        match self {
            Self::SetMember { by, user_id, role, can_send_messages, muted_until } => {
                let only = role.is_none() && can_send_messages.is_none();
                by == user_id && only && muted_until.is_some()
            }
            _ => false,
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum ChangeOutcome {
    Changed(Changed),
    /// Nothing to do; for a direct conversation that exists already, its id.
    Unchanged(ConversationId),
    /// No such conversation, or the asking user is not a member.
    NotFound,
    /// The asking user is a member without the right.
    Forbidden,
    /// The user to be changed is not a member.
    MemberNotFound,
    /// The group would have more than `max_group_size` members.
    TooLarge,
    /// Direct conversations have fixed members and no title.
    Direct,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Changed {
    pub conversation_id: ConversationId,
    pub seq: Seq,
    pub at: Timestamp,
    pub members_version: i64,
}

/// An edit or a deletion of a message. It takes one seq.
#[derive(Clone, Debug)]
pub struct Amendment {
    pub by: UserId,
    pub message_id: MessageId,
    /// Valid in itself; whether it suits the message's type the store finds out. None deletes.
    pub edit: Option<EditMessage>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum AmendOutcome {
    /// The message as it is now.
    Amended { message: Box<Message>, members_version: i64 },
    /// It was so already: deleted, or with just these contents.
    Unchanged(Box<Message>),
    /// No such message, or the asking user cannot see it.
    NotFound,
    /// Another member's message.
    NotSender,
    /// An edit by a member without `can_send_messages`; deleting needs no right.
    Forbidden,
    /// Deleted: there is nothing to edit.
    Deleted,
    /// The edit does not suit a message of its type.
    Unsuitable(Problem),
    /// Someone mentioned is not a member.
    MentionNotMember,
}

impl Amendment {
    /// Whether it may be made of `message`, which the asking user can see: the message back, or the
    /// outcome. Both stores judge by this, under the conversation's lock.
    pub(super) fn judge(
        &self,
        message: Message,
        can_send_messages: bool,
        mentions_stranger: bool,
    ) -> Result<Message, AmendOutcome> {
        if message.sender_id != self.by {
            return Err(AmendOutcome::NotSender);
        }
        let deleted = message.deleted_at.is_some();
        match &self.edit {
            None if deleted => Err(AmendOutcome::Unchanged(Box::new(message))),
            None => Ok(message),
            Some(_) if !can_send_messages => Err(AmendOutcome::Forbidden),
            Some(_) if deleted => Err(AmendOutcome::Deleted),
            Some(edit) => {
                if let Err(problem) = edit.check_for(message.message_type) {
                    return Err(AmendOutcome::Unsuitable(problem));
                }
                if mentions_stranger {
                    return Err(AmendOutcome::MentionNotMember);
                }
                if edit.applied_to(message.clone()) == message {
                    return Err(AmendOutcome::Unchanged(Box::new(message)));
                }
                Ok(message)
            }
        }
    }
}

/// The members of a conversation with those who left in the last ten minutes, read in one
/// snapshot with the version they belong to.
#[derive(Clone, Debug, PartialEq)]
pub struct Members {
    pub version: i64,
    pub members: Vec<MemberState>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct MemberState {
    pub user_id: UserId,
    pub joined_seq: Seq,
    /// Nothing before it is ever shown to this member.
    pub history_from_seq: Seq,
    pub left_seq: Option<Seq>,
    pub can_send_messages: bool,
    pub muted_until: Option<Timestamp>,
}

impl MemberState {
    /// Whether the event of `seq` is theirs to see: a leaver gets his own removal, nothing after.
    pub fn sees(&self, seq: Seq) -> bool {
        self.joined_seq <= seq && self.left_seq.is_none_or(|left| seq <= left)
    }

    /// The same for the event of a change of the message at `message_seq`, which may be older than
    /// what this member may look back to.
    pub fn sees_change_of(&self, message_seq: Seq, seq: Seq) -> bool {
        self.history_from_seq <= message_seq && self.sees(seq)
    }
}

/// An outbox row whose lease ran out, claimed for dispatch.
#[derive(Clone, Debug, PartialEq)]
pub struct OutboxRow {
    pub id: OutboxId,
    pub entries: Vec<OutboxEntry>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OutboxEntry {
    pub conversation_id: ConversationId,
    /// None for a change of the conversation itself.
    pub message_id: Option<MessageId>,
    pub seq: Seq,
    pub kind: ChangeKind,
}

/// How a run was proven.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Proof {
    /// By one of the user's devices, which answered a ping behind it: moves `delivered_seq` and
    /// `settled_seq`.
    Device,
    /// By a device's own word that it holds all up to `hi`: moves the same.
    Ack,
    /// By the confirmation of the offline sink: moves `settled_seq` only.
    Offline,
}

/// A stretch of consecutive seqs `lo..=hi` proven for one user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    pub conversation_id: ConversationId,
    pub user_id: UserId,
    pub lo: Seq,
    pub hi: Seq,
    pub proof: Proof,
}

/// What became of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// `settled_seq` is at least `hi` now. With `delivered_from`, the run moved `delivered_seq`
    /// and its senders are to be told from there on.
    Moved { delivered_from: Option<Seq> },
    /// An undeleted message of others lies between `settled_seq` and `lo`: offer it again.
    Waits,
    /// The user is not a member any more, or `hi` is above the log's head.
    Refused,
}

/// What a device tells of one message: all up to it was delivered, or read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt {
    pub user_id: UserId,
    pub message_id: MessageId,
    pub kind: ReceiptKind,
}

/// What became of receipts that were given together.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Received {
    /// In the order given; None if the user cannot see such a message.
    pub places: Vec<Option<ReceivedPlace>>,
    /// What is new, at most one of each kind for a member.
    pub moved: Vec<Moved>,
}

/// Where the message of a receipt stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReceivedPlace {
    pub conversation_id: ConversationId,
    pub seq: Seq,
    /// The user's `settled_seq` is that far already.
    pub is_settled: bool,
}

/// A member's watermark that was moved over `from..=up_to`. Read implies delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moved {
    pub conversation_id: ConversationId,
    pub user_id: UserId,
    pub kind: ReceiptKind,
    pub from: Seq,
    pub up_to: Seq,
    /// Whether the senders are told: not in groups above `RECEIPTS_MAX_MEMBERS`.
    pub is_told: bool,
}

/// A message in a stretch of a log, to whose sender a receipt is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    /// Which of the stretches asked for.
    pub stretch: usize,
    pub sender_id: UserId,
    pub message_id: MessageId,
    pub seq: Seq,
}

/// A member who is behind, claimed by this node until its lease runs out.
#[derive(Clone, Debug, PartialEq)]
pub struct Laggard {
    pub user_id: UserId,
    pub conversation_id: ConversationId,
    pub tries: i32,
    /// The user's `settled_seq`.
    pub settled_seq: Seq,
    /// The highest seq of an undeleted message of others that he lacks.
    pub last_seq: Seq,
    /// How long the oldest message he lacks has been stored, by the store's clock.
    pub age: Duration,
    /// How many he lacks, counted up to 101.
    pub behind: i64,
    pub muted_until: Option<Timestamp>,
}

/// Which page of a conversation's history.
#[derive(Clone, Copy, Debug)]
pub struct HistoryPage {
    pub anchor: Anchor,
    /// Only the replies to this message; None for all.
    pub thread: Option<MessageId>,
    pub limit: u32,
}

/// Where a page of history lies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Anchor {
    /// At the end.
    Newest,
    /// The messages older than this one.
    Before(MessageId),
    /// Those newer than it.
    After(MessageId),
}

#[derive(Clone, Debug, PartialEq)]
pub enum History {
    /// Newest first. `has_more`: in the direction that was asked for.
    Page { messages: Vec<Message>, has_more: bool },
    /// No such conversation, or not a member.
    NotFound,
    /// What the page is to lie before or after is no message of this conversation that the user can
    /// see.
    MessageNotFound,
    /// The same of the message whose thread was asked for.
    ThreadNotFound,
}

impl Anchor {
    pub fn message_id(self) -> Option<MessageId> {
        match self {
            Self::Newest => None,
            Self::Before(id) | Self::After(id) => Some(id),
        }
    }
}

/// Where a list of conversations goes on: after this one, in order of activity. As text
/// `<milliseconds>.<id>`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ConversationCursor {
    pub last_activity_at: Timestamp,
    pub id: ConversationId,
}

impl fmt::Display for ConversationCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.last_activity_at.millis(), self.id)
    }
}

impl FromStr for ConversationCursor {
    type Err = ();

    fn from_str(text: &str) -> std::result::Result<Self, ()> {
        let (millis, id) = text.split_once('.').ok_or(())?;
        let millis = millis.parse::<i64>().map_err(|_| ())?;
        // Far from where a database's own times end.
        if !(0..1 << 45).contains(&millis) {
            return Err(());
        }
        let last_activity_at = Timestamp::from_millis(millis);
        Ok(Self { last_activity_at, id: id.parse().map_err(|_| ())? })
    }
}

/// Where a conversation's log stands, and from where on a member may look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    pub last_seq: Seq,
    pub history_from_seq: Seq,
}

/// Whose conversations a sync looks at, and those of which range of ids.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    pub user_id: UserId,
    pub after: Option<ConversationId>,
    pub to: Option<ConversationId>,
}

/// Where the log of a conversation stands for one who is or was a member.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Head {
    pub conversation_id: ConversationId,
    pub last_seq: Seq,
    pub left_seq: Option<Seq>,
    pub history_from_seq: Seq,
    pub member_count: i32,
}

/// The heads of a span, in order of id.
#[derive(Clone, Debug, PartialEq)]
pub struct Heads {
    pub heads: Vec<Head>,
    /// None if these are all; else they are those up to this id.
    pub up_to: Option<ConversationId>,
}

/// Which part of a log a member lacks.
#[derive(Clone, Copy, Debug)]
pub struct PageWanted {
    pub user_id: UserId,
    pub conversation_id: ConversationId,
    /// What changed at this place or before it is known.
    pub since: Seq,
    /// Messages at most.
    pub room: u32,
    /// Where the log stood for him when last looked at.
    pub last_seq: Seq,
    pub history_from_seq: Seq,
}

/// What lies above `since`, all read in one snapshot.
#[derive(Clone, Debug, PartialEq)]
pub enum LogPage {
    /// Not a member; None if he never was one, or there is no such conversation.
    Gone {
        left_seq: Option<Seq>,
    },
    Part(LogPart),
}

#[derive(Clone, Debug, PartialEq)]
pub struct LogPart {
    pub last_seq: Seq,
    pub history_from_seq: Seq,
    /// The last change of members, rights or title lies here, or not after this place if that is
    /// enough to tell.
    pub info_head: Seq,
    /// The messages whose latest change lies in (`since`, `next_seq`], in that order.
    pub messages: Vec<Message>,
    pub next_seq: Seq,
    /// The seqs of undeleted messages in (`since`, `next_seq`] whose latest change lies after it.
    pub pending: Vec<Seq>,
}

impl LogPart {
    /// Members, rights or title changed since, or nothing was known.
    pub fn info_changed(&self, since: Seq) -> bool {
        since < 1 || self.info_head > since
    }

    /// Leaves only the first `keep` messages, at least one, and ends at the last of them. `since`
    /// is where the page begins.
    pub fn cut(&mut self, since: Seq, keep: usize) {
        let Some(last) = keep.checked_sub(1).and_then(|at| self.messages.get(at)) else { return };
        if keep == self.messages.len() {
            return;
        }
        let end = last.change_seq;
        let later = self.messages.drain(keep..);
        self.pending.extend(later.filter(|m| m.deleted_at.is_none()).map(|m| m.seq));
        self.pending.retain(|seq| since < *seq && *seq <= end);
        self.pending.sort_unstable();
        self.next_seq = end;
    }
}
