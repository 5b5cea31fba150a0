//! THE list of metrics: each one's name, kind, unit, labels, help and buckets stand here once, and
//! the handles that the rest of the crate uses are made from it.
//!
//! There is no global recorder: each [`Metrics`] has its own, so that several nodes live in one
//! test process without mixing their figures. Labels are closed enums, never an id, so the number
//! of series is known; all of them stand in the output from the start, as zero.

use std::marker::PhantomData;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, Key, Level, Metadata, Recorder, Unit};
use metrics_exporter_prometheus::{
    Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder,
};

use crate::build_info::{COMMIT, VERSION};
use crate::clock::Timestamp;
use crate::protocol::code::{CloseCode, Code};

/// Seconds of what happens within a node, a database or a broker: 0.5 ms is the fastest commit, and
/// 10 ms and 100 ms, the promised bounds of a query and of a delivery, are edges, so that the share
/// within them is exact.
const LATENCY: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// Seconds of a handshake, which waits for networks and is cut off at 10 s.
const HANDSHAKE: &[f64] = &[0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// Seconds until a broker confirms, which is cut off at 30 s.
const CONFIRMATION: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
/// Seconds by which a task that was due woke late: below 1 ms is the timer's own grain.
const LAG: &[f64] = &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5];
/// Messages of a batch: powers of two, because what a message costs falls with the logarithm.
const BATCH: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0];

/// The values of a label: a closed set.
pub trait Label: Copy + 'static {
    const NAME: &'static str;
    const ALL: &'static [Self];
    fn word(self) -> &'static str;
    fn index(self) -> usize;
}

macro_rules! labels {
    ($(
        $(#[$doc:meta])*
        $type:ident $name:literal { $($(#[$note:meta])* $value:ident $word:literal),+ $(,)? }
    )+) => { $(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $type { $($(#[$note])* $value),+ }

        impl Label for $type {
            const NAME: &'static str = $name;
            const ALL: &'static [Self] = &[$(Self::$value),+];

            fn word(self) -> &'static str {
                match self { $(Self::$value => $word),+ }
            }

            fn index(self) -> usize {
                self as usize
            }
        }
    )+ };
}

labels! {
    Direction "direction" { In "in", Out "out" }
    /// The way of a message through the service.
    Stage "stage" {
        ReceivedCommitted "received_committed",
        CommittedPublished "committed_published",
        QueuedWritten "queued_written",
        WrittenProven "written_proven",
    }
    OfflineOutcome "outcome" { Produced "produced", Failed "failed" }
    LaggardOutcome "outcome" {
        Republished "republished",
        Resync "resync",
        Offline "offline",
        Postponed "postponed",
    }
    /// What a page of a resume held: a conversation reset, else one changed, else none.
    ResumeResult "result" {
        Reset "reset",
        Changed "changed",
        UpToDate "up_to_date",
        /// Too many waited, or it waited too long.
        Busy "busy",
        Failed "failed",
    }
    /// The store's methods, one use case each.
    Operation "operation" {
        Send "send",
        Change "change",
        Amend "amend",
        Ping "ping",
        Conversation "conversation",
        Conversations "conversations",
        Participants "participants",
        History "history",
        Message "message",
        Edits "edits",
        Acquainted "acquainted",
        Members "members",
        MembersVersion "members_version",
        ConversationForEvent "conversation_for_event",
        Messages "messages",
        SettleOutbox "settle_outbox",
        ClaimOutbox "claim_outbox",
        OutboxState "outbox_state",
        Settle "settle",
        Receive "receive",
        Told "told",
        Receipts "receipts",
        ExpireReceipts "expire_receipts",
        ClaimLaggards "claim_laggards",
        Lacking "lacking",
        PostponeLaggards "postpone_laggards",
        HastenLaggards "hasten_laggards",
        LaggardsState "laggards_state",
        SyncHeads "sync_heads",
        SyncPages "sync_pages",
        SyncConversations "sync_conversations",
        Standing "standing",
    }
    /// What is looked for among the recent messages held in memory.
    RecentRead "kind" { Page "page", Sync "sync" }
    RecentOutcome "outcome" { Hit "hit", Miss "miss" }
    /// The names of the store's errors.
    StoreFailure "reason" {
        Unavailable "unavailable",
        Conflict "conflict",
        Corrupt "corrupt",
        Login "login",
        Refused "refused",
    }
    /// What a client may do so often and no more.
    Limited "limit" {
        Sends "sends",
        Receipts "receipts",
        Typing "typing",
        Syncs "syncs",
        Watches "watches",
        Tokens "tokens",
        Handshakes "handshakes",
        Connections "connections",
        Identities "identities",
    }
    /// What became of a page that was read from the replica.
    ReplicaRead "outcome" {
        /// It was shown: the primary confirmed that nothing of it has changed.
        Served "served",
        /// The replica does not hold a change of it yet.
        Changed "changed",
        /// The replica is too far behind to ask.
        Lagging "lagging",
        /// It holds nothing of the kind: the member or the message is not there, or not yet.
        Absent "absent",
        /// It did not answer, or did not a moment ago.
        Failed "failed",
    }
    PoolState "state" { InUse "in_use", Idle "idle" }
    /// What a node leans on.
    Part "part" { Store "store", Bus "bus", Offline "offline" }
    /// The labels of the offline sink's errors.
    KafkaFailure "reason" {
        Unavailable "unavailable",
        Refused "refused",
        QueueFull "queue_full",
        Closing "closing",
    }
    StatusClass "status" {
        Informational "1xx",
        Success "2xx",
        Redirection "3xx",
        ClientError "4xx",
        ServerError "5xx",
    }
}

impl Label for CloseCode {
    const NAME: &'static str = "reason";
    const ALL: &'static [Self] = &CloseCode::ALL;

    fn word(self) -> &'static str {
        self.name()
    }

    fn index(self) -> usize {
        self as usize
    }
}

impl Label for Code {
    const NAME: &'static str = "reason";
    const ALL: &'static [Self] = &Code::ALL;

    fn word(self) -> &'static str {
        self.name()
    }

    fn index(self) -> usize {
        self as usize
    }
}

impl StatusClass {
    pub fn of_status(status: u16) -> Self {
        match status {
            ..200 => Self::Informational,
            200..300 => Self::Success,
            300..400 => Self::Redirection,
            400..500 => Self::ClientError,
            500.. => Self::ServerError,
        }
    }
}

/// One handle for each value of a label.
pub struct By<L, H> {
    handles: Box<[H]>,
    label: PhantomData<fn(L)>,
}

impl<L: Label, H> By<L, H> {
    pub fn of(&self, label: L) -> &H {
        &self.handles[label.index()]
    }
}

/// A metric of which each row of the router's table registers its own series, once, at start: see
/// [`Metrics::route`].
pub struct ByRoute<H> {
    name: &'static str,
    handle: PhantomData<fn(H)>,
}

/// The handles of one route.
pub struct RouteMetrics {
    pub requests: By<StatusClass, Counter>,
    pub seconds: Histogram,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// A row of the list.
#[derive(Clone, Debug)]
pub struct Metric {
    pub name: &'static str,
    pub kind: Kind,
    pub unit: Unit,
    pub labels: Vec<&'static str>,
    pub help: &'static str,
    /// Upper bounds; of histograms only.
    pub buckets: &'static [f64],
}

/// Makes the table, and the struct of handles, from the same rows.
macro_rules! groups {
    ($($(#[$doc:meta])* $group:ident: $type:ident {
        $($field:ident: $handle:ty = $name:literal $unit:ident $help:literal $([$buckets:ident])?;)+
    })+) => {
        $(
            $(#[$doc])*
            pub struct $type { $(#[doc = $help] pub $field: $handle,)+ }
        )+

        /// All handles, by the part of the service that moves them.
        pub struct Groups { $($(#[$doc])* pub $group: $type,)+ }

        impl Groups {
            fn register(recorder: &PrometheusRecorder) -> Self {
                Self { $($group: $type { $($field: Handle::register(&Place::new(recorder, $name)),)+ },)+ }
            }
        }

        /// Every metric there is.
        pub fn table() -> Vec<Metric> {
            vec![$($(Metric {
                name: $name,
                kind: <$handle as Handle>::KIND,
                unit: Unit::$unit,
                labels: <$handle as Handle>::labels(),
                help: $help,
                buckets: groups!(@buckets $($buckets)?),
            },)+)+]
        }
    };
    (@buckets $buckets:ident) => { $buckets };
    (@buckets) => { &[] };
}

groups! {
    /// `ws`: the sockets of this node.
    sockets: Sockets {
        open: Gauge = "tidings_sockets_open" Count "Sockets open now.";
        limit: Gauge = "tidings_sockets_limit" Count "Sockets that this node takes at most (MAX_CONNECTIONS).";
        opened: Counter = "tidings_sockets_opened_total" Count "Sockets that finished their handshake.";
        closed: By<CloseCode, Counter> = "tidings_sockets_closed_total" Count "Sockets closed, by the name of the close code.";
        handshake: Histogram = "tidings_socket_handshake_seconds" Seconds "From the request to the hello event." [HANDSHAKE];
        frames: By<Direction, Counter> = "tidings_socket_frames_total" Count "WebSocket frames.";
        bytes: By<Direction, Counter> = "tidings_socket_bytes_total" Bytes "Bytes of WebSocket frames.";
        queue_bytes: Gauge = "tidings_socket_queue_bytes" Bytes "What waits to be written, in the queues of all sockets.";
        queue_dropped: Counter = "tidings_socket_queue_dropped_total" Count "Ephemeral events (typing, presence) that found a full queue.";
        slow_consumers: Counter = "tidings_slow_consumers_total" Count "Queues that stayed full: the socket was closed or told to resync.";
        gaps: Counter = "tidings_bus_gaps_total" Count "Times events may have been lost on the bus, so that all sockets were told to read again.";
    }
    /// `rates`: what was refused because a client was too fast.
    rates: RateMetrics {
        limited: By<Limited, Counter> = "tidings_rate_limited_total" Count "Requests, commands and sockets refused because a user or an address was too fast.";
    }
    /// What is told and stored nowhere.
    signals: Signals {
        typing: Counter = "tidings_typing_published_total" Count "Typing events published, one for each member.";
        presence: Counter = "tidings_presence_told_total" Count "Presence events queued, one for each session that watches.";
        hints_dropped: Counter = "tidings_presence_hints_dropped_total" Count "Users who came or went and of whom other nodes were not told at once.";
        watched: Gauge = "tidings_presence_watched_users" Count "Users watched by sessions of this node.";
    }
    /// `write_path`: from a send to its commit.
    sends: Sends {
        accepted: Counter = "tidings_sends_accepted_total" Count "Messages committed and acknowledged.";
        refused: By<Code, Counter> = "tidings_sends_refused_total" Count "Sends that stored nothing, by error code.";
        repeated: Counter = "tidings_sends_repeated_total" Count "Sends answered with the first message of the same client_message_id.";
        batch: Histogram = "tidings_send_batch_messages" Count "Messages of a write batch." [BATCH];
        commit: Histogram = "tidings_commit_seconds" Seconds "One write batch: statement and commit." [LATENCY];
    }
    /// The way of a message.
    stages: Stages {
        stage: By<Stage, Histogram> = "tidings_stage_seconds" Seconds "Time between two stages of a message's way." [LATENCY];
        end_to_end: Histogram = "tidings_end_to_end_seconds" Seconds "From the sender's frame to the write to a recipient's socket." [LATENCY];
    }
    /// The dispatcher, the outbox and Reconcile.
    dispatch: Dispatch {
        published: Counter = "tidings_dispatch_published_total" Count "Events published, one for each member.";
        publish: Histogram = "tidings_publish_seconds" Seconds "One dispatch's publishes, with the bus's replies." [LATENCY];
        outbox_rows: Gauge = "tidings_outbox_rows" Count "Write batches not yet settled.";
        outbox_oldest: Gauge = "tidings_outbox_oldest_seconds" Seconds "Age of the oldest write batch not yet settled.";
        laggards_rows: Gauge = "tidings_laggards_rows" Count "Members who lack something in a conversation.";
        laggards_overdue: Gauge = "tidings_laggards_oldest_overdue_seconds" Seconds "How long the laggard most overdue has been due.";
        settled: Counter = "tidings_runs_settled_total" Count "Proven runs that moved a member's watermark.";
        receipts_told: Counter = "tidings_receipts_told_total" Count "Receipts told to senders, one for each run and sender.";
        proofs_dropped: Counter = "tidings_proofs_dropped_total" Count "Proven runs for which there was no room; found again by Reconcile.";
        laggards: By<LaggardOutcome, Counter> = "tidings_laggards_total" Count "Laggards looked after, by what was done.";
    }
    /// `resume`: clients that read what they missed.
    resume: ResumeMetrics {
        pages: By<ResumeResult, Counter> = "tidings_resumes_total" Count "Pages of sync asked for, by result.";
        batch: Histogram = "tidings_resume_batch_pages" Count "Pages of sync read together." [BATCH];
        waiting: Gauge = "tidings_resumes_waiting" Count "Pages of sync that wait for their turn.";
    }
    store: StoreMetrics {
        query: By<Operation, Histogram> = "tidings_store_query_seconds" Seconds "One use case of the store, with the wait for a connection." [LATENCY];
        failures: By<StoreFailure, Counter> = "tidings_store_failures_total" Count "Statements that failed, by what the caller does next.";
        replica: By<ReplicaRead, Counter> = "tidings_store_replica_reads_total" Count "Pages of history asked of the replica; all but those served were then read from the primary.";
        recent: By<RecentRead, By<RecentOutcome, Counter>> = "tidings_recent_reads_total" Count "Newest pages of histories, and logs of resumes, that were found in memory or had to be read.";
        recent_bytes: Gauge = "tidings_recent_bytes" Bytes "Recent messages held in memory.";
        pool: By<PoolState, Gauge> = "tidings_store_pool_connections" Count "Connections of the reading pool.";
        pool_limit: Gauge = "tidings_store_pool_limit" Count "Connections that the reading pool has at most (DB_POOL_SIZE).";
        pool_wait: Histogram = "tidings_store_pool_wait_seconds" Seconds "The wait for a connection of the reading pool; of Postgres only." [LATENCY];
        synchronous_standby: Gauge = "tidings_store_synchronous_standby" Count "Whether commits wait for a synchronous standby, when /ready last looked: 1 or 0.";
    }
    redis: RedisMetrics {
        command: Histogram = "tidings_redis_command_seconds" Seconds "One pipeline of commands on keys (presence, leases, tickets) to one master, with the wait for a connection." [LATENCY];
        subscriptions: Gauge = "tidings_redis_subscriptions" Count "Channels subscribed to.";
        undecodable: Counter = "tidings_redis_undecodable_total" Count "Envelopes that could not be read, of another release perhaps.";
        lease_losses: Counter = "tidings_redis_lease_losses_total" Count "Times the node's lease was lost, and its sessions were registered again.";
        reconnects: Counter = "tidings_redis_reconnects_total" Count "Times a connection for subscribing or publishing was made anew.";
        probe_lag: Gauge = "tidings_redis_probe_lag_seconds" Seconds "From the last publish to oneself to its arrival, by way of the slowest master.";
    }
    /// `offline`: for users without a socket.
    offline: OfflineMetrics {
        records: By<OfflineOutcome, Counter> = "tidings_offline_records_total" Count "Offline records: confirmed by the broker or by fsync, or failed.";
        file_syncs: Counter = "tidings_offline_file_syncs_total" Count "fsyncs of the offline file, one for each batch of records.";
    }
    kafka: KafkaMetrics {
        produce: Histogram = "tidings_kafka_produce_seconds" Seconds "From the hand-over of a record to the broker's confirmation." [CONFIRMATION];
        queue: Gauge = "tidings_kafka_queue_records" Count "Records not yet confirmed by the broker.";
        failures: By<KafkaFailure, Counter> = "tidings_kafka_failures_total" Count "Records that were not confirmed, by reason.";
    }
    http: HttpMetrics {
        requests: ByRoute<By<StatusClass, Counter>> = "tidings_http_requests_total" Count "Requests answered.";
        seconds: ByRoute<Histogram> = "tidings_http_request_seconds" Seconds "From the request's head to the end of its answer." [LATENCY];
    }
    /// What the node leans on, and whether it is leaving.
    parts: Parts {
        up: By<Part, Gauge> = "tidings_part_up" Count "Whether a part works, 1 or 0: the store as its last statement told, the bus's connection, the offline sink.";
        draining: Gauge = "tidings_draining" Count "Whether the node is stopping and hands its sockets over: 1 or 0.";
    }
    /// The threads that run the tasks.
    runtime: Runtime {
        workers: Gauge = "tidings_runtime_workers" Count "Threads that run tasks.";
        busy: Seconds = "tidings_runtime_busy_seconds_total" Seconds "Time that these threads were running tasks, all together.";
        tasks: Gauge = "tidings_runtime_tasks" Count "Tasks alive.";
        queued: Gauge = "tidings_runtime_queued_tasks" Count "Tasks ready to run that no thread has taken yet.";
        lag: Histogram = "tidings_runtime_lag_seconds" Seconds "How late a task woke that was due: what all others may have waited, too." [LAG];
    }
    /// The operating system's view; sampled.
    process: Process {
        cpu: Seconds = "tidings_process_cpu_seconds_total" Seconds "CPU time used, user and system.";
        resident: Gauge = "tidings_process_resident_bytes" Bytes "Memory in RAM.";
        memory_limit: Gauge = "tidings_process_memory_limit_bytes" Bytes "What the node may use: its cgroup's limit, else the machine's memory.";
        memory_used: Gauge = "tidings_process_memory_used_bytes" Bytes "What counts against that limit: the cgroup's memory without file cache that can be let go, else the memory in RAM.";
        open_fds: Gauge = "tidings_process_open_fds" Count "Open file descriptors.";
        fd_limit: Gauge = "tidings_process_fd_limit" Count "File descriptors that the node may open.";
        start_time: Gauge = "tidings_process_start_time_seconds" Seconds "When the node started, since the Unix epoch.";
        build: Build = "tidings_build_info" Count "Always 1; the labels say which release runs, and the commit if its build knew it.";
    }
}

/// The handles of a node; cheap to clone.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    groups: Groups,
    recorder: PrometheusRecorder,
}

impl Deref for Metrics {
    type Target = Groups;

    fn deref(&self) -> &Groups {
        &self.0.groups
    }
}

impl Metrics {
    /// A recorder of its own with all metrics registered, and what renders its output.
    ///
    /// Histograms keep single samples until they are rendered or `run_upkeep` is called on the
    /// handle, which [`super::run_upkeep`] does.
    pub fn new() -> (Self, PrometheusHandle) {
        let mut builder = PrometheusBuilder::new();
        for metric in table().iter().filter(|metric| metric.kind == Kind::Histogram) {
            builder = builder
                .set_buckets_for_metric(Matcher::Full(metric.name.into()), metric.buckets)
                .expect("every histogram of the table has buckets");
        }
        let recorder = builder.build_recorder();
        for metric in table() {
            let (name, unit, help) = (metric.name.into(), Some(metric.unit), metric.help.into());
            match metric.kind {
                Kind::Counter => recorder.describe_counter(name, unit, help),
                Kind::Gauge => recorder.describe_gauge(name, unit, help),
                Kind::Histogram => recorder.describe_histogram(name, unit, help),
            }
        }
        let groups = Groups::register(&recorder);
        groups.process.start_time.set(Timestamp::now().millis() as f64 / 1e3);
        let handle = recorder.handle();
        (Self(Arc::new(Inner { groups, recorder })), handle)
    }

    /// The handles of a route, by its template (`/api/v1/messages/{id}`); called once for each row
    /// of the router's table, never per request.
    pub fn route(&self, method: &'static str, template: &'static str) -> RouteMetrics {
        let place = |name| {
            let place = Place::new(&self.0.recorder, name);
            place.with("route", template).with("method", method)
        };
        RouteMetrics {
            requests: Handle::register(&place(self.http.requests.name)),
            seconds: Handle::register(&place(self.http.seconds.name)),
        }
    }
}

/// What the exporter has to say, in Prometheus' text format.
pub fn render(exporter: &PrometheusHandle) -> String {
    // It knows whole counters only, see `Seconds`.
    exporter.render().replace("_total gauge\n", "_total counter\n")
}

/// A counter of seconds, read from a clock that runs anyway. The exporter's own ones are whole
/// numbers, so it is kept as a gauge, and shown as what it is by [`render`].
pub struct Seconds(Gauge);

impl Seconds {
    /// What the clock shows now; it never goes back.
    pub fn set(&self, total: Duration) {
        self.0.set(total.as_secs_f64());
    }
}

/// Always 1.
pub struct Build;

/// Where a series is being registered.
struct Place<'a> {
    recorder: &'a PrometheusRecorder,
    name: &'static str,
    labels: Vec<metrics::Label>,
}

impl<'a> Place<'a> {
    fn new(recorder: &'a PrometheusRecorder, name: &'static str) -> Self {
        Self { recorder, name, labels: Vec::new() }
    }

    fn with(&self, label: &'static str, value: &'static str) -> Self {
        let mut labels = self.labels.clone();
        labels.push(metrics::Label::from_static_parts(label, value));
        Self { recorder: self.recorder, name: self.name, labels }
    }

    fn key(&self) -> Key {
        Key::from_parts(self.name, self.labels.clone())
    }
}

const METADATA: Metadata<'static> = Metadata::new(module_path!(), Level::INFO, None);

/// What can stand in the table.
trait Handle {
    const KIND: Kind;
    fn labels() -> Vec<&'static str>;
    fn register(place: &Place) -> Self;
}

impl Handle for Counter {
    const KIND: Kind = Kind::Counter;

    fn labels() -> Vec<&'static str> {
        Vec::new()
    }

    fn register(place: &Place) -> Self {
        place.recorder.register_counter(&place.key(), &METADATA)
    }
}

impl Handle for Gauge {
    const KIND: Kind = Kind::Gauge;

    fn labels() -> Vec<&'static str> {
        Vec::new()
    }

    fn register(place: &Place) -> Self {
        place.recorder.register_gauge(&place.key(), &METADATA)
    }
}

impl Handle for Seconds {
    const KIND: Kind = Kind::Counter;

    fn labels() -> Vec<&'static str> {
        Vec::new()
    }

    fn register(place: &Place) -> Self {
        Self(Gauge::register(place))
    }
}

impl Handle for Histogram {
    const KIND: Kind = Kind::Histogram;

    fn labels() -> Vec<&'static str> {
        Vec::new()
    }

    fn register(place: &Place) -> Self {
        place.recorder.register_histogram(&place.key(), &METADATA)
    }
}

impl<L: Label, H: Handle> Handle for By<L, H> {
    const KIND: Kind = H::KIND;

    fn labels() -> Vec<&'static str> {
        [vec![L::NAME], H::labels()].concat()
    }

    fn register(place: &Place) -> Self {
        let register = |label: &L| H::register(&place.with(L::NAME, label.word()));
        Self { handles: L::ALL.iter().map(register).collect(), label: PhantomData }
    }
}

impl<H: Handle> Handle for ByRoute<H> {
    const KIND: Kind = H::KIND;

    fn labels() -> Vec<&'static str> {
        [vec!["route", "method"], H::labels()].concat()
    }

    fn register(place: &Place) -> Self {
        Self { name: place.name, handle: PhantomData }
    }
}

impl Handle for Build {
    const KIND: Kind = Kind::Gauge;

    fn labels() -> Vec<&'static str> {
        vec!["version", "commit"]
    }

    fn register(place: &Place) -> Self {
        let place = place.with("version", VERSION).with("commit", COMMIT);
        Gauge::register(&place).set(1);
        Self
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_follow_the_rules() {
        let mut names = BTreeSet::new();
        for metric in table() {
            let name = metric.name;
            assert!(names.insert(name), "{name} stands there twice");
            assert!(name.starts_with("tidings_"), "{name}");
            assert_eq!(name.ends_with("_total"), metric.kind == Kind::Counter, "{name}");
            let base = name.trim_end_matches("_total");
            match metric.unit {
                Unit::Seconds => assert!(base.ends_with("_seconds"), "{name}"),
                Unit::Bytes => assert!(base.ends_with("_bytes"), "{name}"),
                _ => assert!(!base.ends_with("_seconds") && !base.ends_with("_bytes"), "{name}"),
            }
            assert_eq!(!metric.buckets.is_empty(), metric.kind == Kind::Histogram, "{name}");
            assert!(metric.buckets.is_sorted_by(|a, b| a < b), "{name}");
            assert!(metric.help.ends_with('.'), "{name}");
        }
    }

    #[test]
    fn every_metric_stands_in_the_output_from_the_start() {
        let (metrics, exporter) = Metrics::new();
        let _route = metrics.route("GET", "/api/v1/messages/{id}");
        let output = render(&exporter);
        for metric in table() {
            let name = metric.name;
            let kind = format!("{:?}", metric.kind).to_lowercase();
            assert!(output.contains(&format!("# HELP {name} {}", metric.help)), "{name}");
            assert!(output.contains(&format!("# TYPE {name} {kind}\n")), "{name}");
            let series: Vec<_> = output
                .lines()
                .filter(|line| line.starts_with(name) && !line.starts_with('#'))
                .collect();
            assert!(!series.is_empty(), "{name}");
            for label in &metric.labels {
                assert!(series.iter().all(|line| line.contains(&format!("{label}=\""))), "{name}");
            }
        }
        assert!(output.contains("tidings_sockets_open 0\n"), "{output}");
        assert!(output.contains("tidings_sends_refused_total{reason=\"busy\"} 0\n"), "{output}");
        assert!(output.contains("tidings_commit_seconds_bucket{le=\"0.01\"} 0\n"), "{output}");
        assert!(output.contains(
            "tidings_http_requests_total{route=\"/api/v1/messages/{id}\",method=\"GET\",status=\"5xx\"} 0\n"
        ));
    }

    #[test]
    fn nodes_of_one_process_count_apart() {
        let (one, one_exporter) = Metrics::new();
        let (_two, two_exporter) = Metrics::new();
        one.sends.refused.of(Code::NotFound).increment(2);
        one.stages.end_to_end.record(0.02);
        let moved = "tidings_sends_refused_total{reason=\"not_found\"} 2\n";
        assert!(one_exporter.render().contains(moved));
        assert!(
            one_exporter.render().contains("tidings_end_to_end_seconds_bucket{le=\"0.025\"} 1\n")
        );
        assert!(!two_exporter.render().contains(moved));
    }

    #[test]
    fn codes_become_names() {
        for (at, code) in CloseCode::ALL.into_iter().enumerate() {
            assert_eq!(code.index(), at, "a handle is found by its place in the list");
        }
        for (at, code) in Code::ALL.into_iter().enumerate() {
            assert_eq!(code.index(), at);
        }
        assert_eq!(StatusClass::of_status(101).word(), "1xx");
        assert_eq!(StatusClass::of_status(404).word(), "4xx");
        assert_eq!(StatusClass::of_status(503).word(), "5xx");
    }
}
