//! What is counted, where it is shown, and to whom.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use serde_json::{Value, json};
use tidings::telemetry::metrics::{Kind, Metrics, render, table};

use crate::harness::client::{Client, Opening};
use crate::harness::cluster::{Cluster, text, user};
use crate::harness::http::Rest;
use crate::harness::{scenarios, until};

scenarios! {
    every_metric_is_there_from_the_start,
    a_conversation_moves_the_metrics,
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
the variable `TIDINGS_COMMIT` told its build, else `unknown`. The others:
";

/// Each series with its value.
async fn series(cluster: &Cluster, at: usize) -> BTreeMap<String, f64> {
    let reply = Rest::new(cluster.addr(at), None).get("/metrics").await;
    assert_eq!(reply.status, 200);
    assert!(reply.header("content-type").unwrap().starts_with("text/plain"), "{reply:?}");
    let lines = reply.text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    let values = lines.map(|line| {
        let (name, value) = line.rsplit_once(' ').expect("name and value");
        (with_sorted_labels(name), value.parse().unwrap_or_else(|_| panic!("no number: {line}")))
    });
    values.collect()
}

/// Their order means nothing.
fn with_sorted_labels(series: &str) -> String {
    let Some((name, labels)) = series.split_once('{') else { return series.to_owned() };
    // A template of a route holds braces, but no quotes or commas.
    let mut labels: Vec<_> = labels.strip_suffix('}').unwrap().split("\",").collect();
    if let Some(last) = labels.last_mut() {
        *last = last.trim_end_matches('"');
    }
    labels.sort_unstable();
    format!("{name}{{{}\"}}", labels.join("\","))
}

fn value(series: &BTreeMap<String, f64>, name: &str) -> f64 {
    *series.get(name).unwrap_or_else(|| {
        let (family, _) = name.split_once('{').unwrap_or((name, ""));
        let alike: Vec<_> = series.keys().filter(|key| key.starts_with(family)).collect();
        panic!("there is no {name}, only {alike:#?}")
    })
}

/// All nodes' series together.
async fn sum(cluster: &Cluster) -> BTreeMap<String, f64> {
    let mut all = series(cluster, 0).await;
    if !cluster.is_embedded() {
        for (name, value) in series(cluster, 1).await {
            *all.entry(name).or_default() += value;
        }
    }
    all
}

async fn every_metric_is_there_from_the_start(cluster: &Cluster) {
    let text = Rest::new(cluster.addr(0), None).get("/metrics").await.text;
    let series = series(cluster, 0).await;
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
    let before = sum(cluster).await;
    let (alice, bob, carol) = (user(), user(), user());
    let conversation = cluster.group(0, alice, &[bob, carol]).await;
    let mut at_alice = cluster.connect(0, alice).await;
    let mut at_bob = cluster.connect(1, bob).await;
    let mut body = text(conversation, "hello");
    body["client_message_id"] = json!("c-1");
    at_alice.command("send_message", body.clone()).await.ok();
    at_alice.command("send_message", body.clone()).await.ok();
    at_bob.new_message().await;
    body["content"] = json!("other");
    at_alice.command("send_message", body).await.refused(
        422,
        "idempotency_mismatch",
        Some("client_message_id"),
    );
    let foreign = cluster.rest(1, user()).post("/api/v1/messages", text(conversation, "x")).await;
    assert_eq!(foreign.status, 404);
    cluster
        .rest(0, bob)
        .get(&format!("/api/v1/conversations/{conversation}/messages"))
        .await
        .body(200);
    let open = sum(cluster).await;
    let now = |name: &str| value(&open, name) - value(&before, name);
    assert_eq!(now("tidings_sockets_open"), 2.0);
    assert_eq!(now("tidings_sockets_opened_total"), 2.0);
    at_bob.close().await;
    let mut raw = crate::harness::raw::Raw::upgraded(cluster.addr(0)).await;
    raw.send(&[0xff, 0xff]).await;
    assert_eq!(raw.closed().await, Some(1002));
    drop(at_alice);
    cluster.settled().await;
    let after = until("all sockets are closed and counted", async || {
        let after = sum(cluster).await;
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
        "tidings_send_batch_messages_count",
        "tidings_commit_seconds_count",
        r#"tidings_stage_seconds_count{stage="received_committed"}"#,
        r#"tidings_stage_seconds_count{stage="committed_published"}"#,
        r#"tidings_stage_seconds_count{stage="queued_written"}"#,
        "tidings_end_to_end_seconds_count",
        "tidings_dispatch_published_total",
        "tidings_runs_settled_total",
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
        ["tidings_offline_file_syncs_total"]
    } else {
        ["tidings_kafka_produce_seconds_count"]
    };
    for name in only {
        assert!(moved(name) >= 1.0, "{name}");
    }
    for name in [
        "tidings_process_resident_bytes",
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
