//! The node with its lives, its clients, and the passing of time.

mod checks;
mod happens;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Duration;

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, SqliteConnection};
use tempfile::TempDir;
use tidings::app::App;
use tidings::config::Config;
use tidings::ids::{ConversationId, MessageId, Seq, SessionId, UserId};
use tidings::protocol::command::SendMessage;
use tidings::protocol::model::MessageType;
use tidings::protocol::problem::Problem;
use tidings::telemetry::traces::Trace;
use tidings::write_path::Sent;
use tidings::ws::Node;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;
use tokio::task::yield_now;
use uuid::Uuid;

use super::client::Client;
use super::{Step, What};
use crate::fuzz::Random;
use crate::harness::cluster::show_logs;
use crate::model::{Logs, said};

const PEOPLE: usize = 4;
/// Two devices each.
const CLIENTS: usize = 2 * PEOPLE;
/// Whoever writes for them takes his turn at the store's one writing connection, and does nothing.
const NOBODY: [UserId; 1] = [UserId(Uuid::max())];
/// Time passes in steps of this length.
const SLICE: Duration = Duration::from_millis(250);
/// Longer than what the threads of a dead node have begun takes them, in true time.
const THREADS_END: Duration = Duration::from_secs(10);
const SETTINGS: [(&str, &str); 9] = [
    ("SERVER_PORT", "0"),
    ("SETTLE_GRACE", "1s"),
    ("OFFLINE_AFTER", "5s"),
    ("HEARTBEAT_INTERVAL", "4s"),
    ("HEARTBEAT_TIMEOUT", "2s"),
    ("WS_CLIENT_BUFFER_SIZE", "8"),
    ("DRAIN_GRACE", "0s"),
    ("DRAIN_TIME", "200ms"),
    ("MAX_CONNECTIONS", "100"),
];

/// From a member's coming to his going.
pub struct Stay {
    joined: Seq,
    left: Option<Seq>,
    history_from: Seq,
}

impl Stay {
    /// Whether the change at `seq`, of what stands at `of`, is told to him.
    pub fn sees(&self, seq: Seq, of: Seq) -> bool {
        self.joined <= seq && self.left.is_none_or(|left| seq <= left) && self.history_from <= of
    }
}

#[derive(Default)]
pub struct Stays(BTreeMap<(ConversationId, UserId), Vec<Stay>>);

impl Stays {
    pub fn of(&self, id: ConversationId, user: UserId) -> &[Stay] {
        self.0.get(&(id, user)).map_or(&[], Vec::as_slice)
    }

    fn begin(&mut self, id: ConversationId, user: UserId, joined: Seq, history_from: Seq) {
        let stay = Stay { joined, left: None, history_from };
        self.0.entry((id, user)).or_default().push(stay);
    }
}

/// A message as its sender knows it.
#[derive(Clone)]
struct Send {
    by: UserId,
    conversation_id: ConversationId,
    client_message_id: String,
    content: String,
}

/// The node from a start to a stop or a crash.
struct Life {
    runtime: Runtime,
    app: App,
    node: Arc<Node>,
    /// Keeps the clock from going on by itself.
    hold: SyncSender<()>,
    sql: SqliteConnection,
}

pub struct World {
    folder: TempDir,
    life: Option<Life>,
    random: Random,
    people: [UserId; PEOPLE],
    clients: Vec<Client>,
    logs: Logs,
    stays: Stays,
    sent: Vec<(Send, MessageId)>,
    /// What a device has said to hold, and what was read.
    proven: BTreeSet<(UserId, MessageId)>,
    /// What the offline file has, and how many bytes of it were read.
    offline: (BTreeSet<(UserId, MessageId)>, usize),
    /// Up to where each member has read.
    reads: BTreeMap<(ConversationId, UserId), Seq>,
    said: usize,
}

impl World {
    pub fn new(seed: u64) -> Self {
        let people = std::array::from_fn(|n| UserId(Uuid::from_u128(n as u128 + 1)));
        let mut world = Self {
            folder: folder(),
            life: None,
            random: Random(!seed),
            people,
            clients: (0..CLIENTS).map(|n| Client::new(people[n % PEOPLE], n)).collect(),
            logs: Logs::new(),
            stays: Stays::default(),
            sent: Vec::new(),
            proven: BTreeSet::new(),
            offline: (BTreeSet::new(), 0),
            reads: BTreeMap::new(),
            said: 0,
        };
        show_logs();
        world.start();
        world
    }

    fn start(&mut self) {
        let runtime =
            Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        let (hold, held) = sync_channel(0);
        runtime.spawn_blocking(move || held.recv());
        let folder = self.folder.path().to_string_lossy().into_owned();
        let config = Config::from_lookup(|name| match name {
            "DATA_DIR" => Some(folder.clone()),
            _ => SETTINGS.iter().find(|(of, _)| *of == name).map(|(_, value)| (*value).into()),
        });
        let app = runtime.block_on(App::build(config.unwrap())).expect("the node starts");
        let node = app.node().clone();
        let file = SqliteConnectOptions::new().filename(self.folder.path().join("tidings.db"));
        let sql = runtime.block_on(file.connect()).unwrap();
        self.life = Some(Life { runtime, app, node, hold, sql });
    }

    pub fn step(&mut self, step: Step) {
        let mut life = self.life.take().expect("it lives");
        match step {
            Step(What::Crash, a, b) => {
                self.crash(life, 1 + a % 4, 4 * b);
                return;
            }
            Step(What::Stop, ..) => {
                self.stop(life);
                self.start();
                return;
            }
            Step(what, a, b) => {
                let Life { runtime, node, sql, .. } = &mut life;
                runtime.block_on(self.happens(node, sql, what, a, b));
            }
        }
        self.life = Some(life);
    }

    fn text(&mut self) -> String {
        self.said += 1;
        format!("{} {}", self.said, "x".repeat(self.random.below(100)))
    }

    fn new_send(&mut self, conversation_id: ConversationId, by: UserId) -> Send {
        let content = self.text();
        Send { by, conversation_id, client_message_id: format!("c-{}", self.said), content }
    }

    /// The node dies while these are sent; whoever has no answer asks again.
    fn crash(&mut self, life: Life, sends: usize, turns: usize) {
        let Some(id) = self.random.one(&self.logs.keys().copied().collect::<Vec<_>>()) else {
            return self.life = Some(life);
        };
        let writers = self.logs[&id].writers();
        let sends: Vec<_> = (0..sends)
            .map(|_| {
                let by = self.random.one(&writers).expect("the owner may");
                self.new_send(id, by)
            })
            .collect();
        let answered = life.runtime.block_on(async {
            let waiting: Vec<_> = sends.iter().map(|send| submit(&life.node, send, None)).collect();
            for _ in 0..turns {
                yield_now().await;
            }
            let answers = waiting.into_iter().map(|mut waits| waits.try_recv().ok());
            answers.collect::<Vec<_>>()
        });
        let Life { runtime, app, node, hold, sql } = life;
        drop(hold);
        runtime.shutdown_timeout(THREADS_END);
        drop((app, node, sql));
        self.clients.iter_mut().for_each(|client| client.socket = None);
        self.start();
        let life = self.life.take().expect("it was started");
        let mut all = Vec::new();
        for (send, answer) in sends.into_iter().zip(answered) {
            let again = life.runtime.block_on(submit(&life.node, &send, None)).unwrap();
            let again = again.expect("he may write");
            if let Some(answer) = answer {
                let before = answer.expect("he may write").message().id;
                assert!(matches!(again, Sent::Repeated(_)), "acknowledged, and gone: {again:?}");
                assert_eq!(again.message().id, before);
            }
            all.push((again.message().clone(), send));
        }
        all.sort_by_key(|(message, _)| message.seq);
        let log = self.logs.get_mut(&id).expect("it is one of them");
        for (message, send) in all {
            log.take(message.seq);
            log.messages.insert(message.id, said(&message));
            self.sent.push((send, message.id));
        }
        self.life = Some(life);
    }

    fn stop(&mut self, life: Life) {
        let Life { runtime, app, node, hold, sql } = life;
        runtime.block_on(async {
            let mut run = std::pin::pin!(app.run(std::future::ready(())));
            for turn in 0.. {
                let store = tokio::select! {
                    biased;
                    drained = &mut run => {
                        assert!(drained, "not stopped in time");
                        break;
                    }
                    store = node.store.hasten_laggards(&NOBODY) => store,
                };
                // Files are written by other threads, too. Once the store is closed there is nothing
                // to wait for but its own.
                tokio::task::spawn_blocking(|| ()).await.unwrap();
                if store.is_ok() {
                    // All that waits for time is done soon, the rest waits for threads.
                    let step = Duration::from_millis(if turn < 300 { 10 } else { 1 });
                    tokio::time::advance(step).await;
                }
                for client in &mut self.clients {
                    client.pump(&node, &self.logs, &self.stays, &mut self.proven).await;
                }
                yield_now().await;
            }
        });
        self.clients.iter_mut().for_each(|client| client.socket = None);
        drop(hold);
        drop((node, sql));
    }

    /// All clocks go on.
    async fn pass(&mut self, node: &Arc<Node>, sql: &mut SqliteConnection, time: Duration) {
        let millis = SLICE.as_millis();
        let older = format!(
            "begin immediate;
            update outbox set lease_until = lease_until - {millis}, created_at = created_at - {millis};
            update laggards set due_at = due_at - {millis}, lease_until = lease_until - {millis};
            update messages set created_at = created_at - {millis};
            update participants set left_at = left_at - {millis} where left_at is not null;
            commit"
        );
        for _ in 0..time.as_millis() / millis {
            sqlx::raw_sql(AssertSqlSafe(older.clone())).execute(&mut *sql).await.unwrap();
            tokio::time::advance(SLICE).await;
            self.calm(node).await;
            for client in &mut self.clients {
                client.read(node, &self.logs, &self.stays, &mut self.proven);
            }
            // Half of them close the gaps they see.
            for client in self.clients.iter_mut().step_by(2).filter(|client| client.lacks) {
                if client.socket.as_ref().is_some_and(|socket| !socket.stalled) {
                    client.sync(node, &self.logs, &mut self.random).await;
                }
            }
        }
    }

    /// Until nothing is under way at this point of time.
    async fn calm(&mut self, node: &Arc<Node>) {
        let mut quiet = 0;
        while quiet < 2 {
            for _ in 0..20 {
                yield_now().await;
            }
            node.store.hasten_laggards(&NOBODY).await.unwrap();
            let mut moved = node.store.pool_use().0 > 0;
            for client in &mut self.clients {
                moved |= client.pump(node, &self.logs, &self.stays, &mut self.proven).await;
            }
            quiet = if moved { 0 } else { quiet + 1 };
        }
    }
}

/// In memory if there is such a place: nothing here crashes the machine, and disks are slow.
fn folder() -> TempDir {
    TempDir::new_in("/dev/shm").or_else(|_| TempDir::new()).unwrap()
}

/// The answer comes when it was stored.
fn submit(
    node: &Node,
    send: &Send,
    origin: Option<SessionId>,
) -> oneshot::Receiver<Result<Sent, Problem>> {
    let (reply, outcome) = oneshot::channel();
    let message = SendMessage {
        conversation_id: send.conversation_id,
        content: Some(send.content.clone()),
        message_type: MessageType::Text,
        client_message_id: Some(send.client_message_id.clone()),
        parent_message_id: None,
        mentions: None,
        metadata: None,
    };
    let answer = Box::new(|result| drop(reply.send(result)));
    node.write_path.send(send.by, origin, message, &Trace::default(), answer);
    outcome
}
