//! What only Postgres can show: locks waited for, lost connections, its own errors.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, ConnectOptions};
use tidings::config::{PostgresConfig, StoreConfig};
use tidings::ids::{ConversationId, UserId};
use tidings::store::postgres::Postgres;
use tidings::store::types::{Change, ChangeOutcome, SendOutcome, Stored};
use tidings::store::{Store, StoreError};
use tidings::telemetry::Metrics;
use tokio::task::JoinHandle;

use super::Fixture;
use super::fixture::{lease, message, run, stored, user, users};

macro_rules! on_postgres {
    ($($case:ident),+ $(,)?) => {
        mod only {
            $(
                #[tokio::test(flavor = "multi_thread")]
                async fn $case() {
                    super::run(super::Fixture::postgres().await, super::$case).await;
                }
            )+
        }
    };
}

on_postgres! {
    one_removed_while_his_message_waits_for_the_lock_sends_nothing,
    one_muted_while_his_message_waits_for_the_lock_sends_nothing,
    a_message_waiting_behind_a_new_title_is_sent,
    every_statement_can_be_prepared,
    plans_made_for_empty_tables_stay_good,
    what_refuses_a_connection_is_told_apart,
    a_lane_goes_on_after_its_connection_was_cut,
    a_laggard_made_while_another_is_settled_stays,
    a_zero_character_is_refused_and_nothing_breaks,
    a_newer_schema_suits_this_release,
}

fn options(f: &Fixture) -> &PgConnectOptions {
    let StoreConfig::Postgres(config) = &f.config else { panic!("this is a case of Postgres") };
    &config.options
}

async fn connection(f: &Fixture) -> PgConnection {
    options(f).connect().await.expect("Postgres answers")
}

async fn execute(connection: &mut PgConnection, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(connection).await.expect("it is good");
}

/// Waits until as many lanes as `count` wait for a lock in this database.
async fn lanes_wait(connection: &mut PgConnection, count: i64) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
    loop {
        let waiting: i64 = sqlx::query_scalar(
            "select count(*) from pg_stat_activity
             where datname = current_database() and application_name = 'tidings lane'
                 and wait_event_type = 'Lock'",
        )
        .fetch_one(&mut *connection)
        .await
        .unwrap();
        if waiting == count {
            return;
        }
        assert!(tokio::time::Instant::now() < deadline, "{waiting} of {count} wait");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Starts a send on a lane of its own.
fn sending(f: &Arc<Fixture>, id: ConversationId, by: UserId) -> JoinHandle<SendOutcome> {
    let f = f.clone();
    #[expect(clippy::disallowed_methods, reason = "the case itself waits for it")]
    tokio::spawn(async move {
        let outcome = f.store.writer().send(&[message(id, by, "x")], lease()).await;
        outcome.expect("the batch commits").remove(0)
    })
}

/// A change stands first in the queue for the conversation's lock, sends of `senders` behind it.
/// Gives what became of the sends.
async fn behind_a_change(
    f: &Arc<Fixture>,
    id: ConversationId,
    change: Change,
    senders: &[UserId],
) -> Vec<SendOutcome> {
    let mut holder = connection(f).await;
    execute(&mut holder, &format!("begin; select from conversations where id = '{id}' for update"))
        .await;
    let mut watcher = connection(f).await;
    let changing = {
        let f = f.clone();
        #[expect(clippy::disallowed_methods, reason = "the case itself waits for it")]
        tokio::spawn(async move { f.change(id, change).await })
    };
    lanes_wait(&mut watcher, 1).await;
    // Judged now, before the change: all of them are members who may send.
    let mut sends = Vec::new();
    for (n, sender) in senders.iter().enumerate() {
        sends.push(sending(f, id, *sender));
        lanes_wait(&mut watcher, n as i64 + 2).await;
    }
    execute(&mut holder, "commit").await;
    assert!(matches!(changing.await.unwrap(), ChangeOutcome::Changed(_)));
    let mut outcomes = Vec::new();
    for send in sends {
        outcomes.push(send.await.unwrap());
    }
    outcomes
}

/// The race: permission is judged in the statement's snapshot, the seq taken under a lock that was
/// waited for. Without a look at `members_version` under the lock the removed member's message was
/// accepted.
async fn one_removed_while_his_message_waits_for_the_lock_sends_nothing(f: Arc<Fixture>) {
    let [ann, ben] = users();
    let id = f.group(ann, &[ben]).await;
    let change = Change::RemoveMember { by: ann, user_id: ben };
    let outcomes = behind_a_change(&f, id, change, &[ben, ann]).await;
    assert_eq!(outcomes, [SendOutcome::Again, SendOutcome::Again]);
    assert_eq!(f.send_one(message(id, ben, "x")).await, SendOutcome::NotFound);
    // The removal took 2, the refused ones nothing.
    assert_eq!(f.say(id, ann, "x").await, 3);
    assert_eq!(f.count("messages").await, 1);
}

async fn one_muted_while_his_message_waits_for_the_lock_sends_nothing(f: Arc<Fixture>) {
    let [ann, ben] = users();
    let id = f.group(ann, &[ben]).await;
    let change = Change::SetMember {
        by: ann,
        user_id: ben,
        role: None,
        can_send_messages: Some(false),
        muted_until: None,
    };
    assert_eq!(behind_a_change(&f, id, change, &[ben]).await, [SendOutcome::Again]);
    assert_eq!(f.send_one(message(id, ben, "x")).await, SendOutcome::Forbidden);
    assert_eq!(f.count("messages").await, 0);
}

async fn a_message_waiting_behind_a_new_title_is_sent(f: Arc<Fixture>) {
    let [ann, ben] = users();
    let id = f.group(ann, &[ben]).await;
    let change = Change::SetTitle { by: ann, title: Some("New".into()) };
    let outcomes = behind_a_change(&f, id, change, &[ben, ann]).await;
    // Who waits for a row's lock gets it in any order.
    let seqs: BTreeSet<_> = outcomes.iter().map(|outcome| stored(outcome).seq).collect();
    assert_eq!(seqs, BTreeSet::from([3, 4]));
}

async fn every_statement_can_be_prepared(f: Arc<Fixture>) {
    let StoreConfig::Postgres(config) = &f.config else { panic!("this is a case of Postgres") };
    let store = Postgres::connect(config, Metrics::new().0).await.unwrap();
    store.check_statements().await.unwrap();
    f.execute("alter table receipts drop column at").await;
    let refused = store.check_statements().await.unwrap_err();
    assert!(refused.to_string().contains("expire_receipts"), "it names the statement: {refused}");
}

/// The trap: a lane keeps the plan it made first, when the tables were empty and all indexes looked
/// alike. It then read a whole conversation to find a parent, until the statistics were renewed.
async fn plans_made_for_empty_tables_stay_good(f: Arc<Fixture>) {
    // These are about all members of a conversation, or all rows of a table.
    const ALL_MEMBERS: [&str; 8] = [
        "change_heir",
        "conversation_event",
        "conversation_mine conversation_shown",
        "conversations_mine conversation_shown",
        "conversations_named conversation_shown",
        "members",
        "participants",
        "receipts",
    ];
    const ALL_ROWS: [&str; 3] = ["epoch", "migrations_applied", "outbox_state"];
    let mut connection = connection(&f).await;
    execute(
        &mut connection,
        "set plan_cache_mode = force_generic_plan; set enable_seqscan = off;
         set enable_hashjoin = off; set enable_mergejoin = off",
    )
    .await;
    for (name, statement) in tidings::store::postgres::sql::ALL.iter().copied() {
        if ALL_ROWS.contains(&name) {
            continue;
        }
        let parameters = (1..).take_while(|n| statement.contains(&format!("${n}"))).count();
        let nulls = vec!["null"; parameters].join(", ");
        // Its index is of the kind that a bitmap is made from, and its caller allows that.
        let bitmaps = if name == "expire_receipts" { "on" } else { "off" };
        execute(&mut connection, &format!("set enable_bitmapscan = {bitmaps}")).await;
        let nulls = if nulls.is_empty() { nulls } else { format!("({nulls})") };
        execute(&mut connection, &format!("prepare it as {statement}")).await;
        let explain = format!("explain (costs off) execute it{nulls}");
        let plan: Vec<String> = sqlx::query_scalar(AssertSqlSafe(explain))
            .persistent(false)
            .fetch_all(&mut connection)
            .await
            .unwrap();
        let plan = plan.join("\n");
        execute(&mut connection, "deallocate it").await;
        assert!(!plan.contains("Seq Scan"), "{name} scans a table:\n{plan}");
        let lines: Vec<_> = plan.lines().map(str::trim).collect();
        for pair in lines.windows(2) {
            let (scan, condition) = (pair[0], pair[1]);
            if !scan.contains("Index") || !scan.contains("Scan") {
                continue;
            }
            let bounded: &[&str] = if scan.contains("participants_change") {
                // From the end of the log, of which one is taken.
                if scan.contains("Backward") { &["conversation_id = "] } else { &["change_seq > "] }
            } else if scan.contains("messages_") {
                &["seq ", "(id = ", "client_message_id = ", "parent_message_id = "]
            } else if scan.contains("participants_")
                && !ALL_MEMBERS.contains(&name)
                && name != "settle_outbox"
            {
                &["user_id = ", "(ROW(user_id, conversation_id) > "]
            } else {
                continue;
            };
            assert!(
                condition.starts_with("Index Cond")
                    && bounded.iter().any(|column| condition.contains(column)),
                "{name} reads a whole conversation:\n{plan}"
            );
        }
    }
}

async fn what_refuses_a_connection_is_told_apart(f: Arc<Fixture>) {
    let connect = async |options: PgConnectOptions| {
        let acquire_timeout = Duration::from_secs(5);
        let (pooler, replica) = (None, None);
        let config = PostgresConfig { options, pooler, replica, pool_size: 1, acquire_timeout };
        match Store::connect(&StoreConfig::Postgres(Box::new(config)), Metrics::new().0).await {
            Ok(_) => panic!("it must not connect"),
            Err(error) => error,
        }
    };
    let good = options(&f).clone();
    let error = connect(good.clone().password("wrong")).await;
    assert!(matches!(error, StoreError::Login(_)), "{error}");
    assert!(error.to_string().contains("password"), "{error}");
    let error = connect(good.clone().database("no_such_database")).await;
    assert!(matches!(error, StoreError::Login(_)), "{error}");
    assert!(error.to_string().contains("no_such_database"), "{error}");
    // A port that was free a moment ago: nobody listens there.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let error = connect(good.port(free)).await;
    assert!(matches!(error, StoreError::Unavailable { maybe_done: false, .. }), "{error}");
    assert!(error.is_transient());
}

async fn a_lane_goes_on_after_its_connection_was_cut(f: Arc<Fixture>) {
    let ann = user();
    let id = f.group(ann, &[]).await;
    let mut writer = f.store.writer();
    let mut say = async || writer.send(&[message(id, ann, "x")], lease()).await;
    assert_eq!(stored(&say().await.unwrap()[0]).seq, 2);
    let mut other = connection(&f).await;
    execute(
        &mut other,
        "select pg_terminate_backend(pid, 5000) from pg_stat_activity
         where datname = current_database() and pid <> pg_backend_pid()",
    )
    .await;
    // What the server did with it is open, and the caller is told so.
    let error = say().await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable { maybe_done: true, .. }), "{error:?}");
    assert!(matches!(say().await.unwrap()[0], SendOutcome::Stored(Stored { seq: 3, .. })));
    // The pool's connections were cut, too: they fail once each at most.
    let mut failed = 0;
    while f.store.ping().await.is_err() {
        failed += 1;
        assert!(failed <= 4);
    }
}

/// The race: a settle whose snapshot does not hold the newest message yet must not remove the
/// laggard that a settled outbox row has made because of it meanwhile.
async fn a_laggard_made_while_another_is_settled_stays(f: Arc<Fixture>) {
    let [ann, ben] = users();
    let id = f.group(ann, &[ben]).await;
    let (first, first_seq) = f.say_in_outbox(id, ann, "x").await;
    f.store.settle_outbox(&[first], Duration::ZERO).await.unwrap();
    assert_eq!(f.laggards().await, 1);

    // The settle has its snapshot and waits for ben's row.
    let mut holder = connection(&f).await;
    execute(
        &mut holder,
        &format!("begin; select from participants where user_id = '{ben}' for update"),
    )
    .await;
    let settling = {
        let f = f.clone();
        #[expect(clippy::disallowed_methods, reason = "the case itself waits for it")]
        tokio::spawn(async move {
            f.settle_one(super::fixture::by_device(id, ben, first_seq, first_seq)).await
        })
    };
    let mut watcher = connection(&f).await;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
    loop {
        let waits: bool = sqlx::query_scalar(
            "select exists (select from pg_stat_activity
             where datname = current_database() and wait_event_type = 'Lock')",
        )
        .fetch_one(&mut watcher)
        .await
        .unwrap();
        if waits {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "the settle never waits");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let (second, _) = f.say_in_outbox(id, ann, "y").await;
    f.store.settle_outbox(&[second], Duration::ZERO).await.unwrap();
    execute(&mut holder, "commit").await;
    settling.await.unwrap();
    assert_eq!(f.laggards().await, 1, "he lacks the second one");
}

async fn a_zero_character_is_refused_and_nothing_breaks(f: Arc<Fixture>) {
    let ann = user();
    let id = f.group(ann, &[]).await;
    let mut writer = f.store.writer();
    let mut bad = message(id, ann, "a\0b");
    let error = writer.send(&[bad.clone()], lease()).await.unwrap_err();
    assert!(matches!(error, StoreError::Refused(_)), "{error:?}");
    bad.content = "fine".into();
    bad.metadata = Some(serde_json::json!({"a": "\0"}));
    let error = writer.send(&[bad.clone()], lease()).await.unwrap_err();
    assert!(matches!(error, StoreError::Refused(_)), "{error:?}");
    assert!(!error.is_transient());
    bad.metadata = None;
    assert_eq!(stored(&writer.send(&[bad], lease()).await.unwrap()[0]).seq, 2);
}

async fn a_newer_schema_suits_this_release(f: Arc<Fixture>) {
    f.execute(
        "insert into _sqlx_migrations (version, description, success, checksum, execution_time)
         values (9999, 'of the future', true, '', 0)",
    )
    .await;
    assert_eq!(f.store.schema().await.unwrap(), tidings::store::Schema::Ahead);
    f.store.migrate().await.unwrap();
}
