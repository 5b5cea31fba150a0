//! Old history comes from a replica, and is what the primary would show, however far it lags.

use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use tidings::config::{PostgresConfig, StoreConfig};
use tidings::ids::{ConversationId, MessageId, UserId};
use tidings::protocol::command::EditMessage;
use tidings::protocol::model::Message;
use tidings::store::Store;
use tidings::store::types::{Amendment, Anchor, History, HistoryPage};
use tidings::telemetry::Metrics;

use crate::check::check;
use crate::harness::cluster::Settings;
use crate::harness::own_postgres::OwnPostgres;
use crate::store::fixture::{Fixture, message, users};

/// Reads by way of the replica, and counts how that went.
struct Reader {
    f: Fixture,
    exporter: metrics_exporter_prometheus::PrometheusHandle,
    by_replica: Store,
}

impl Reader {
    async fn new(primary: &OwnPostgres, replica: PgConnectOptions) -> Self {
        let config = |replica| {
            StoreConfig::Postgres(Box::new(PostgresConfig {
                options: primary.options(),
                pooler: None,
                replica,
                pool_size: 4,
                acquire_timeout: Duration::from_secs(10),
            }))
        };
        let f = Fixture::connect(config(None), None, None, None).await;
        f.store.migrate().await.unwrap();
        let (metrics, exporter) = Metrics::new();
        let by_replica = Store::connect(&config(Some(replica)), metrics).await.unwrap();
        Self { f, exporter, by_replica }
    }

    /// The page, which must be what the primary shows, and how the replica took part in it.
    async fn page(
        &self,
        user: UserId,
        id: ConversationId,
        page: HistoryPage,
    ) -> (Vec<Message>, String) {
        let before = self.outcomes();
        let shown = self.by_replica.history(user, id, page).await.unwrap();
        assert_eq!(shown, self.f.store.history(user, id, page).await.unwrap(), "{page:?}");
        let after = self.outcomes();
        let moved = after.iter().zip(&before).find(|(after, before)| after.1 > before.1);
        let outcome = moved.map_or("none".into(), |(after, _)| after.0.clone());
        let History::Page { messages, .. } = shown else { return (Vec::new(), outcome) };
        (messages, outcome)
    }

    fn outcomes(&self) -> Vec<(String, u64)> {
        let text = self.exporter.render();
        let lines = text.lines().filter_map(|line| {
            let line = line.strip_prefix("tidings_store_replica_reads_total{outcome=\"")?;
            let (outcome, count) = line.split_once("\"} ")?;
            Some((outcome.to_owned(), count.parse().unwrap()))
        });
        // They come in any order.
        let mut outcomes: Vec<_> = lines.collect();
        outcomes.sort();
        outcomes
    }
}

fn before(id: MessageId) -> HistoryPage {
    HistoryPage { anchor: Anchor::Before(id), thread: None, limit: 3 }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_lagging_replica_shows_is_what_the_primary_shows() {
    let Some(primary) = OwnPostgres::start(None).await else { return };
    let mut standby = primary.standby().await;
    let reader = Reader::new(&primary, standby.options()).await;
    let f = &reader.f;
    let [ann, ben] = users();
    let id = f.group(ann, &[ben]).await;
    let mut sent = Vec::new();
    for at in 0..12 {
        let one = message(id, ann, &format!("{at}"));
        sent.push(one.id);
        f.send_one(one).await;
    }
    let mut reply = message(id, ben, "a reply");
    reply.parent_message_id = Some(sent[1]);
    f.send_one(reply).await;
    standby.catch_up(&primary).await;
    let settings = Settings::from([
        ("DATABASE_URL".into(), primary.url("postgres")),
        ("DATABASE_REPLICA_URL".into(), standby.url("postgres")),
        ("DATA_DIR".into(), std::env::temp_dir().to_str().unwrap().into()),
    ]);
    check(&settings).await.expect("postgres", "replica", "ok", "the same data");
    let newest = HistoryPage { anchor: Anchor::Newest, thread: None, limit: 3 };
    let after = |id, limit| HistoryPage { anchor: Anchor::After(id), thread: None, limit };
    let thread = HistoryPage { anchor: Anchor::Newest, thread: Some(sent[1]), limit: 3 };
    let read = async |page| reader.page(ben, id, page).await.1;

    assert_eq!(read(newest).await, "none", "that is the primary's");
    let (messages, outcome) = reader.page(ben, id, before(sent[4])).await;
    assert_eq!(outcome, "served");
    let shown: Vec<_> = messages.iter().map(|message| message.id).collect();
    assert_eq!(shown, [sent[3], sent[2], sent[1]]);
    assert_eq!(read(after(sent[4], 3)).await, "served");
    assert_eq!(read(after(sent[4], 50)).await, "served", "nothing is newer there");
    assert_eq!(read(thread).await, "served");
    assert_eq!(read(before(MessageId(uuid::Uuid::new_v4()))).await, "absent");
    let [stranger] = users();
    assert_eq!(reader.page(stranger, id, before(sent[4])).await.1, "absent");

    // From here on it hears of nothing.
    standby.sql("select pg_wal_replay_pause()").await;
    f.say(id, ann, "new").await;
    assert_eq!(read(before(sent[4])).await, "served", "nothing of that page is new");
    assert_eq!(read(after(sent[4], 3)).await, "served");
    assert_eq!(read(after(sent[4], 50)).await, "changed", "it would lack the newest");
    let mut reply = message(id, ben, "another");
    reply.parent_message_id = Some(sent[8]);
    f.send_one(reply).await;
    let (messages, outcome) = reader.page(ben, id, before(sent[9])).await;
    assert_eq!((outcome.as_str(), messages[0].reply_count), ("changed", 1));
    let edit = EditMessage { content: "edited".into(), mentions: None, metadata: None };
    f.amend(Amendment { by: ann, message_id: sent[2], edit: Some(edit) }).await;
    let (messages, outcome) = reader.page(ben, id, before(sent[4])).await;
    assert_eq!((outcome.as_str(), messages[1].content.as_deref()), ("changed", Some("edited")));
    assert_eq!(read(before(sent[7])).await, "served", "that is another page");
    f.amend(Amendment { by: ann, message_id: sent[5], edit: None }).await;
    let (messages, outcome) = reader.page(ben, id, before(sent[7])).await;
    assert_eq!((outcome.as_str(), &messages[1].content), ("changed", &None));
    standby.sql("select pg_wal_replay_resume()").await;
    standby.catch_up(&primary).await;
    assert_eq!(read(before(sent[4])).await, "served");

    // Nor is who was removed, or came back to less of it, shown what the replica still has.
    standby.sql("select pg_wal_replay_pause()").await;
    f.remove_member(id, ann, ben).await;
    let gone = reader.page(ben, id, before(sent[4])).await;
    assert_eq!((gone.0.len(), gone.1.as_str()), (0, "absent"));
    f.add(id, ann, ben, false).await;
    let less = reader.page(ben, id, before(sent[4])).await;
    assert_eq!((less.0.len(), less.1.as_str()), (0, "changed"));
    assert_eq!(reader.page(ann, id, before(sent[4])).await.1, "served");
    let many: Vec<_> = (0..1_001).map(|at| message(id, ann, &format!("{at}"))).collect();
    for part in many.chunks(200) {
        f.send(part).await;
    }
    assert_eq!(reader.page(ann, id, before(sent[4])).await.1, "lagging");
    standby.sql("select pg_wal_replay_resume()").await;
    standby.catch_up(&primary).await;

    // Away it costs a wait, once, and nobody an error.
    standby.pause();
    assert_eq!(reader.page(ann, id, before(sent[4])).await.1, "failed");
    assert_eq!(reader.page(ann, id, before(sent[4])).await.1, "failed");
    standby.resume();
    standby.stop();
    assert_eq!(reader.page(ann, id, before(sent[4])).await.1, "failed");
    standby.start_again().await;
    crate::harness::until("the replica is asked again", async || {
        (reader.page(ann, id, before(sent[4])).await.1 == "served").then_some(())
    })
    .await;
    reader.by_replica.close().await;
    reader.f.store.close().await;
}
