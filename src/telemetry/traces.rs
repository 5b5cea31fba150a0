//! Traces by OpenTelemetry, sent as OTLP over HTTP to a collector; nothing at all unless the settings
//! name one: then there is no tracer, every [`Span`] and [`Trace`] is an empty option, and starting
//! one costs the look at a static.
//!
//! Spans are explicit values and not `tracing`'s: a message's way leads through queues between tasks,
//! and what belongs to no trace is to cost nothing. They hold ids and counts, never contents.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::OnceLock;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::HeaderMap;
use hyper::body::Bytes;
use hyper::header::CONTENT_TYPE;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use opentelemetry::trace::{
    Span as _, SpanBuilder, SpanContext, SpanId, SpanKind, Status, TraceContextExt, TraceFlags,
    TraceId, TraceState, Tracer as _, TracerProvider as _,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_http::{HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracer, SdkTracerProvider,
};
use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;

use crate::build_info::VERSION;
use crate::config::TracesConfig;
use crate::finding::Findings;

/// Spans that may wait for the collector; beyond, they are dropped.
const QUEUE: usize = 8_192;
const BATCH: usize = 512;
/// For one batch: a collector that is stuck costs nothing but these spans.
const EXPORT_LIMIT: Duration = Duration::from_secs(5);
/// For what waits at the end.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);
/// Of the collector's answer, which tells little.
const MAX_ANSWER_BYTES: usize = 64 << 10;
/// The header of the W3C's Trace Context.
const TRACEPARENT: &str = "traceparent";

static TRACER: OnceLock<SdkTracer> = OnceLock::new();

/// Sends no spans, as a node would, and says whether they would be taken.
pub async fn check(config: &TracesConfig, found: &mut Findings) {
    let endpoint = &config.endpoint;
    // Path and query may hold a secret.
    let place = endpoint.authority().map(ToString::to_string).unwrap_or_default();
    let asked = async {
        let request = Request::post(endpoint.clone())
            .header(CONTENT_TYPE, "application/x-protobuf")
            .body(Bytes::new())?;
        Ok::<_, HttpError>(Sender::new()?.send_bytes(request).await?.status())
    };
    let fix = "start it, or see that OTEL_EXPORTER_OTLP_ENDPOINT names it: spans it does not take are \
               dropped";
    match asked.await {
        Ok(status) if status.is_success() => found.ok("collector", format!("{place} takes spans")),
        Ok(status) => found.warning("collector", format!("{place} answers {status}"), fix),
        Err(error) => found.warning("collector", format!("{place}: {error}"), fix),
    }
}

/// Sends what waits when it is closed.
pub struct Traces(SdkTracerProvider);

/// Called once, inside the runtime that is to send; None without a collector.
pub fn init(config: Option<&TracesConfig>) -> anyhow::Result<Option<Traces>> {
    let Some(config) = config else { return Ok(None) };
    let exporter = SpanExporter::builder()
        .with_http()
        .with_http_client(Sender::new()?)
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(config.endpoint.to_string())
        .with_timeout(EXPORT_LIMIT)
        .build()?;
    let batches = BatchConfigBuilder::default()
        .with_max_queue_size(QUEUE)
        .with_max_export_batch_size(BATCH)
        .build();
    let resource = Resource::builder()
        .with_service_name(config.service.clone())
        .with_attribute(KeyValue::new("service.version", VERSION))
        .build();
    let provider = SdkTracerProvider::builder()
        .with_span_processor(
            BatchSpanProcessor::builder(exporter).with_batch_config(batches).build(),
        )
        // Who calls us has decided for his traces.
        .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(config.ratio))))
        .with_resource(resource)
        .build();
    let _ = TRACER.set(provider.tracer("tidings"));
    Ok(Some(Traces(provider)))
}

pub fn is_on() -> bool {
    TRACER.get().is_some()
}

impl Traces {
    pub async fn close(self) {
        // Waits for its thread, which needs this runtime to send.
        let closed = tokio::task::spawn_blocking(move || self.0.shutdown_with_timeout(CLOSE_LIMIT));
        if !matches!(closed.await, Ok(Ok(()))) {
            tracing::info!("the last spans were not sent");
        }
    }
}

/// A place in a trace, under which what follows is hung; empty where nothing is traced.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Trace(Option<Box<SpanContext>>);

impl Trace {
    /// For those who go on with it: `00-<trace>-<span>-<flags>`.
    pub fn traceparent(&self) -> Option<String> {
        let context = self.0.as_deref()?;
        let flags = context.trace_flags() & TraceFlags::SAMPLED;
        let (trace, span) = (context.trace_id(), context.span_id());
        Some(format!("00-{trace:032x}-{span:016x}-{flags:02x}"))
    }

    pub fn of_headers(headers: &HeaderMap) -> Self {
        if TRACER.get().is_none() {
            return Self(None);
        }
        let mut given = headers.get_all(TRACEPARENT).iter();
        let (Some(value), None) = (given.next(), given.next()) else { return Self(None) };
        Self(value.to_str().ok().and_then(parse).map(Box::new))
    }
}

/// None of what is not of the standard's form: a new trace begins then.
fn parse(traceparent: &str) -> Option<SpanContext> {
    let mut parts = traceparent.split('-');
    let (version, trace, span, flags) =
        (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let lower_hex = |text: &str, length: usize| {
        text.len() == length && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    };
    let formed = lower_hex(version, 2) && lower_hex(trace, 32) && lower_hex(span, 16);
    // A later version may say more behind these.
    let ended = version != "00" || parts.next().is_none();
    if !formed || !lower_hex(flags, 2) || version == "ff" || !ended {
        return None;
    }
    let context = SpanContext::new(
        TraceId::from_hex(trace).ok()?,
        SpanId::from_hex(span).ok()?,
        TraceFlags::new(u8::from_str_radix(flags, 16).ok()?) & TraceFlags::SAMPLED,
        true,
        TraceState::default(),
    );
    context.is_valid().then_some(context)
}

/// A piece of work under way, which ends when this is dropped; empty where nothing is traced.
#[derive(Default)]
pub struct Span(Option<Box<opentelemetry_sdk::trace::Span>>);

impl Span {
    /// What a client asked for.
    pub fn of_request(name: impl FnOnce() -> String, parent: &Trace) -> Self {
        Self::start(SpanKind::Server, parent, name)
    }

    pub fn inner(name: &'static str, parent: &Trace) -> Self {
        Self::start(SpanKind::Internal, parent, || name.to_owned())
    }

    /// What another service goes on with.
    pub fn of_record(name: impl FnOnce() -> String, parent: &Trace) -> Self {
        Self::start(SpanKind::Producer, parent, name)
    }

    fn start(kind: SpanKind, parent: &Trace, name: impl FnOnce() -> String) -> Self {
        let Some(tracer) = TRACER.get() else { return Self(None) };
        let builder = SpanBuilder::from_name(name()).with_kind(kind);
        let context = match &parent.0 {
            Some(parent) => Context::new().with_remote_span_context((**parent).clone()),
            None => Context::new(),
        };
        Self(Some(Box::new(tracer.build_with_context(builder, &context))))
    }

    pub fn trace(&self) -> Trace {
        Trace(self.0.as_ref().map(|span| Box::new(span.span_context().clone())))
    }

    /// Of ids and counts only.
    pub fn set(&mut self, key: &'static str, value: impl fmt::Display) {
        if let Some(span) = self.0.as_mut().filter(|span| span.is_recording()) {
            span.set_attribute(KeyValue::new(key, value.to_string()));
        }
    }

    pub fn count(&mut self, key: &'static str, value: usize) {
        if let Some(span) = self.0.as_mut().filter(|span| span.is_recording()) {
            span.set_attribute(KeyValue::new(key, value as i64));
        }
    }

    /// `reason`: a code, never a text that could hold what a client sent.
    pub fn failed(&mut self, reason: &'static str) {
        if let Some(span) = &mut self.0 {
            span.set_status(Status::error(reason));
        }
    }
}

/// A message's way from its submission on: the whole, and the stage it is in.
#[derive(Default)]
pub struct Way(Option<Box<(Span, Span)>>);

impl Way {
    pub fn begin(name: &'static str, parent: &Trace) -> Self {
        if TRACER.get().is_none() {
            return Self(None);
        }
        Self(Some(Box::new((Span::inner(name, parent), Span(None)))))
    }

    /// Ends the stage before.
    pub fn stage(&mut self, name: &'static str) {
        if let Some(way) = &mut self.0 {
            way.1 = Span(None);
            way.1 = Span::inner(name, &way.0.trace());
        }
    }

    /// Of the whole.
    pub fn set(&mut self, key: &'static str, value: impl fmt::Display) {
        if let Some(way) = &mut self.0 {
            way.0.set(key, value);
        }
    }

    pub fn failed(&mut self, reason: &'static str) {
        if let Some(way) = &mut self.0 {
            way.0.failed(reason);
        }
    }

    /// Of the stage.
    pub fn trace(&self) -> Trace {
        self.0.as_ref().map_or(Trace(None), |way| way.1.trace())
    }
}

/// The exporter's thread knows no runtime: it is lent the one of the node.
struct Sender {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    runtime: Handle,
    tasks: TaskTracker,
}

impl Sender {
    fn new() -> anyhow::Result<Self> {
        let tls = HttpsConnectorBuilder::new()
            .with_provider_and_webpki_roots(rustls::crypto::ring::default_provider())?;
        let connector = tls.https_or_http().enable_http1().build();
        let client = Client::builder(TokioExecutor::new()).build(connector);
        Ok(Self { client, runtime: Handle::current(), tasks: TaskTracker::new() })
    }
}

impl fmt::Debug for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sender")
    }
}

type Sending<'a> = Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'a>>;

impl HttpClient for Sender {
    fn send_bytes<'a: 'b, 'b>(&'a self, request: Request<Bytes>) -> Sending<'b>
    where
        Self: 'b,
    {
        let client = self.client.clone();
        let answer = async move {
            let (head, body) = client.request(request.map(Full::new)).await?.into_parts();
            let body = Limited::new(body, MAX_ANSWER_BYTES).collect().await?;
            Ok::<_, HttpError>(Response::from_parts(head, body.to_bytes()))
        };
        // Inside, for the clock and the sockets are those of the runtime.
        let sent = self.tasks.spawn_on(
            async move { tokio::time::timeout(EXPORT_LIMIT, answer).await? },
            &self.runtime,
        );
        Box::pin(async { sent.await? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_traceparent_is_the_standards_or_none() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let read = |text: &str| Trace(parse(text).map(Box::new)).traceparent();
        assert_eq!(read(good).as_deref(), Some(good));
        let later = "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-03-what";
        assert_eq!(read(later).as_deref(), Some(good));
        let unsampled = good.replace("-01", "-00");
        assert_eq!(read(&unsampled).as_deref(), Some(&*unsampled));
        for wrong in [
            "",
            "00",
            &good.replace("00-", "ff-"),
            &good.to_uppercase(),
            &format!("{good}-more"),
            &good.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            &good.replace("00f067aa0ba902b7", &"0".repeat(16)),
            &good.replace("-01", "-1"),
        ] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn without_a_collector_nothing_is_made() {
        let mut span = Span::of_request(|| unreachable!("not even a name"), &Trace::default());
        span.set("id", "1");
        assert_eq!(span.trace(), Trace::default());
        let mut way = Way::begin("send", &span.trace());
        way.stage("queue");
        assert!(way.0.is_none() && way.trace().traceparent().is_none());
    }

    #[test]
    fn what_is_carried_through_queues_is_one_pointer() {
        assert_eq!(size_of::<Trace>(), size_of::<usize>());
        assert_eq!(size_of::<Span>(), size_of::<usize>());
        assert_eq!(size_of::<Way>(), size_of::<usize>());
    }
}
