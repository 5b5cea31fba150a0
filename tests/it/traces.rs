//! Traces, as a collector receives them: real protobuf over HTTP.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Headers, Message as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use crate::check::check;
use crate::harness::client::{Client, Opening};
use crate::harness::cluster::{Kind, Settings, id, on_ground, text, user};
use crate::harness::http::Rest;
use crate::harness::process::{Process, Signal};
use crate::harness::until;

const SECRET: &str = "the-cat-is-called-Schnurr";

/// Takes spans as an OpenTelemetry collector does.
struct Collector {
    addr: SocketAddr,
    spans: Arc<Mutex<Vec<Span>>>,
    _serving: AbortOnDropHandle<()>,
}

impl Collector {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let spans = Arc::new(Mutex::new(Vec::new()));
        let taken = spans.clone();
        let tasks = TaskTracker::new();
        let serving = tasks.clone().spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let taken = taken.clone();
                let service = service_fn(move |request| take(taken.clone(), request));
                tasks.spawn(async move {
                    let _ =
                        http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Self { addr, spans, _serving: AbortOnDropHandle::new(serving) }
    }

    fn settings(&self) -> [(&'static str, String); 2] {
        [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{}", self.addr)),
            ("OTEL_BSP_SCHEDULE_DELAY", "50".into()),
        ]
    }

    /// The span of this name in this trace, once it has come.
    async fn span(&self, trace: &str, name: &str) -> Span {
        until(&format!("the span {name}"), async || {
            let spans = self.spans.lock().unwrap();
            spans.iter().find(|span| hex(&span.trace_id) == trace && span.name == name).cloned()
        })
        .await
    }
}

async fn take(
    taken: Arc<Mutex<Vec<Span>>>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    assert_eq!(request.uri().path(), "/v1/traces");
    assert_eq!(request.headers()["content-type"], "application/x-protobuf");
    let body = request.into_body().collect().await.unwrap().to_bytes();
    assert!(!String::from_utf8_lossy(&body).contains(SECRET), "a content is told");
    let export = ExportTraceServiceRequest::decode(body).unwrap();
    for resource in export.resource_spans {
        let attributes = format!("{:?}", resource.resource);
        assert!(attributes.contains("service.name") && attributes.contains("tidings"));
        let scopes = resource.scope_spans.into_iter();
        taken.lock().unwrap().extend(scopes.flat_map(|scope| scope.spans));
    }
    Ok(Response::default())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn with(mut settings: Settings, more: &[(&str, String)]) -> Settings {
    settings.extend(more.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
    settings
}

/// A trace of a caller's: its id, and the header that tells of it.
fn callers(sampled: bool) -> (String, String) {
    let trace = user().simple().to_string();
    let header = format!("00-{trace}-00f067aa0ba902b7-0{}", u8::from(sampled));
    (trace, header)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_is_followed_from_the_call_to_the_record() {
    on_ground(Kind::Cluster, &[], async |ground| {
        let collector = Collector::start().await;
        let settings = with(ground.settings("0"), &collector.settings());
        let (mut node, addr) = Process::node(&settings).await;
        let alice = user();
        let rest = Rest::new(addr, Some(alice));
        let group = json!({ "kind": "group", "title": SECRET, "participants": [user()] });
        let group = id(&rest.post("/api/v1/conversations", group).await.body(201)["id"]);
        let send = async |header: &str| {
            let rest = rest.clone().with("traceparent", header);
            rest.post("/api/v1/messages", text(group, SECRET)).await.body(201);
        };
        // The other member is absent, which is certain only after a while: until then Reconcile hands
        // over, which is no part of the call.
        let records = Records::of(&settings);
        let (trace, headers) = until("a record that is part of the call", async || {
            let (trace, header) = callers(true);
            send(&header).await;
            let found = records.next(Duration::from_secs(2));
            found.filter(|parent| parent.contains(&trace)).map(|parent| (trace, parent))
        })
        .await;
        let call = collector.span(&trace, "POST /api/v1/messages").await;
        assert_eq!(hex(&call.parent_span_id), "00f067aa0ba902b7");
        let attributes = format!("{:?}", call.attributes);
        assert!(attributes.contains("/api/v1/messages") && attributes.contains("IntValue(201)"));
        let whole = collector.span(&trace, "send").await;
        assert_eq!(whole.parent_span_id, call.span_id);
        let mut last = 0;
        for stage in ["queue", "commit", "dispatch"] {
            let stage = collector.span(&trace, stage).await;
            assert_eq!(stage.parent_span_id, whole.span_id);
            assert!(stage.start_time_unix_nano >= last, "one after the other");
            last = stage.end_time_unix_nano;
        }
        let topic = ground.setting("KAFKA_OFFLINE_TOPIC");
        let publish = collector.span(&trace, &format!("{topic} publish")).await;
        assert_eq!(publish.parent_span_id, collector.span(&trace, "dispatch").await.span_id);
        assert_eq!(headers, format!("00-{trace}-{}-01", hex(&publish.span_id)));

        // Who does not want his trace kept has no spans, and goes on being told of as unsampled.
        let (unwanted, header) = callers(false);
        send(&header).await;
        // Before it may come what Reconcile hands over of the sends above.
        let parent = until("its record", async || {
            let found = records.next(Duration::from_secs(2));
            found.filter(|parent| parent.starts_with(&format!("00-{unwanted}-")))
        })
        .await;
        assert!(parent.ends_with("-00"), "{parent}");

        // A send by socket begins a trace of its own.
        let mut socket = Client::open(addr, Opening::new(alice)).await.unwrap();
        socket.command("send_message", text(group, SECRET)).await.ok();
        until("a send without a call", async || {
            let spans = collector.spans.lock().unwrap();
            spans.iter().find(|one| one.name == "send" && one.parent_span_id.is_empty()).map(drop)
        })
        .await;
        drop(socket);
        let before = collector.spans.lock().unwrap().len();
        rest.get("/api/v1/conversations").await.body(200);
        node.signal(Signal::TERM);
        assert!(node.exit().await.success());
        let spans = collector.spans.lock().unwrap();
        assert!(spans.len() > before, "what waits at the end is sent");
        assert!(spans.iter().all(|span| hex(&span.trace_id) != unwanted));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_is_checked_without_spans() {
    on_ground(Kind::Embedded, &[], async |ground| {
        let collector = Collector::start().await;
        let told = check(&with(ground.settings("0"), &collector.settings())).await;
        told.expect("traces", "collector", "ok", "takes spans");
        assert!(collector.spans.lock().unwrap().is_empty());
        let nowhere = "http://127.0.0.1:1/geheim".to_owned();
        let settings = with(ground.settings("0"), &[("OTEL_EXPORTER_OTLP_ENDPOINT", nowhere)]);
        check(&settings).await.expect("traces", "collector", "warning", "127.0.0.1:1: ");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_away_or_stuck_harms_nobody() {
    on_ground(Kind::Embedded, &[], async |ground| {
        let stuck = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let stuck = stuck.local_addr().unwrap();
        for (name, place) in [("0", "127.0.0.1:1".to_owned()), ("1", stuck.to_string())] {
            let endpoint = [("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{place}"))];
            let (mut node, addr) = Process::node(&with(ground.settings(name), &endpoint)).await;
            let rest = Rest::new(addr, Some(user()));
            let group = json!({ "kind": "group", "participants": [user()] });
            let group = id(&rest.post("/api/v1/conversations", group).await.body(201)["id"]);
            for _ in 0..20 {
                rest.post("/api/v1/messages", text(group, "hi")).await.body(201);
            }
            node.signal(Signal::TERM);
            assert!(node.exit().await.success(), "{}", node.errors());
        }
    })
    .await;
}

/// Of the topic of one node: the header `traceparent` of each record, as they come.
struct Records(BaseConsumer);

impl Records {
    fn of(settings: &Settings) -> Self {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &settings["KAFKA_BROKERS"]).set("group.id", "none");
        let consumer: BaseConsumer = config.create().unwrap();
        let mut all = TopicPartitionList::new();
        for partition in 0..2 {
            let topic = &settings["KAFKA_OFFLINE_TOPIC"];
            all.add_partition_offset(topic, partition, Offset::Beginning).unwrap();
        }
        consumer.assign(&all).unwrap();
        Self(consumer)
    }

    fn next(&self, wait: Duration) -> Option<String> {
        let record = self.0.poll(wait)?.unwrap();
        let mut headers = record.headers().unwrap().iter();
        let header = headers.find(|header| header.key == "traceparent").expect("each has one");
        Some(String::from_utf8(header.value.unwrap().to_vec()).unwrap())
    }
}
