//! What only SQLite can show; what every store must do stands in the integration tests.

use std::os::unix::fs::PermissionsExt;

use sqlx::Row;
use tempfile::TempDir;

use super::*;
use crate::clock::Timestamp;
use crate::ids::{ConversationId, MessageId, OutboxId, UserId};
use crate::protocol::model::{Kind, MessageType};
use crate::store::types::{Change, NewMessage, OutboxLease, SendOutcome};

struct Fixture {
    store: Sqlite,
    ann: UserId,
    id: ConversationId,
    dir: TempDir,
}

fn config(dir: &TempDir) -> SqliteConfig {
    SqliteConfig { path: dir.path().join("data/tidings.db") }
}

fn lease() -> OutboxLease {
    OutboxLease { id: OutboxId::random(), lease: Duration::ZERO }
}

/// A store with one group of one member.
async fn fixture() -> Fixture {
    let dir = TempDir::new().unwrap();
    let store = Sqlite::connect(&config(&dir)).await.unwrap();
    store.migrate().await.unwrap();
    let (ann, id) = (UserId(Uuid::new_v4()), ConversationId::random());
    let create =
        Change::Create { kind: Kind::Group, title: None, created_by: ann, members: vec![] };
    store.writer().change(id, &create, 10, lease()).await.unwrap();
    Fixture { store, ann, id, dir }
}

impl Fixture {
    fn message(&self, content: String) -> NewMessage {
        NewMessage {
            id: MessageId::new(self.id, Timestamp::now()),
            conversation_id: self.id,
            sender_id: self.ann,
            client_message_id: None,
            body_hash: [7; 32],
            message_type: MessageType::Text,
            content,
            parent_message_id: None,
            mentions: None,
            metadata: None,
        }
    }

    async fn send(&self, message: NewMessage) -> Result<SendOutcome> {
        Ok(self.store.writer().send(&[message], lease()).await?.remove(0))
    }
}

/// Prepares each statement, and refuses a plan that walks through a table that grows.
#[tokio::test]
async fn every_statement_finds_its_rows_by_an_index() {
    let f = fixture().await;
    // Parameters and what was made of them; the tables that are short, or counted as a whole.
    let may_be_scanned =
        ["CONSTANT", "(subquery", "page", "wanted", "found", "store_meta", "outbox", "laggards"];
    for (name, statement) in sql::ALL {
        let plan = plan(&f, statement).await;
        for step in &plan {
            let Some(scanned) = step.strip_prefix("SCAN ") else {
                continue;
            };
            let short = may_be_scanned.iter().any(|table| scanned.starts_with(table));
            assert!(short || scanned.contains("VIRTUAL TABLE"), "{name}: {step}");
        }
        // The page of each message found, among those of many users.
        if *name == "sync_pages" {
            let is_search = |step: &String| step.starts_with("SEARCH page USING AUTOMATIC");
            assert!(plan.iter().any(is_search), "{plan:?}");
        }
    }
}

async fn plan(f: &Fixture, statement: &str) -> Vec<String> {
    let explain = sqlx::AssertSqlSafe(format!("explain query plan {statement}"));
    let steps = sqlx::query(explain).fetch_all(&f.store.writer).await.unwrap();
    steps.iter().map(|step| step.get("detail")).collect()
}

#[tokio::test]
async fn any_text_comes_back_as_it_was() {
    let f = fixture().await;
    for text in ["", "a\0b", "\u{1f}\"\\/'\n\r\t\u{7f}", "null", "🎈é\u{2028}\u{fffe}", "\\u0000"]
    {
        let mut message = f.message(text.to_owned());
        let metadata = serde_json::json!({ "k\"": [text, 1.5, null, u64::MAX, {"": -1e300}] });
        message.metadata = Some(metadata.clone());
        message.client_message_id = (!text.is_empty()).then(|| text.to_owned());
        f.send(message.clone()).await.unwrap();
        let stored = f.store.messages(&[message.id]).await.unwrap().remove(0);
        assert_eq!(stored.content.as_deref(), Some(text));
        assert_eq!(stored.metadata, Some(metadata), "{text:?}");
        assert_eq!(stored.client_message_id, message.client_message_id);
    }
}

#[tokio::test]
async fn only_its_user_can_read_the_files() {
    let f = fixture().await;
    let folder = f.dir.path().join("data");
    assert_eq!(folder.metadata().unwrap().permissions().mode() & 0o777, 0o700);
    assert!(f.store.lock_single_node().await.unwrap());
    let mut names = Vec::new();
    for file in std::fs::read_dir(folder).unwrap() {
        let file = file.unwrap();
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{file:?}");
        names.push(file.file_name().into_string().unwrap());
    }
    names.sort();
    assert_eq!(names, ["tidings.db", "tidings.db-shm", "tidings.db-wal", "tidings.db.lock"]);
}

#[tokio::test]
async fn commits_are_synced() {
    let f = fixture().await;
    let mode: String =
        sqlx::query_scalar("pragma journal_mode").fetch_one(&f.store.writer).await.unwrap();
    let synchronous: i64 =
        sqlx::query_scalar("pragma synchronous").fetch_one(&f.store.writer).await.unwrap();
    assert_eq!((mode.as_str(), synchronous), ("wal", 2));
    // Readers can only read.
    let refused = sqlx::query("delete from outbox").execute(&f.store.readers).await.unwrap_err();
    assert!(matches!(error::of(refused), StoreError::Refused(_)));
}

async fn forbid_growth(f: &Fixture) {
    let pages: i64 =
        sqlx::query_scalar("pragma page_count").fetch_one(&f.store.writer).await.unwrap();
    sqlx::query(sqlx::AssertSqlSafe(format!("pragma max_page_count = {}", pages + 2)))
        .execute(&f.store.writer)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_full_disk_is_told_and_nothing_is_done() {
    let f = fixture().await;
    forbid_growth(&f).await;
    let error = f.send(f.message("x".repeat(100_000))).await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable { maybe_done: false, .. }), "{error}");
    assert!(error.to_string().contains("the disk of the database is full"), "{error}");
    // What fits is still stored, in the place that the other one did not take.
    let outcome = f.send(f.message("x".into())).await.unwrap();
    assert!(matches!(outcome, SendOutcome::Stored(stored) if stored.seq == 2), "{outcome:?}");
}

/// When the disk fails SQLite mostly rolls back by itself; the connection, which still believed
/// itself inside a transaction, then refused every later write until the restart.
#[tokio::test]
async fn a_rollback_by_sqlite_itself_does_not_end_all_writing() {
    let f = fixture().await;
    forbid_growth(&f).await;
    let mut tx = f.store.begin().await.unwrap();
    // One row by itself: SQLite keeps no statement journal for it, so the transaction goes.
    sqlx::query(
        "insert into message_edits (message_id, seq, content, edited_at) values (x'', 1, ?1, 0)",
    )
    .bind("x".repeat(100_000))
    .execute(&mut *tx)
    .await
    .unwrap_err();
    drop(tx);
    let outcome = f.send(f.message("x".repeat(100_000))).await.unwrap();
    assert!(matches!(outcome, SendOutcome::Stored(_)), "{outcome:?}");
}

#[tokio::test]
async fn another_file_is_not_taken_for_a_database() {
    let dir = TempDir::new().unwrap();
    let config = config(&dir);
    std::fs::create_dir(config.path.parent().unwrap()).unwrap();
    std::fs::write(&config.path, "dear diary, ".repeat(100)).unwrap();
    let error = Sqlite::connect(&config).await.err().expect("it is refused");
    assert!(error.to_string().contains("is not a database"), "{error}");
    assert!(!error.is_transient());
    std::fs::remove_file(&config.path).unwrap();
    std::fs::create_dir(&config.path).unwrap();
    let error = Sqlite::connect(&config).await.err().expect("it is refused");
    assert!(error.to_string().contains("cannot be opened"), "{error}");
}

#[tokio::test]
async fn a_damaged_file_is_named_so() {
    let f = fixture().await;
    f.store.close().await;
    let path = config(&f.dir).path;
    let mut bytes = std::fs::read(&path).unwrap();
    // The first page, which says what the file is, stays.
    bytes[4096..].fill(0xa5);
    std::fs::write(&path, bytes).unwrap();
    let error = Sqlite::connect(&config(&f.dir)).await.err().expect("it is refused");
    assert!(matches!(error, StoreError::Refused(_)), "{error:?}");
    assert!(error.to_string().contains("the database file is damaged"), "{error}");
}

#[tokio::test]
async fn a_lock_held_by_others_is_a_conflict_and_a_lost_commit_is_unknown() {
    let f = fixture().await;
    let mut other = SqliteConnectOptions::new()
        .filename(config(&f.dir).path)
        .busy_timeout(Duration::ZERO)
        .connect()
        .await
        .unwrap();
    let held = f.store.begin().await.unwrap();
    let busy = sqlx::query("begin immediate").execute(&mut other).await.unwrap_err();
    assert!(matches!(error::of(busy), StoreError::Conflict(_)));
    drop(held);

    let lost = error::of_commit(sqlx::Error::WorkerCrashed);
    assert!(matches!(lost, StoreError::Unavailable { maybe_done: true, .. }));
    let before = error::of(sqlx::Error::WorkerCrashed);
    assert!(matches!(before, StoreError::Unavailable { maybe_done: false, .. }));
}

/// A caller that goes away in the middle leaves nothing behind, and no lock.
#[tokio::test]
async fn a_dropped_write_is_rolled_back() {
    let f = fixture().await;
    let mut tx = f.store.begin().await.unwrap();
    sqlx::query("delete from participants").execute(&mut *tx).await.unwrap();
    drop(tx);
    assert!(matches!(f.send(f.message("x".into())).await.unwrap(), SendOutcome::Stored(_)));
}

#[tokio::test]
async fn a_newer_schema_is_no_obstacle() {
    let f = fixture().await;
    assert_eq!(f.store.schema().await.unwrap(), Schema::Current);
    sqlx::query(
        "insert into _sqlx_migrations (version, description, success, checksum, execution_time)
         values (9999, 'of a later release', true, x'00', 0)",
    )
    .execute(&f.store.writer)
    .await
    .unwrap();
    assert_eq!(f.store.schema().await.unwrap(), Schema::Ahead);
    f.store.migrate().await.unwrap();
    assert_eq!(f.store.schema().await.unwrap(), Schema::Ahead);
}
