//! A WebSocket client by another implementation than the server's, with deadlines on everything. It
//! reads in the background, as clients do, so that the server's pings are answered at any time.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::{HeaderName, HeaderValue};
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async};
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::http::{Reply, check_problem};
use super::{PATIENCE, contract, within};

/// Of the kernel, in bytes, for a client that reads little.
const SMALL_BUFFER: u32 = 4 << 10;
/// Frames that may wait for the test.
const MAX_WAITING: usize = 100_000;

/// How a socket is opened.
#[derive(Clone, Debug)]
pub struct Opening {
    pub user: Uuid,
    pub device: String,
    pub classic: bool,
    pub headers: Vec<(&'static str, String)>,
    /// What is asked for in the query, with its question mark.
    pub query: String,
    /// Reads only what is waited for, and the kernel has little room for the rest.
    pub lazy: bool,
}

impl Opening {
    pub fn new(user: Uuid) -> Self {
        let device = format!("device-{}", Uuid::new_v4());
        let query = String::new();
        Self { user, device, classic: false, headers: Vec::new(), query, lazy: false }
    }
}

/// The answer to a handshake that was refused.
#[derive(Debug)]
pub struct Refused {
    pub status: u16,
    pub problem: Value,
    pub retry_after: Option<String>,
}

pub struct Client {
    pub user: Uuid,
    pub device: String,
    /// The payload of the first event.
    pub hello: Value,
    pub subprotocol: Option<String>,
    sink: SplitSink<WebSocketStream<TcpStream>, Message>,
    incoming: mpsc::Receiver<Incoming>,
    /// How many frames may be read.
    wanted: Arc<Semaphore>,
    reading: AbortHandle,
    /// What came and was not asked for yet, oldest first.
    waiting: VecDeque<Value>,
    closed: Option<(u16, String)>,
    refs: u64,
    /// The commands that were not answered yet, by their ref.
    asked: HashMap<String, Value>,
}

/// The answer to a command.
#[derive(Debug)]
pub enum Answer {
    Ok(Value),
    Error(Value),
}

impl Client {
    /// Opens a socket and waits for its hello.
    pub async fn open(addr: SocketAddr, opening: Opening) -> Result<Self, Refused> {
        let mut client = Self::handshake(addr, opening).await?;
        let hello = client.event("hello", "the first event").await;
        client.hello = hello;
        Ok(client)
    }

    /// Opens a socket which may be closed before its hello.
    pub async fn handshake(addr: SocketAddr, opening: Opening) -> Result<Self, Refused> {
        let socket = TcpSocket::new_v4().unwrap();
        if opening.lazy {
            socket.set_recv_buffer_size(SMALL_BUFFER).unwrap();
        }
        let stream = within(PATIENCE, "a connection", socket.connect(addr)).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let mut request = format!("ws://{addr}/ws{}", opening.query).into_client_request().unwrap();
        let mut set = |name: &'static str, value: &str| {
            let name = HeaderName::from_static(name);
            request.headers_mut().insert(name, HeaderValue::from_str(value).unwrap());
        };
        set("x-user-id", &opening.user.to_string());
        set("x-device-id", &opening.device);
        set("x-platform", "web");
        set("x-app-version", "1.0");
        if !opening.classic {
            set("sec-websocket-protocol", "tidings.v1.json");
        }
        opening.headers.iter().for_each(|(name, value)| set(name, value));
        let (socket, response) =
            match within(PATIENCE, "a handshake", client_async(request, stream)).await {
                Ok(opened) => opened,
                Err(Error::Http(response)) => {
                    let retry_after = response.headers().get("retry-after");
                    let retry_after = retry_after.map(|value| value.to_str().unwrap().to_owned());
                    let body = response.body().as_deref().unwrap_or_default();
                    // The library reads no further than what came with the head.
                    let problem: Value = serde_json::from_slice(body).unwrap_or_default();
                    let status = response.status().as_u16();
                    if problem.is_object() {
                        let headers = response.headers().iter().map(|(name, value)| {
                            let name =
                                hyper::header::HeaderName::from_bytes(name.as_ref()).unwrap();
                            (
                                name,
                                hyper::header::HeaderValue::from_bytes(value.as_bytes()).unwrap(),
                            )
                        });
                        let headers = headers.collect();
                        let text = String::from_utf8(body.to_vec()).unwrap();
                        contract::check_reply("GET", "/ws", "", &Reply { status, headers, text });
                    }
                    return Err(Refused { status, problem, retry_after });
                }
                Err(error) => panic!("no handshake: {error}"),
            };
        let (sink, stream) = socket.split();
        let (sender, incoming) = mpsc::channel(MAX_WAITING);
        let wanted = if opening.lazy { 0 } else { MAX_WAITING };
        let wanted = Arc::new(Semaphore::new(wanted));
        let reading = TaskTracker::new().spawn(read(stream, sender, wanted.clone()));
        let subprotocol = response.headers().get("sec-websocket-protocol");
        Ok(Self {
            user: opening.user,
            device: opening.device,
            hello: Value::Null,
            subprotocol: subprotocol.map(|name| name.to_str().unwrap().to_owned()),
            sink,
            incoming,
            wanted,
            reading: reading.abort_handle(),
            waiting: VecDeque::new(),
            closed: None,
            refs: 0,
            asked: HashMap::new(),
        })
    }

    /// Sends a text frame as it is.
    pub async fn send_text(&mut self, text: &str) {
        let sent = self.sink.send(Message::text(text));
        within(PATIENCE, "a frame goes out", sent).await.expect("the socket is open");
    }

    /// The same on a socket that the server may have closed meanwhile, which shows by what is read.
    pub async fn try_send_text(&mut self, text: &str) {
        let sent = self.sink.send(Message::text(text));
        let _ = within(PATIENCE, "a frame goes out", sent).await;
    }

    pub async fn send_binary(&mut self, bytes: &[u8]) {
        let sent = self.sink.send(Message::binary(bytes.to_vec()));
        within(PATIENCE, "a frame goes out", sent).await.expect("the socket is open");
    }

    /// Sends a command and does not wait for its answer; returns its ref.
    pub async fn submit(&mut self, kind: &str, payload: Value) -> String {
        self.refs += 1;
        let reference = format!("r{}", self.refs);
        let command = json!({ "type": kind, "ref": reference, "payload": payload });
        self.send_text(&command.to_string()).await;
        self.asked.insert(reference.clone(), command);
        reference
    }

    /// Sends a command and waits for its answer.
    pub async fn command(&mut self, kind: &str, payload: Value) -> Answer {
        let reference = self.submit(kind, payload).await;
        self.answer(&reference).await
    }

    pub async fn answer(&mut self, reference: &str) -> Answer {
        let what = format!("the answer to {reference}");
        let mut answer = self.find(&what, |event| event["ref"] == reference).await;
        let payload = answer["payload"].take();
        match answer["type"].as_str() {
            Some("ok") => Answer::Ok(payload),
            Some("error") => Answer::Error(payload),
            _ => panic!("no answer: {answer}"),
        }
    }

    /// Sends a message; returns it as it was stored.
    pub async fn send(&mut self, conversation: Uuid, content: &str) -> Value {
        let command = super::cluster::text(conversation, content);
        self.command("send_message", command).await.ok()["message"].take()
    }

    /// The payload of the next event of this type.
    pub async fn event(&mut self, kind: &str, what: &str) -> Value {
        let what = format!("{kind}: {what}");
        self.find(&what, |event| event["type"] == kind).await["payload"].take()
    }

    /// The next event, whatever it is; None if the socket is closed before it.
    pub async fn try_next(&mut self) -> Option<Value> {
        match self.waiting.pop_front() {
            Some(event) => Some(event),
            None => within(PATIENCE, "an event or the end", self.receive()).await,
        }
    }

    /// The payload of the next event of this type; None if the socket is closed before it.
    pub async fn try_event(&mut self, kind: &str) -> Option<Value> {
        loop {
            let mut event = self.try_next().await?;
            if event["type"] == kind {
                return Some(event["payload"].take());
            }
        }
    }

    /// The next new message, whole.
    pub async fn new_message(&mut self) -> Value {
        self.event("new_message", "a message").await["message"].take()
    }

    /// The next new message, for which there may be reasons to come late.
    pub async fn new_message_within(&mut self, limit: Duration) -> Value {
        let is_one = |event: &Value| event["type"] == "new_message";
        self.find_within(limit, "a message", is_one).await["payload"]["message"].take()
    }

    /// Takes the oldest event for which `wanted` holds, waiting for it if it has not come yet.
    pub async fn find(&mut self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        self.find_within(PATIENCE, what, wanted).await
    }

    async fn find_within(
        &mut self,
        limit: Duration,
        what: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> Value {
        if let Some(at) = self.waiting.iter().position(&wanted) {
            return self.waiting.remove(at).unwrap();
        }
        let deadline = Instant::now() + limit;
        loop {
            let event = match tokio::time::timeout_at(deadline, self.receive()).await {
                Ok(Some(event)) => event,
                Ok(None) => panic!("closed with {:?} before {what}", self.closed),
                Err(_) => panic!("not within {limit:?}: {what}; came: {:?}", self.waiting),
            };
            if wanted(&event) {
                return event;
            }
            self.waiting.push_back(event);
        }
    }

    /// Asks the server for a sign of life; then takes all that has come until then.
    pub async fn drain(&mut self) -> Vec<Value> {
        self.send_text(r#"{"type":"ping"}"#).await;
        self.event("pong", "a sign of life").await;
        std::mem::take(&mut self.waiting).into()
    }

    /// Reads and throws away, for this long: the client's buffers go empty, the server's too.
    pub async fn read_for(&mut self, time: Duration) {
        let deadline = Instant::now() + time;
        while let Ok(Some(event)) = tokio::time::timeout_at(deadline, self.receive()).await {
            self.waiting.push_back(event);
        }
    }

    /// Waits for the close, and takes its code and reason; what came before it is thrown away.
    pub async fn closed(&mut self) -> (u16, String) {
        let end = async { while self.receive().await.is_some() {} };
        within(PATIENCE, "the socket is closed", end).await;
        self.closed.clone().expect("the server says why it closes")
    }

    /// None when the socket is closed. Cancel safe.
    async fn receive(&mut self) -> Option<Value> {
        loop {
            self.wanted.add_permits(1);
            match self.incoming.recv().await? {
                Incoming::Text(text) => {
                    let event = serde_json::from_str(&text);
                    let event: Value = event.unwrap_or_else(|_| panic!("no JSON: {text}"));
                    let asked = event["ref"].as_str().and_then(|name| self.asked.remove(name));
                    contract::check_event(&event, asked.as_ref());
                    return Some(event);
                }
                Incoming::Close(code, reason) => self.closed = Some((code, reason)),
            }
        }
    }

    /// Closes as a client should, and waits until the server has agreed.
    pub async fn close(mut self) {
        let closed = self.sink.send(Message::Close(None));
        within(PATIENCE, "a close goes out", closed).await.expect("the socket is open");
        let end = async { while self.receive().await.is_some() {} };
        within(PATIENCE, "the server agrees to the close", end).await;
    }
}

impl Drop for Client {
    /// The connection is cut.
    fn drop(&mut self) {
        self.reading.abort();
    }
}

enum Incoming {
    Text(String),
    Close(u16, String),
}

/// Until the socket ends. Pings are answered underneath.
async fn read(
    mut stream: SplitStream<WebSocketStream<TcpStream>>,
    incoming: mpsc::Sender<Incoming>,
    wanted: Arc<Semaphore>,
) {
    while let Ok(permit) = wanted.acquire().await {
        permit.forget();
        let came = match stream.next().await {
            Some(Ok(Message::Text(text))) => Incoming::Text(text.to_string()),
            Some(Ok(Message::Close(Some(frame)))) => {
                Incoming::Close(frame.code.into(), frame.reason.to_string())
            }
            Some(Ok(_)) => {
                wanted.add_permits(1);
                continue;
            }
            Some(Err(_)) | None => return,
        };
        if incoming.send(came).await.is_err() {
            return;
        }
    }
}

impl Answer {
    pub fn ok(self) -> Value {
        match self {
            Self::Ok(payload) => payload,
            Self::Error(problem) => panic!("refused: {problem}"),
        }
    }

    pub fn refused(self, status: u16, code: &str, field: Option<&str>) -> Value {
        match self {
            Self::Ok(payload) => panic!("accepted: {payload}"),
            Self::Error(problem) => {
                check_problem(&problem, status, code, field);
                problem
            }
        }
    }
}
