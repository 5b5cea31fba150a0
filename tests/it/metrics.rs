//! What is counted, where it is shown, and to whom.

use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tidings::build_info::{COMMIT, VERSION};
use tidings::ids::{ConversationId, OutboxId, UserId};
use tidings::store::types::OutboxLease;
use tidings::telemetry::metrics::{Kind, Metrics, render, table};

use crate::harness::client::{Client, Opening};
use crate::harness::cluster::{Cluster, text, user};
use crate::harness::http::Rest;
use crate::harness::metrics::{moves, series, value};
use crate::harness::{PATIENCE, scenarios, until, until_within};
use crate::store::fixture::message;

scenarios! {
    every_metric_is_there_from_the_start,
    a_conversation_moves_the_metrics,
    what_waits_in_the_store_is_shown,
    a_gateways_word_counts_and_metrics_are_behind_the_admin_door
        ["AUTH_MODE" = "gateway", "TRUSTED_PROXIES" = "127.0.0.1/32", "ADMIN_ADDR" = "127.0.0.1:0"],
    who_is_no_gateway_is_not_believed
        ["AUTH_MODE" = "gateway", "TRUSTED_PROXIES" = "10.0.0.0/8", "ADMIN_ADDR" = "127.0.0.1:0"],
}

/// `UPDATE_METRICS=1 cargo test --test it the_list_of_metrics` writes it.
#[test]
fn the_list_of_metrics_is_committed_as_it_is_generated() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/metrics.md");
    #[expect(clippy::disallowed_methods, reason = "asks for the tests, not for the service")]
    let update = std::env::var("UPDATE_METRICS").is_ok_and(|value| value == "1");
    let list = document();
    if update {
        std::fs::write(&file, &list).unwrap();
    }
    let committed = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(committed == list, "docs/metrics.md is old: run with UPDATE_METRICS=1");
}

/// `docs/metrics.md`.
fn document() -> String {
    let (metrics, exporter) = Metrics::new();
    metrics.route("GET", "/api/v1/messages/{id}");
    let output = render(&exporter);
    let mut rows = String::new();
    let mut values = String::new();
    for metric in table() {
        let name = metric.name;
        let kind = format!("{:?}", metric.kind).to_lowercase();
        let unit = metric.unit.as_str();
        let labels: Vec<_> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
        let labels = labels.join(", ");
        writeln!(rows, "| `{name}` | {kind} | {unit} | {labels} | {} |", metric.help).unwrap();
        for label in metric.labels.into_iter().filter(|label| !OPEN_LABELS.contains(label)) {
            let begins = format!("{label}=\"");
            let series = output
                .lines()
                .filter(|line| line.split(['{', ' ']).next().unwrap().starts_with(name));
            let mut words: Vec<_> = series
                .filter_map(|line| line.split_once(&begins)?.1.split_once('"'))
                .map(|(word, _)| format!("`{word}`"))
                .collect();
            words.sort();
            words.dedup();
            writeln!(values, "- `{name}`, `{label}`: {}", words.join(", ")).unwrap();
        }
    }
    format!("{HEAD}\n{rows}{MIDDLE}\n{values}")
}

/// Their values are not listed: there are many, or they change with the release.
const OPEN_LABELS: [&str; 4] = ["route", "method", "version", "commit"];

const HEAD: &str = "# Metrics

Each node shows these at `/metrics` (on `ADMIN_ADDR`; without it on the main port, in dev mode only), all of them from
its start on, as 0. No label is a user or a conversation, so the number of series is known beforehand. Counters end in
`_total`; units are seconds and bytes. Rows of the outbox and of the laggards are the store's, so all nodes tell the
same: take their maximum.

This list is made from the code (`src/telemetry/metrics.rs`), and a test fails where they differ.
[prometheus/](../prometheus) has the rules and alerts, [grafana/](../grafana) the dashboards, and
[runbook.md](runbook.md) what to do.

| metric | kind | unit | labels | meaning |
|---|---|---|---|---|";

const MIDDLE: &str = "
## What labels say

`route` is a route's template (`/api/v1/messages/{id}`), `method` its method. `version` is the release, and `commit` what
the variable `TIDINGS_COMMIT` told its build, else what git told a release build, else `unknown`. The others:
";

async fn every_metric_is_there_from_the_start(cluster: &Cluster) {
    let text = Rest::new(cluster.addr(0), None).get("/metrics").await.text;
    let series = series(cluster.addr(0)).await;
    for metric in table() {
        let name = metric.name;
        assert!(text.contains(&format!("# TYPE {name} ")), "{name} has no type");
        assert!(text.contains(&format!("# HELP {name} ")), "{name} has no help");
        // Of a counter for each outcome all stand there, so that a rate can be taken of the first.
        let suffix = if metric.kind == Kind::Histogram { "_count" } else { "" };
        let found = series.keys().filter(|key| {
            key.strip_prefix(name)
                .and_then(|rest| rest.strip_prefix(suffix))
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('{'))
        });
        assert!(found.count() > 0, "{name} is not there");
        if metric.kind == Kind::Counter {
            assert!(name.ends_with("_total"), "{name}");
        }
    }
    let named: Vec<_> = table().iter().map(|metric| metric.name).collect();
    for key in series.keys() {
        assert!(named.iter().any(|name| key.starts_with(name)), "{key} is not on the list");
    }
}

async fn a_conversation_moves_the_metrics(cluster: &Cluster) {
    let before = cluster.metrics().await;
    let (alice, bob, carol) = (user(), user(), user());
    let conversation = cluster.group(0, alice, &[bob, carol]).await;
    let mut at_alice = cluster.connect(0, alice).await;
    at_alice.command("watch_presence", json!({ "user_ids": [bob] })).await.ok();
    let mut at_bob = cluster.connect(1, bob).await;
    at_alice.event("presence", "bob has come").await;
    let typing = json!({ "conversation_id": conversation, "is_typing": true });
    at_alice.command("typing", typing).await.ok();
    at_bob.event("typing", "alice types").await;
    let mut body = text(conversation, "hello");
    body["client_message_id"] = json!("c-1");
    at_alice.command("send_message", body.clone()).await.ok();
    at_alice.command("send_message", body.clone()).await.ok();
    let message = at_bob.new_message().await;
    at_alice.event("message_delivered", "bob has it").await;
    at_bob.command("read_receipt", json!({ "message_id": message["id"] })).await.ok();
    at_alice.event("message_read", "bob has read it").await;
    body["content"] = json!("other");
    at_alice.command("send_message", body).await.refused(
        422,
        "idempotency_mismatch",
        Some("client_message_id"),
    );
    let foreign = cluster.rest(1, user()).post("/api/v1/messages", text(conversation, "x")).await;
    assert_eq!(foreign.status, 404);
    let broken = cluster.rest(1, alice).call("POST", "/api/v1/messages", "{").await;
    broken.refused(400, "malformed", None);
    let cursors = json!({ "conversations": { conversation.to_string(): 1 } });
    at_bob.command("sync", cursors).await.ok();
    let history = format!("/api/v1/conversations/{conversation}/messages");
    // Read, and then found in memory.
    for _ in 0..2 {
        cluster.rest(0, bob).get(&history).await.body(200);
    }
    // Looked at now and then.
    moves(cluster.addr(0), &["tidings_presence_watched_users", "tidings_recent_bytes"]).await;
    if !cluster.is_embedded() {
        moves(cluster.addr(0), &["tidings_redis_probe_lag_seconds"]).await;
    }
    let open = cluster.metrics().await;
    let now = |name: &str| value(&open, name) - value(&before, name);
    assert_eq!(now("tidings_sockets_open"), 2.0);
    assert_eq!(now("tidings_sockets_opened_total"), 2.0);
    assert!(now("tidings_redis_subscriptions") >= 2.0, "of alice and of bob");
    let connections =
        |state: &str| value(&open, &format!("tidings_store_pool_connections{{state=\"{state}\"}}"));
    assert!(connections("in_use") + connections("idle") > 0.0);
    at_bob.close().await;
    let mut raw = crate::harness::raw::Raw::upgraded(cluster.addr(0)).await;
    raw.send(&[0xff, 0xff]).await;
    assert_eq!(raw.closed().await, Some(1002));
    drop(at_alice);
    cluster.settled().await;
    let after = until("all sockets are closed and counted", async || {
        let after = cluster.metrics().await;
        let closed = after.keys().filter(|name| name.starts_with("tidings_sockets_closed_total"));
        let closed: f64 = closed.map(|name| after[name]).sum();
        (value(&after, "tidings_sockets_open") == 0.0 && closed == 3.0).then_some(after)
    })
    .await;
    let moved = |name: &str| value(&after, name) - value(&before, name);
    for (name, by) in [
        ("tidings_sends_accepted_total", 1.0),
        ("tidings_sends_repeated_total", 1.0),
        (r#"tidings_sends_refused_total{reason="idempotency_mismatch"}"#, 1.0),
        (r#"tidings_sends_refused_total{reason="not_found"}"#, 1.0),
        (r#"tidings_sends_refused_total{reason="malformed"}"#, 1.0),
        (r#"tidings_sockets_closed_total{reason="normal"}"#, 1.0),
        (r#"tidings_sockets_closed_total{reason="lost"}"#, 1.0),
        (r#"tidings_sockets_closed_total{reason="protocol_error"}"#, 1.0),
        ("tidings_slow_consumers_total", 0.0),
        (r#"tidings_offline_records_total{outcome="produced"}"#, 1.0),
        (r#"tidings_offline_records_total{outcome="failed"}"#, 0.0),
    ] {
        assert_eq!(moved(name), by, "{name}");
    }
    for name in [
        "tidings_socket_handshake_seconds_count",
        r#"tidings_socket_frames_total{direction="in"}"#,
        r#"tidings_socket_frames_total{direction="out"}"#,
        r#"tidings_socket_bytes_total{direction="in"}"#,
        r#"tidings_socket_bytes_total{direction="out"}"#,
        "tidings_typing_published_total",
        "tidings_presence_told_total",
        "tidings_send_batch_messages_count",
        "tidings_commit_seconds_count",
        r#"tidings_stage_seconds_count{stage="received_committed"}"#,
        r#"tidings_stage_seconds_count{stage="committed_published"}"#,
        r#"tidings_stage_seconds_count{stage="queued_written"}"#,
        r#"tidings_stage_seconds_count{stage="written_proven"}"#,
        "tidings_end_to_end_seconds_count",
        "tidings_dispatch_published_total",
        "tidings_publish_seconds_count",
        "tidings_runs_settled_total",
        "tidings_receipts_told_total",
        r#"tidings_resumes_total{result="changed"}"#,
        "tidings_resume_batch_pages_count",
        r#"tidings_recent_reads_total{kind="page",outcome="hit"}"#,
        r#"tidings_recent_reads_total{kind="sync",outcome="miss"}"#,
        r#"tidings_store_query_seconds_count{operation="send"}"#,
        r#"tidings_store_query_seconds_count{operation="change"}"#,
        r#"tidings_store_query_seconds_count{operation="history"}"#,
        r#"tidings_store_query_seconds_count{operation="settle"}"#,
        r#"tidings_store_query_seconds_count{operation="settle_outbox"}"#,
        r#"tidings_http_requests_total{method="GET",route="/api/v1/conversations/{id}/messages",status="2xx"}"#,
        r#"tidings_http_requests_total{method="POST",route="/api/v1/messages",status="4xx"}"#,
        r#"tidings_http_request_seconds_count{method="POST",route="/api/v1/conversations"}"#,
    ] {
        assert!(moved(name) >= 1.0, "{name}");
    }
    let end_to_end = moved("tidings_end_to_end_seconds_sum");
    assert!((0.0..5.0).contains(&end_to_end), "{end_to_end} s");
    let only = if cluster.is_embedded() {
        &["tidings_offline_file_syncs_total"][..]
    } else {
        &[
            "tidings_kafka_produce_seconds_count",
            "tidings_redis_command_seconds_count",
            "tidings_store_pool_wait_seconds_count",
        ]
    };
    for name in only {
        assert!(moved(name) >= 1.0, "{name}");
    }
    let build = format!("tidings_build_info{{commit=\"{COMMIT}\",version=\"{VERSION}\"}}");
    for name in [
        build.as_str(),
        "tidings_process_start_time_seconds",
        "tidings_process_resident_bytes",
        "tidings_process_memory_used_bytes",
        "tidings_process_memory_limit_bytes",
        "tidings_process_open_fds",
        "tidings_process_fd_limit",
        "tidings_process_cpu_seconds_total",
        "tidings_runtime_workers",
        "tidings_runtime_busy_seconds_total",
        "tidings_runtime_tasks",
        "tidings_runtime_lag_seconds_count",
        "tidings_sockets_limit",
        "tidings_store_pool_limit",
        r#"tidings_part_up{part="store"}"#,
        r#"tidings_part_up{part="bus"}"#,
        r#"tidings_part_up{part="offline"}"#,
    ] {
        assert!(value(&after, name) > 0.0, "{name}");
    }
    assert_eq!(value(&after, "tidings_draining"), 0.0);
    // Nobody's id is a label.
    let shown = Rest::new(cluster.addr(0), None).get("/metrics").await.text;
    for id in [alice, bob, carol, conversation] {
        assert!(!shown.contains(&id.to_string()));
    }
}

/// Counted seldom: so that nobody takes it meanwhile, it is held as by a node that stands still.
async fn what_waits_in_the_store_is_shown(cluster: &Cluster) {
    let (alice, bob) = (user(), user());
    let conversation = cluster.group(0, alice, &[bob]).await;
    cluster.settled().await;
    let store = &cluster.node(0).store;
    let mut writer = store.writer();
    let hour = Duration::from_secs(3_600);
    let mut rows = Vec::new();
    for content in ["in the outbox", "lacking"] {
        let message = message(ConversationId(conversation), UserId(alice), content);
        let outbox = OutboxLease { id: OutboxId::random(), lease: hour };
        writer.send(&[message], outbox).await.unwrap();
        rows.push(outbox.id);
    }
    store.settle_outbox(&rows[1..], hour).await.unwrap();
    let (due_at, lease_until) = match cluster.is_embedded() {
        true => ("(unixepoch() - 60) * 1000", "(unixepoch() + 3600) * 1000"),
        false => ("now() - interval '1 minute'", "now() + interval '1 hour'"),
    };
    let held = format!("update laggards set due_at = {due_at}, lease_until = {lease_until}");
    cluster.ground.sql(&held).await;
    until_within(2 * PATIENCE, "they are counted", async || {
        let shown = series(cluster.addr(0)).await;
        let overdue = value(&shown, "tidings_laggards_oldest_overdue_seconds");
        let counted =
            ["tidings_outbox_rows", "tidings_outbox_oldest_seconds", "tidings_laggards_rows"];
        let moved = counted.iter().all(|name| value(&shown, name) > 0.0);
        (moved && overdue >= 60.0).then_some(())
    })
    .await;
    // Bob has no device.
    store.settle_outbox(&rows[..1], Duration::ZERO).await.unwrap();
    cluster.ground.sql("update laggards set lease_until = null").await;
    cluster.settled().await;
    let handed_over = cluster.metric(r#"tidings_laggards_total{outcome="offline"}"#).await;
    assert!(handed_over >= 1.0);
}

async fn a_gateways_word_counts_and_metrics_are_behind_the_admin_door(cluster: &Cluster) {
    let (alice, bob) = (user(), user());
    let conversation = cluster.group(0, alice, &[bob]).await;
    let mut at_bob = cluster.connect(1, bob).await;
    let sent = cluster.send(0, alice, conversation, "through the gateway").await;
    assert_eq!(at_bob.new_message().await, sent);
    let main = cluster.rest(0, alice);
    // What is for a laptop is not there.
    for path in ["/metrics", "/"] {
        main.get(path).await.refused(404, "not_found", None);
    }
    let nobody = Rest::new(cluster.addr(0), None);
    nobody.get("/api/v1/conversations").await.refused(401, "unauthenticated", None);
    let named = format!("/api/v1/conversations?user_id={alice}");
    nobody.get(&named).await.refused(401, "unauthenticated", None);
    nobody.get("/health").await.body(200);

    let admin = Rest::new(cluster.admin_addr(0).expect("there is an admin door"), Some(alice));
    let metrics = admin.get("/metrics").await;
    assert_eq!(metrics.status, 200);
    assert!(metrics.text.contains("\ntidings_sends_accepted_total 1\n"), "{}", metrics.text);
    admin.get("/health").await.body(200);
    admin.get("/ready").await.body(200);
    for path in ["/api/v1/conversations", "/ws", "/"] {
        admin.get(path).await.refused(404, "not_found", None);
    }
}

async fn who_is_no_gateway_is_not_believed(cluster: &Cluster) {
    let rest = cluster.rest(0, user());
    rest.get("/api/v1/conversations").await.refused(401, "unauthenticated", None);
    let forwarded = rest.with("x-forwarded-for", "10.1.2.3").with("x-real-ip", "10.1.2.3");
    forwarded.get("/api/v1/conversations").await.refused(401, "unauthenticated", None);
    let refused = Client::open(cluster.addr(1), Opening::new(user())).await.err().expect("refused");
    assert_eq!((refused.status, &refused.problem["code"]), (401, &json!("unauthenticated")));
    let ready: Value = forwarded.get("/ready").await.body(200);
    assert_eq!(ready["status"], "ready");
}

/// For each metric a test in which it is seen to move: file, test, metrics.
const MOVED: [(&str, &str, &[&str]); 14] = [
    (
        "tests/it/metrics.rs",
        "a_conversation_moves_the_metrics",
        &[
            "tidings_sockets_open",
            "tidings_sockets_limit",
            "tidings_sockets_opened_total",
            "tidings_sockets_closed_total",
            "tidings_socket_handshake_seconds",
            "tidings_socket_frames_total",
            "tidings_socket_bytes_total",
            "tidings_typing_published_total",
            "tidings_presence_told_total",
            "tidings_presence_watched_users",
            "tidings_sends_accepted_total",
            "tidings_sends_refused_total",
            "tidings_sends_repeated_total",
            "tidings_send_batch_messages",
            "tidings_commit_seconds",
            "tidings_stage_seconds",
            "tidings_end_to_end_seconds",
            "tidings_dispatch_published_total",
            "tidings_publish_seconds",
            "tidings_runs_settled_total",
            "tidings_receipts_told_total",
            "tidings_resumes_total",
            "tidings_resume_batch_pages",
            "tidings_store_query_seconds",
            "tidings_recent_reads_total",
            "tidings_recent_bytes",
            "tidings_store_pool_connections",
            "tidings_store_pool_limit",
            "tidings_store_pool_wait_seconds",
            "tidings_redis_command_seconds",
            "tidings_redis_subscriptions",
            "tidings_redis_probe_lag_seconds",
            "tidings_offline_records_total",
            "tidings_offline_file_syncs_total",
            "tidings_kafka_produce_seconds",
            "tidings_http_requests_total",
            "tidings_http_request_seconds",
            "tidings_runtime_workers",
            "tidings_runtime_busy_seconds_total",
            "tidings_runtime_tasks",
            "tidings_runtime_lag_seconds",
            "tidings_process_cpu_seconds_total",
            "tidings_process_resident_bytes",
            "tidings_process_memory_limit_bytes",
            "tidings_process_memory_used_bytes",
            "tidings_process_open_fds",
            "tidings_process_fd_limit",
            "tidings_process_start_time_seconds",
            "tidings_build_info",
        ],
    ),
    (
        "tests/it/metrics.rs",
        "what_waits_in_the_store_is_shown",
        &[
            "tidings_outbox_rows",
            "tidings_outbox_oldest_seconds",
            "tidings_laggards_rows",
            "tidings_laggards_oldest_overdue_seconds",
            "tidings_laggards_total",
        ],
    ),
    (
        "tests/it/slow.rs",
        "what_waits_for_a_client_and_what_gives_way_is_shown",
        &["tidings_socket_queue_bytes", "tidings_socket_queue_dropped_total"],
    ),
    (
        "tests/it/slow.rs",
        "a_full_client_that_stops_reading_is_told_to_read_again",
        &["tidings_slow_consumers_total"],
    ),
    (
        "tests/it/faults.rs",
        "while_redis_is_away_sends_are_acknowledged_and_nothing_is_lost",
        &[
            "tidings_bus_gaps_total",
            "tidings_redis_undecodable_total",
            "tidings_redis_lease_losses_total",
            "tidings_redis_reconnects_total",
        ],
    ),
    (
        "tests/it/faults.rs",
        "while_the_database_is_away_sends_are_refused_and_can_be_repeated",
        &["tidings_store_failures_total", "tidings_store_synchronous_standby", "tidings_part_up"],
    ),
    (
        "tests/it/rates.rs",
        "sends_above_the_rate_are_refused_until_the_time_told",
        &["tidings_rate_limited_total"],
    ),
    ("tests/it/lifecycle.rs", "a_drain_can_be_watched_to_its_end", &["tidings_draining"]),
    (
        "tests/it/replica.rs",
        "what_a_lagging_replica_shows_is_what_the_primary_shows",
        &["tidings_store_replica_reads_total"],
    ),
    (
        "tests/it/offline.rs",
        "what_a_dead_kafka_does_not_confirm_is_told_of_and_fails_at_the_end",
        &["tidings_kafka_queue_records", "tidings_kafka_failures_total"],
    ),
    (
        "src/ws/watch/mod.rs",
        "hints_beyond_the_bound_are_dropped_and_counted",
        &["tidings_presence_hints_dropped_total"],
    ),
    (
        "src/write_path/proofs.rs",
        "what_waits_for_longer_than_the_grace_is_dropped_and_counted",
        &["tidings_proofs_dropped_total"],
    ),
    ("src/resume/tests.rs", "what_finds_no_room_is_refused_at_once", &["tidings_resumes_waiting"]),
    (
        "src/telemetry/mod.rs",
        "tasks_that_wait_for_a_thread_are_seen",
        &["tidings_runtime_queued_tasks"],
    ),
];

#[test]
fn each_metric_is_seen_to_move_in_a_test() {
    let mut moved: Vec<_> = MOVED.iter().flat_map(|(_, _, names)| names.iter().copied()).collect();
    let mut all: Vec<_> = table().iter().map(|metric| metric.name).collect();
    moved.sort_unstable();
    all.sort_unstable();
    assert_eq!(moved, all);
    for (file, test, names) in MOVED {
        let text = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
        let text = std::fs::read_to_string(text).unwrap();
        // Without what this list says itself.
        let text = text.split("const MOVED").next().unwrap();
        assert!(text.contains(&format!("fn {test}(")), "{file} has no {test}");
        for name in names {
            // The whole name, not the beginning of another.
            let is_whole =
                |rest: &str| rest.starts_with(['"', '{', ' ']) || rest.starts_with("_count");
            let named = text.split(*name).skip(1).any(is_whole);
            assert!(named, "{file} does not name {name}");
        }
    }
}
