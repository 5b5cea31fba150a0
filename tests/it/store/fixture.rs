//! A store with a database of its own, and the words in which the cases are written.

use std::future::Future;
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection};
use tempfile::TempDir;
use tidings::clock::Timestamp;
use tidings::config::{PostgresConfig, SqliteConfig, StoreConfig};
use tidings::ids::{ConversationId, MessageId, OutboxId, Seq, UserId};
use tidings::protocol::model::{Conversation, Kind, Message, MessageType};
use tidings::store::types::{
    AmendOutcome, Amendment, Anchor, Change, ChangeOutcome, Changed, History, HistoryPage,
    NewMessage, OutboxLease, Proof, Run, SendOutcome, Settled, Stored,
};
use tidings::store::{Store, StoreError, Writer};
use tidings::telemetry::Metrics;
use tokio::sync::Mutex;
use uuid::Uuid;

use crate::harness::own_postgres::Pooler;
use crate::harness::{services, until};

pub const MAX_GROUP: usize = 1000;
/// An outbox row of the cases can be claimed at once.
const NO_LEASE: Duration = Duration::ZERO;

pub struct Fixture {
    pub store: Store,
    pub config: StoreConfig,
    writer: Mutex<Writer>,
    /// Where the database is removed from; a SQLite one goes with its folder.
    admin: Option<sqlx::postgres::PgConnectOptions>,
    _dir: Option<TempDir>,
    _pooler: Option<Pooler>,
}

/// Runs a case and removes its database, also when the case fails.
pub async fn run<F>(fixture: Option<Fixture>, case: impl FnOnce(Arc<Fixture>) -> F)
where
    F: Future<Output = ()>,
{
    let Some(fixture) = fixture else { return };
    fixture.store.migrate().await.expect("the tables are laid");
    let fixture = Arc::new(fixture);
    let outcome = AssertUnwindSafe(case(fixture.clone())).catch_unwind().await;
    fixture.remove().await;
    if let Err(panic) = outcome {
        resume_unwind(panic);
    }
}

impl Fixture {
    /// A new Postgres database without tables; None in an embedded-only run.
    pub async fn postgres() -> Option<Self> {
        Self::postgres_by(None).await
    }

    /// The same, whose pool goes by way of a pooler.
    pub async fn pooled() -> Option<Self> {
        Self::postgres_by(Some(Pooler::start().await?)).await
    }

    async fn postgres_by(pooler: Option<Pooler>) -> Option<Self> {
        let admin: sqlx::postgres::PgConnectOptions =
            services::postgres()?.parse().expect("TEST_DATABASE_URL is an address");
        let name = format!("t_{}", Uuid::new_v4().simple());
        let mut connection = admin.connect().await.expect("Postgres answers");
        sqlx::query(AssertSqlSafe(format!("create database {name}")))
            .execute(&mut connection)
            .await
            .expect("a database can be made");
        connection.close().await.expect("the connection closes");
        let config = StoreConfig::Postgres(Box::new(PostgresConfig {
            options: admin.clone().database(&name),
            pooler: pooler.as_ref().map(|pooler| pooler.options(&name)),
            replica: None,
            pool_size: 4,
            acquire_timeout: Duration::from_secs(10),
        }));
        Some(Self::connect(config, Some(admin), None, pooler).await)
    }

    /// A new SQLite file without tables.
    pub async fn sqlite() -> Self {
        let dir = TempDir::new().expect("there is room for a folder");
        let path = dir.path().join("tidings.db");
        Self::connect(StoreConfig::Sqlite(SqliteConfig { path }), None, Some(dir), None).await
    }

    pub async fn connect(
        config: StoreConfig,
        admin: Option<sqlx::postgres::PgConnectOptions>,
        dir: Option<TempDir>,
        pooler: Option<Pooler>,
    ) -> Self {
        let store =
            Store::connect(&config, Metrics::new().0).await.expect("the database can be opened");
        let writer = Mutex::new(store.writer());
        Self { store, config, writer, admin, _dir: dir, _pooler: pooler }
    }

    /// A second database of the same kind, without tables: to be removed by the case.
    pub async fn another(&self) -> Self {
        match self.config {
            StoreConfig::Postgres(_) => Self::postgres().await.expect("this one is there, too"),
            StoreConfig::Sqlite(_) => Self::sqlite().await,
        }
    }

    pub async fn remove(&self) {
        self.store.close().await;
        let (Some(admin), StoreConfig::Postgres(config)) = (&self.admin, &self.config) else {
            return;
        };
        let name = config.options.get_database().expect("the fixture named it");
        let mut connection = admin.connect().await.expect("Postgres answers");
        let drop = format!("drop database {name} with (force)");
        // The server may be vacuuming it, which is not for us to end.
        until("the database is dropped", async || {
            sqlx::query(AssertSqlSafe(drop.clone())).execute(&mut connection).await.ok()
        })
        .await;
    }

    /// As many writers as the store can use, at most `wanted`.
    pub fn writers(&self, wanted: usize) -> Vec<Writer> {
        (0..wanted.min(self.store.max_lanes())).map(|_| self.store.writer()).collect()
    }

    // ---- what the store's interface has no word for ----

    /// A statement that means the same to every database.
    pub async fn execute(&self, sql: &str) {
        let sql = AssertSqlSafe(sql.to_owned());
        match &self.config {
            StoreConfig::Postgres(config) => {
                let mut connection = config.options.connect().await.expect("Postgres answers");
                sqlx::query(sql).execute(&mut connection).await.expect("the statement is good");
            }
            StoreConfig::Sqlite(config) => {
                let mut connection = sqlite(config).await;
                sqlx::query(sql).execute(&mut connection).await.expect("the statement is good");
            }
        }
    }

    pub async fn count(&self, table: &str) -> i64 {
        let sql = AssertSqlSafe(format!("select count(*) from {table}"));
        match &self.config {
            StoreConfig::Postgres(config) => {
                let mut connection = config.options.connect().await.expect("Postgres answers");
                sqlx::query_scalar(sql).fetch_one(&mut connection).await.expect("there is a table")
            }
            StoreConfig::Sqlite(config) => {
                let mut connection = sqlite(config).await;
                sqlx::query_scalar(sql).fetch_one(&mut connection).await.expect("there is a table")
            }
        }
    }

    /// Marks the messages with this seq as deleted, in every conversation.
    pub async fn delete_messages(&self, seq: Seq) {
        self.execute(&format!("update messages set deleted_at = created_at where seq = {seq}"))
            .await;
    }

    // ---- sending and changing ----

    pub async fn send(&self, batch: &[NewMessage]) -> Vec<SendOutcome> {
        send(&mut *self.writer.lock().await, batch).await
    }

    pub async fn send_one(&self, message: NewMessage) -> SendOutcome {
        self.send(&[message]).await.remove(0)
    }

    /// Stores a text and gives its seq.
    pub async fn say(&self, id: ConversationId, sender: UserId, text: &str) -> Seq {
        stored(&self.send_one(message(id, sender, text)).await).seq
    }

    /// As [`Fixture::say`], and gives the message's id too.
    pub async fn say_with_id(
        &self,
        id: ConversationId,
        sender: UserId,
        text: &str,
    ) -> (MessageId, Seq) {
        let message = message(id, sender, text);
        (message.id, stored(&self.send_one(message).await).seq)
    }

    /// As [`Fixture::say`], and the outbox row stays for the case to settle.
    pub async fn say_in_outbox(
        &self,
        id: ConversationId,
        sender: UserId,
        text: &str,
    ) -> (OutboxId, Seq) {
        let outbox = OutboxLease { id: OutboxId::random(), lease: NO_LEASE };
        let outcome = self.writer.lock().await.send(&[message(id, sender, text)], outbox).await;
        (outbox.id, stored(&outcome.expect("the batch commits")[0]).seq)
    }

    pub async fn change(&self, id: ConversationId, change: Change) -> ChangeOutcome {
        self.change_up_to(id, change, MAX_GROUP).await
    }

    pub async fn change_up_to(
        &self,
        id: ConversationId,
        change: Change,
        max_group_size: usize,
    ) -> ChangeOutcome {
        change_by(&mut *self.writer.lock().await, id, &change, max_group_size).await
    }

    pub async fn amend(&self, amendment: Amendment) -> AmendOutcome {
        amend_by(&mut *self.writer.lock().await, &amendment, lease()).await
    }

    pub async fn group(&self, owner: UserId, members: &[UserId]) -> ConversationId {
        let id = ConversationId::random();
        changed(&self.change(id, create_group(owner, members)).await);
        id
    }

    pub async fn direct(&self, by: UserId, other: UserId) -> ConversationId {
        let id = ConversationId::random();
        changed(&self.change(id, create_direct(by, other)).await);
        id
    }

    pub async fn add(
        &self,
        id: ConversationId,
        by: UserId,
        user: UserId,
        with_history: bool,
    ) -> Seq {
        let change = Change::AddMembers { by, user_ids: vec![user], with_history };
        changed(&self.change(id, change).await).seq
    }

    pub async fn remove_member(&self, id: ConversationId, by: UserId, user: UserId) -> Seq {
        changed(&self.change(id, Change::RemoveMember { by, user_id: user }).await).seq
    }

    // ---- reading ----

    pub async fn see(&self, user: UserId, id: ConversationId) -> Conversation {
        self.store.conversation(user, id).await.unwrap().expect("a member sees the conversation")
    }

    /// The newest page, newest first.
    pub async fn history(&self, user: UserId, id: ConversationId) -> Vec<Message> {
        let page = HistoryPage { anchor: Anchor::Newest, thread: None, limit: 200 };
        match self.store.history(user, id, page).await.unwrap() {
            History::Page { messages, .. } => messages,
            other => panic!("a member reads the history, not {other:?}"),
        }
    }

    // ---- settling ----

    pub async fn settle(&self, runs: &[Run]) -> Vec<Settled> {
        self.store.settle(runs, RECEIPTS_MAX_MEMBERS).await.unwrap()
    }

    pub async fn settle_one(&self, run: Run) -> Settled {
        self.settle(&[run]).await[0]
    }

    pub async fn laggards(&self) -> i64 {
        self.store.laggards_state().await.unwrap().0
    }
}

async fn sqlite(config: &SqliteConfig) -> sqlx::sqlite::SqliteConnection {
    sqlx::sqlite::SqliteConnectOptions::new()
        .filename(&config.path)
        .busy_timeout(Duration::from_secs(10))
        .connect()
        .await
        .expect("the file opens")
}

pub fn user() -> UserId {
    UserId(Uuid::new_v4())
}

/// `N` users in order of their ids.
pub fn users<const N: usize>() -> [UserId; N] {
    let mut users = [(); N].map(|()| user());
    users.sort();
    users
}

pub fn lease() -> OutboxLease {
    OutboxLease { id: OutboxId::random(), lease: NO_LEASE }
}

pub fn message(conversation_id: ConversationId, sender_id: UserId, text: &str) -> NewMessage {
    NewMessage {
        id: MessageId::new(conversation_id, Timestamp::now()),
        conversation_id,
        sender_id,
        client_message_id: None,
        body_hash: [7; 32],
        message_type: MessageType::Text,
        content: text.into(),
        parent_message_id: None,
        mentions: None,
        metadata: None,
    }
}

pub fn create_group(created_by: UserId, members: &[UserId]) -> Change {
    Change::Create { kind: Kind::Group, title: None, created_by, members: members.to_vec() }
}

pub fn create_direct(created_by: UserId, other: UserId) -> Change {
    Change::Create { kind: Kind::Direct, title: None, created_by, members: vec![other] }
}

/// How often a lane of the cases tries again when other transactions are in its way.
const TRIES: usize = 50;

/// Sends as a lane does: conflicts with other transactions are retried whole.
pub async fn send(writer: &mut Writer, batch: &[NewMessage]) -> Vec<SendOutcome> {
    for _ in 0..TRIES {
        match writer.send(batch, lease()).await {
            Err(StoreError::Conflict(_)) => {}
            outcome => return outcome.expect("the batch commits"),
        }
    }
    panic!("other transactions were in the way {TRIES} times");
}

pub async fn change_by(
    writer: &mut Writer,
    id: ConversationId,
    change: &Change,
    max_group_size: usize,
) -> ChangeOutcome {
    for _ in 0..TRIES {
        match writer.change(id, change, max_group_size, lease()).await {
            Err(StoreError::Conflict(_)) => {}
            outcome => return outcome.expect("the change commits"),
        }
    }
    panic!("other transactions were in the way {TRIES} times");
}

pub async fn amend_by(
    writer: &mut Writer,
    amendment: &Amendment,
    outbox: OutboxLease,
) -> AmendOutcome {
    for _ in 0..TRIES {
        match writer.amend(amendment, outbox).await {
            Err(StoreError::Conflict(_)) => {}
            outcome => return outcome.expect("the change commits"),
        }
    }
    panic!("other transactions were in the way {TRIES} times");
}

pub fn stored(outcome: &SendOutcome) -> Stored {
    match outcome {
        SendOutcome::Stored(stored) => *stored,
        other => panic!("the message is stored, not {other:?}"),
    }
}

pub fn changed(outcome: &ChangeOutcome) -> Changed {
    match outcome {
        ChangeOutcome::Changed(changed) => *changed,
        other => panic!("the change is made, not {other:?}"),
    }
}

pub fn amended(outcome: AmendOutcome) -> Message {
    match outcome {
        AmendOutcome::Amended { message, .. } => *message,
        other => panic!("the message is changed, not {other:?}"),
    }
}

/// The larger groups have no receipts.
pub const RECEIPTS_MAX_MEMBERS: u32 = 256;

pub fn by_device(id: ConversationId, user: UserId, lo: Seq, hi: Seq) -> Run {
    Run { conversation_id: id, user_id: user, lo, hi, proof: Proof::Device }
}

pub fn by_offline(id: ConversationId, user: UserId, lo: Seq, hi: Seq) -> Run {
    Run { proof: Proof::Offline, ..by_device(id, user, lo, hi) }
}
