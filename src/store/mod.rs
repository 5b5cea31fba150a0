//! All that lasts: conversations, members, messages, receipts, the outbox, the laggards.
//!
//! One method is one use case and one transaction. Nothing outside this module knows SQL, and the
//! set of databases is closed and ours, so an enum and no trait. Called by `write_path` (which
//! alone commits messages, through a [`Writer`] per lane), by `http` and `ws` to read.

pub mod error;
pub mod postgres;
mod recent;
pub mod sqlite;
pub mod types;
pub mod verify;

use std::sync::Arc;
use std::time::{Duration, Instant};

use uuid::Uuid;

pub use error::StoreError;
pub use postgres::{Demand, Way, check as check_postgres};
use postgres::{Postgres, PostgresWriter};
use recent::Recent;
pub use sqlite::check as check_sqlite;
use sqlite::{Sqlite, SqliteWriter};
use types::{
    AmendOutcome, Amendment, Anchor, Change, ChangeOutcome, ConversationCursor, Heads, History,
    HistoryPage, Laggard, LogPage, Members, NewMessage, OutboxLease, OutboxRow, PageWanted,
    Receipt, Received, Run, SendOutcome, Settled, Span, Told,
};

use verify::Verdict;

use crate::config::StoreConfig;
use crate::ids::{ConversationId, MessageId, OutboxId, Seq, UserId};
use crate::protocol::model::{Conversation, Member, Message, MessageReceipt, Version};
use crate::telemetry::Metrics;
use crate::telemetry::metrics::{Operation, Part, RecentOutcome, RecentRead, StoreFailure};

pub type Result<T> = std::result::Result<T, StoreError>;

/// Members shown inside a conversation's answer; larger groups are read by pages.
pub const MEMBERS_SHOWN: usize = 256;
/// Messages told of one stretch: as many as the longest page shows.
pub const TOLD: u32 = 200;

/// Conversations that one sync looks at: twice as many as it can name.
pub const HEADS: usize = 2_000;

/// Whether the tables are those this release was made for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Schema {
    Current,
    /// Migrations that have not run yet: `tidings migrate`.
    Behind {
        missing: usize,
    },
    /// Migrations this release does not know: it is older than the schema. That is fine, because
    /// migrations also suit the previous release.
    Ahead,
}

#[derive(Clone)]
pub struct Store {
    database: Database,
    recent: Option<Recent>,
    metrics: Metrics,
}

#[derive(Clone)]
enum Database {
    Postgres(Postgres),
    Sqlite(Sqlite),
}

/// One lane's own connection, on which its batches commit one after the other.
pub struct Writer {
    connection: Connection,
    metrics: Metrics,
}

enum Connection {
    Postgres(PostgresWriter),
    Sqlite(SqliteWriter),
}

/// Calls the method of the same name on whichever database there is.
macro_rules! forward {
    ($on:expr, $kind:ident, $method:ident($($arg:expr),*)) => {
        match $on {
            $kind::Postgres(inner) => inner.$method($($arg),*).await,
            $kind::Sqlite(inner) => inner.$method($($arg),*).await,
        }
    };
}

/// The same, and measures how long it takes.
macro_rules! measured {
    ($metrics:expr, $operation:ident, $call:expr) => {{
        let started = Instant::now();
        let result = $call;
        $metrics.store.query.of(Operation::$operation).record(started.elapsed());
        let failure = result.as_ref().err().map(StoreError::failure);
        if let Some(failure) = failure {
            $metrics.store.failures.of(failure).increment(1);
        }
        let up = f64::from(u8::from(failure != Some(StoreFailure::Unavailable)));
        $metrics.parts.up.of(Part::Store).set(up);
        result
    }};
}

/// What can be read of rows that belong to whoever can: one of a newer release is left to its nodes,
/// and holds up nothing else.
fn readable<T>(rows: impl Iterator<Item = Result<T>>) -> Vec<T> {
    let rows = rows.filter_map(|row| {
        row.inspect_err(|error| tracing::error!(%error, "a row is left to others")).ok()
    });
    rows.collect()
}

impl Store {
    /// Connects, and proves by one query that the database answers.
    pub async fn connect(config: &StoreConfig, metrics: Metrics) -> Result<Self> {
        let database = match config {
            StoreConfig::Postgres(config) => {
                Database::Postgres(Postgres::connect(config, metrics.clone()).await?)
            }
            StoreConfig::Sqlite(config) => Database::Sqlite(Sqlite::connect(config).await?),
        };
        let limit = match &database {
            Database::Postgres(inner) => inner.pool_size(),
            Database::Sqlite(inner) => inner.pool_size(),
        };
        metrics.store.pool_limit.set(limit as f64);
        Ok(Self { database, recent: None, metrics })
    }

    /// Holds about so many bytes of the newest messages in memory, none if 0: for a node at work.
    pub fn with_recent(self, bytes: u64) -> Self {
        Self { recent: Recent::new(bytes), ..self }
    }

    /// Lays or renews the tables. Several nodes may do so at once.
    pub async fn migrate(&self) -> Result<()> {
        forward!(&self.database, Database, migrate())
    }

    pub async fn schema(&self) -> Result<Schema> {
        forward!(&self.database, Database, schema())
    }

    /// One round trip, and whether a commit waits for a synchronous standby.
    pub async fn ping(&self) -> Result<bool> {
        let standby = measured!(self.metrics, Ping, forward!(&self.database, Database, ping()))?;
        self.metrics.store.synchronous_standby.set(f64::from(u8::from(standby)));
        Ok(standby)
    }

    /// Identifies this copy of the data; renewed after a restore that may have lost commits.
    pub async fn epoch(&self) -> Result<Uuid> {
        forward!(&self.database, Database, epoch())
    }

    /// Takes the lock that says "this store's only node" for the life of the process; false if
    /// another node holds it.
    pub async fn lock_single_node(&self) -> Result<bool> {
        forward!(&self.database, Database, lock_single_node())
    }

    /// Whether the pool, or the replica, leads to the same data as the lanes; true if there is no
    /// such way.
    pub async fn same_data(&self, way: Way) -> Result<bool> {
        match &self.database {
            Database::Postgres(inner) => inner.same_data(way).await,
            Database::Sqlite(_) => Ok(true),
        }
    }

    /// How many connections of the reading pool are in use and idle.
    pub fn pool_use(&self) -> (usize, usize) {
        match &self.database {
            Database::Postgres(inner) => inner.pool_use(),
            Database::Sqlite(inner) => inner.pool_use(),
        }
    }

    /// Bytes of recent messages held in memory, about.
    pub fn recent_bytes(&self) -> u64 {
        self.recent.as_ref().map_or(0, Recent::bytes)
    }

    /// Tells of a message that was just committed here: what is held of its conversation goes on by
    /// it.
    pub fn note_committed(&self, message: &Arc<Message>) {
        if let Some(recent) = &self.recent {
            recent.go_on(message);
        }
    }

    /// How many lanes this store can use at once; SQLite has one writer.
    pub fn max_lanes(&self) -> usize {
        match &self.database {
            Database::Postgres(_) => usize::MAX,
            Database::Sqlite(_) => 1,
        }
    }

    /// How many statements of resumes may run at a time: most connections are for the others.
    pub fn max_syncs(&self) -> usize {
        match &self.database {
            Database::Postgres(inner) => (inner.pool_size() / 4).max(1),
            Database::Sqlite(_) => 1,
        }
    }

    pub fn writer(&self) -> Writer {
        let connection = match &self.database {
            Database::Postgres(inner) => Connection::Postgres(inner.writer()),
            Database::Sqlite(inner) => Connection::Sqlite(inner.writer()),
        };
        Writer { connection, metrics: self.metrics.clone() }
    }

    /// Checks all that must hold of the data, in one snapshot. What is younger than `grace` may still
    /// be under way. Reads everything: for an operator, not for a node at work.
    pub async fn verify(&self, grace: Duration) -> Result<Vec<Verdict>> {
        forward!(&self.database, Database, verify(grace))
    }

    pub async fn close(&self) {
        forward!(&self.database, Database, close())
    }

    // ---- reading, as a member ----

    /// None if there is no such conversation or `user` is not a member.
    pub async fn conversation(
        &self,
        user: UserId,
        id: ConversationId,
    ) -> Result<Option<Conversation>> {
        measured!(
            self.metrics,
            Conversation,
            forward!(&self.database, Database, conversation(user, id))
        )
    }

    /// Newest activity first, at most `limit`, and where the list goes on.
    pub async fn conversations(
        &self,
        user: UserId,
        limit: u32,
        after: Option<ConversationCursor>,
    ) -> Result<(Vec<Conversation>, Option<ConversationCursor>)> {
        measured!(
            self.metrics,
            Conversations,
            forward!(&self.database, Database, conversations(user, limit, after))
        )
    }

    /// Present members in order of user id after `after`, at most `limit`; None if `user` is not
    /// a member.
    pub async fn participants(
        &self,
        user: UserId,
        id: ConversationId,
        limit: u32,
        after: Option<UserId>,
    ) -> Result<Option<Vec<Member>>> {
        measured!(
            self.metrics,
            Participants,
            forward!(&self.database, Database, participants(user, id, limit, after))
        )
    }

    pub async fn history(
        &self,
        user: UserId,
        id: ConversationId,
        page: HistoryPage,
    ) -> Result<History> {
        if let Some(recent) = &self.recent
            && matches!(page, HistoryPage { anchor: Anchor::Newest, thread: None, .. })
        {
            return self.newest(recent, user, id, page.limit).await;
        }
        measured!(
            self.metrics,
            History,
            forward!(&self.database, Database, history(user, id, page))
        )
    }

    /// If something is held of the conversation, a small statement tells the member's standing and
    /// whether that is still all. Without, nothing more is asked than ever.
    async fn newest(
        &self,
        recent: &Recent,
        user: UserId,
        id: ConversationId,
        limit: u32,
    ) -> Result<History> {
        let reads = self.metrics.store.recent.of(RecentRead::Page);
        if recent.holds(id) {
            let standing = measured!(
                self.metrics,
                Standing,
                forward!(&self.database, Database, standing(user, id))
            )?;
            let Some(at) = standing else { return Ok(History::NotFound) };
            if let Some(page) = recent.newest(id, at, limit) {
                reads.of(RecentOutcome::Hit).increment(1);
                return Ok(page);
            }
        }
        reads.of(RecentOutcome::Miss).increment(1);
        let (page, at) = measured!(
            self.metrics,
            History,
            forward!(&self.database, Database, newest(user, id, limit))
        )?;
        if let Some(at) = at {
            recent.keep_newest(id, at, &page);
        }
        Ok(page)
    }

    /// None if there is no such message or `user` cannot see it.
    pub async fn message(&self, user: UserId, id: MessageId) -> Result<Option<Message>> {
        measured!(self.metrics, Message, forward!(&self.database, Database, message(user, id)))
    }

    /// The earlier versions of a message after seq `after`, oldest first, at most `limit`; None as for [`Store::message`].
    pub async fn edits(
        &self,
        user: UserId,
        id: MessageId,
        limit: u32,
        after: Seq,
    ) -> Result<Option<Vec<Version>>> {
        measured!(
            self.metrics,
            Edits,
            forward!(&self.database, Database, edits(user, id, limit, after))
        )
    }

    /// How far the others are with a message, those who were members when it was sent and still
    /// are, in order of user id after `after`; None as for [`Store::message`].
    pub async fn receipts(
        &self,
        user: UserId,
        id: MessageId,
        limit: u32,
        after: Option<UserId>,
    ) -> Result<Option<Vec<MessageReceipt>>> {
        measured!(
            self.metrics,
            Receipts,
            forward!(&self.database, Database, receipts(user, id, limit, after))
        )
    }

    /// Those of `others` with whom `user` is in a conversation now, and `user` himself if named.
    pub async fn acquainted(&self, user: UserId, others: &[UserId]) -> Result<Vec<UserId>> {
        measured!(
            self.metrics,
            Acquainted,
            forward!(&self.database, Database, acquainted(user, others))
        )
    }

    // ---- resume, each for many users at once ----

    /// For each span, where the logs of its conversations stand, those left among them; at most
    /// [`HEADS`] of a span.
    pub async fn sync_heads(&self, spans: &[Span]) -> Result<Vec<Heads>> {
        measured!(self.metrics, SyncHeads, forward!(&self.database, Database, sync_heads(spans)))
    }

    /// What each lacks, in the order given. A page that does not reach the log's head ends at a
    /// place up to which it is complete, and above `since`.
    pub async fn sync_pages(&self, wanted: &[PageWanted]) -> Result<Vec<LogPage>> {
        let Some(recent) = &self.recent else { return self.read_pages(wanted).await };
        let mut pages: Vec<_> = wanted.iter().map(|page| recent.part(page)).collect();
        let missing = (0..wanted.len()).filter(|at| pages[*at].is_none()).collect();
        let (mut readers, mut others) = recent::readers(wanted, missing);
        let mut misses = 0;
        while !readers.is_empty() {
            misses += readers.len();
            let asked: Vec<_> = readers.iter().map(|at| wanted[*at]).collect();
            for (at, page) in readers.into_iter().zip(self.read_pages(&asked).await?) {
                recent.keep_page(&wanted[at], &page);
                pages[at] = Some(page);
            }
            // Those who are not served by what was read for another read for themselves.
            for at in &others {
                pages[*at] = recent.part(&wanted[*at]);
            }
            others.retain(|at| pages[*at].is_none());
            readers = std::mem::take(&mut others);
        }
        let reads = self.metrics.store.recent.of(RecentRead::Sync);
        reads.of(RecentOutcome::Miss).increment(misses as u64);
        reads.of(RecentOutcome::Hit).increment((wanted.len() - misses) as u64);
        Ok(pages.into_iter().flatten().collect())
    }

    async fn read_pages(&self, wanted: &[PageWanted]) -> Result<Vec<LogPage>> {
        measured!(self.metrics, SyncPages, forward!(&self.database, Database, sync_pages(wanted)))
    }

    /// As [`Store::conversation`], in the order given.
    pub async fn sync_conversations(
        &self,
        wanted: &[(UserId, ConversationId)],
    ) -> Result<Vec<Option<Conversation>>> {
        measured!(
            self.metrics,
            SyncConversations,
            forward!(&self.database, Database, sync_conversations(wanted))
        )
    }

    // ---- dispatch ----

    /// Members and recent leavers with the version they belong to, in one snapshot; None if there
    /// is no such conversation.
    pub async fn members(&self, id: ConversationId) -> Result<Option<Members>> {
        measured!(self.metrics, Members, forward!(&self.database, Database, members(id)))
    }

    /// The version of the members; None if there is no such conversation.
    pub async fn members_version(&self, id: ConversationId) -> Result<Option<i64>> {
        measured!(
            self.metrics,
            MembersVersion,
            forward!(&self.database, Database, members_version(id))
        )
    }

    /// The conversation as events show it: without anyone's own state; members if not too many.
    pub async fn conversation_for_event(&self, id: ConversationId) -> Result<Option<Conversation>> {
        measured!(
            self.metrics,
            ConversationForEvent,
            forward!(&self.database, Database, conversation_for_event(id))
        )
    }

    /// Messages by id as they are now, in no particular order; absent ones are left out. Tells
    /// the outcome of a commit that was cut off, too.
    pub async fn messages(&self, ids: &[MessageId]) -> Result<Vec<Message>> {
        measured!(self.metrics, Messages, forward!(&self.database, Database, messages(ids)))
    }

    /// Deletes the outbox rows, and makes a laggard, due after `due_in`, of each member at commit who is
    /// still one and who lacks a message of others among them (`settled_seq` behind it). Also
    /// moves the `settled_seq` of members who are far behind only by their own messages.
    pub async fn settle_outbox(&self, rows: &[OutboxId], due_in: Duration) -> Result<()> {
        measured!(
            self.metrics,
            SettleOutbox,
            forward!(&self.database, Database, settle_outbox(rows, due_in))
        )
    }

    /// Takes over outbox rows whose lease ran out, oldest first.
    pub async fn claim_outbox(&self, limit: u32, lease: Duration) -> Result<Vec<OutboxRow>> {
        measured!(
            self.metrics,
            ClaimOutbox,
            forward!(&self.database, Database, claim_outbox(limit, lease))
        )
    }

    /// Rows in the outbox, and the age of the oldest.
    pub async fn outbox_state(&self) -> Result<(i64, Duration)> {
        measured!(self.metrics, OutboxState, forward!(&self.database, Database, outbox_state()))
    }

    // ---- settle and reconcile ----

    /// Moves the watermarks by proven runs, one statement for all of them, rows locked in
    /// (conversation, user) order; one outcome per run, in the order given. A laggard settled to
    /// the last message from others is removed. Runs of one member do not overlap.
    ///
    /// In groups above `max_members` only the watermarks move: nothing is kept of when, and nothing
    /// is new to be told.
    pub async fn settle(&self, runs: &[Run], max_members: u32) -> Result<Vec<Settled>> {
        measured!(
            self.metrics,
            Settle,
            forward!(&self.database, Database, settle(runs, max_members))
        )
    }

    /// Moves watermarks as devices tell it, one statement for all of them, rows locked in
    /// (conversation, user) order. `max_members` as for [`Store::settle`].
    pub async fn receive(&self, receipts: &[Receipt], max_members: u32) -> Result<Received> {
        measured!(
            self.metrics,
            Receive,
            forward!(&self.database, Database, receive(receipts, max_members))
        )
    }

    /// The messages of others in each of these members' stretches, in order; of a longer stretch
    /// the last [`TOLD`].
    pub async fn told(
        &self,
        stretches: &[(ConversationId, UserId, Seq, Seq)],
    ) -> Result<Vec<Told>> {
        measured!(self.metrics, Told, forward!(&self.database, Database, told(stretches)))
    }

    /// Forgets when receipts older than `age` were given, at most `limit` of them; returns how
    /// many. The watermarks stay.
    pub async fn expire_receipts(&self, age: Duration, limit: u32) -> Result<u64> {
        measured!(
            self.metrics,
            ExpireReceipts,
            forward!(&self.database, Database, expire_receipts(age, limit))
        )
    }

    /// Claims due laggards, oldest first; those who turn out to lack nothing are removed.
    pub async fn claim_laggards(&self, limit: u32, lease: Duration) -> Result<Vec<Laggard>> {
        measured!(
            self.metrics,
            ClaimLaggards,
            forward!(&self.database, Database, claim_laggards(limit, lease))
        )
    }

    /// Undeleted messages of others after `after`, oldest first, at most `limit`.
    pub async fn lacking(
        &self,
        user: UserId,
        id: ConversationId,
        after: Seq,
        limit: u32,
    ) -> Result<Vec<Message>> {
        measured!(
            self.metrics,
            Lacking,
            forward!(&self.database, Database, lacking(user, id, after, limit))
        )
    }

    /// Gives claimed laggards back, due again after `delay`, and counts the try.
    pub async fn postpone_laggards(
        &self,
        laggards: &[(UserId, ConversationId, Duration)],
    ) -> Result<()> {
        measured!(
            self.metrics,
            PostponeLaggards,
            forward!(&self.database, Database, postpone_laggards(laggards))
        )
    }

    /// Makes what these users lack due now, if it is known to be lacking already.
    pub async fn hasten_laggards(&self, users: &[UserId]) -> Result<()> {
        measured!(
            self.metrics,
            HastenLaggards,
            forward!(&self.database, Database, hasten_laggards(users))
        )
    }

    /// Rows among the laggards, and how long the one most overdue has been due.
    pub async fn laggards_state(&self) -> Result<(i64, Duration)> {
        measured!(self.metrics, LaggardsState, forward!(&self.database, Database, laggards_state()))
    }
}

impl Writer {
    /// Messages in a batch, beyond which a larger one costs latency and gains little. `SQLite`
    /// writes whole pages, each of them once for a batch, and has only one writer to keep busy.
    pub fn max_batch(&self) -> usize {
        match self.connection {
            Connection::Postgres(_) => 256,
            Connection::Sqlite(_) => 1_024,
        }
    }

    /// Commits a batch in ONE statement: duplicates first, then membership and rights, then
    /// conversations locked in id order, seqs, messages and the outbox row. One outcome per
    /// message, in the order given. The batch holds no two messages with the same (`sender_id`,
    /// `client_message_id`).
    ///
    /// After an error with `maybe_done` look the ids up by [`Store::messages`] before answering.
    pub async fn send(
        &mut self,
        batch: &[NewMessage],
        outbox: OutboxLease,
    ) -> Result<Vec<SendOutcome>> {
        measured!(
            self.metrics,
            Send,
            forward!(&mut self.connection, Connection, send(batch, outbox))
        )
    }

    /// Makes one change in one transaction, with its outbox row if something changed.
    pub async fn change(
        &mut self,
        id: ConversationId,
        change: &Change,
        max_group_size: usize,
        outbox: OutboxLease,
    ) -> Result<ChangeOutcome> {
        measured!(
            self.metrics,
            Change,
            forward!(&mut self.connection, Connection, change(id, change, max_group_size, outbox))
        )
    }

    /// Edits or deletes one message in one transaction, which keeps the version it was, or forgets
    /// them all, and has an outbox row if something changed. To repeat it does no harm.
    pub async fn amend(
        &mut self,
        amendment: &Amendment,
        outbox: OutboxLease,
    ) -> Result<AmendOutcome> {
        measured!(
            self.metrics,
            Amend,
            forward!(&mut self.connection, Connection, amend(amendment, outbox))
        )
    }
}
