//! The few REST calls that prepare a run, on one connection that is kept.

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;
use uuid::Uuid;

use crate::key::Key;
use crate::target::Target;

const TIMEOUT: Duration = Duration::from_secs(15);

pub struct Rest {
    requests: SendRequest<Full<Bytes>>,
    host: String,
    key: Option<Key>,
    /// hyper's half of the connection; ends with us.
    _connection: JoinSet<()>,
}

/// A conversation that was just created.
#[derive(Clone, Copy, Debug)]
pub struct Created {
    pub id: Uuid,
    /// The log's head when everybody had joined.
    pub last_seq: u64,
}

impl Rest {
    pub async fn connect(target: &Target) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(target.addr).await;
        let stream = stream.with_context(|| format!("no server at {}", target.addr))?;
        stream.set_nodelay(true)?;
        let (requests, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            // How it ended shows in the request that was under way.
            let _: Result<(), hyper::Error> = connection.await;
        });
        let (host, key) = (target.host.clone(), target.key.clone());
        Ok(Self { requests, host, key, _connection: tasks })
    }

    pub async fn create_direct(&mut self, owner: Uuid, other: Uuid) -> anyhow::Result<Created> {
        self.create(owner, json!({ "kind": "direct", "participants": [other] })).await
    }

    pub async fn create_group(
        &mut self,
        owner: Uuid,
        title: &str,
        others: &[Uuid],
    ) -> anyhow::Result<Created> {
        self.create(owner, json!({ "kind": "group", "title": title, "participants": others })).await
    }

    async fn create(&mut self, owner: Uuid, body: Value) -> anyhow::Result<Created> {
        let answer = self.post("/api/v1/conversations", owner, &body).await?;
        let id = answer["id"].as_str().and_then(|id| id.parse().ok());
        let last_seq = answer["last_seq"].as_u64();
        let (Some(id), Some(last_seq)) = (id, last_seq) else {
            bail!("a conversation without id or last_seq: {answer}");
        };
        Ok(Created { id, last_seq })
    }

    pub async fn send_text(
        &mut self,
        user: Uuid,
        conversation: Uuid,
        content: &str,
    ) -> anyhow::Result<()> {
        let body = json!({
            "conversation_id": conversation,
            "message_type": "text",
            "content": content,
            "client_message_id": Uuid::new_v4(),
        });
        self.post("/api/v1/messages", user, &body).await?;
        Ok(())
    }

    pub async fn get(&mut self, path: &str, user: Uuid) -> anyhow::Result<Value> {
        let (status, answer) = self.call(Method::GET, path, user, None).await?;
        ensure!(status.is_success(), "GET {path}: {status} {answer}");
        Ok(answer)
    }

    /// What is no JSON, and nobody's own.
    pub async fn text(&mut self, path: &str) -> anyhow::Result<String> {
        let request = Request::get(path).header("host", &self.host).body(Full::default())?;
        let (status, body) = self.request(request).await.with_context(|| format!("GET {path}"))?;
        ensure!(status.is_success(), "GET {path}: {status}");
        Ok(String::from_utf8(body.into())?)
    }

    pub async fn post(&mut self, path: &str, user: Uuid, body: &Value) -> anyhow::Result<Value> {
        let (status, answer) = self.call(Method::POST, path, user, Some(body)).await?;
        ensure!(status.is_success(), "POST {path}: {status} {answer}");
        Ok(answer)
    }

    /// One request; the answer is null where there is none. An error means that its outcome is not
    /// known, and the connection is of no more use.
    pub async fn call(
        &mut self,
        method: Method,
        path: &str,
        user: Uuid,
        body: Option<&Value>,
    ) -> anyhow::Result<(StatusCode, Value)> {
        let body = body.map_or_else(Bytes::new, |body| body.to_string().into());
        let mut request = Request::builder()
            .method(method.clone())
            .uri(path)
            .header("host", &self.host)
            .header("content-type", "application/json")
            .header("x-user-id", user.to_string());
        if let Some(key) = &self.key {
            request = request.header("authorization", format!("Bearer {}", key.token(user)));
        }
        let request = request.body(Full::from(body))?;
        let answer = self.request(request).await;
        let (status, body) = answer.with_context(|| format!("{method} {path}"))?;
        if body.is_empty() {
            return Ok((status, Value::Null));
        }
        let answer = serde_json::from_slice(&body);
        Ok((status, answer.with_context(|| format!("{method} {path}: not JSON"))?))
    }

    async fn request(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> anyhow::Result<(StatusCode, Bytes)> {
        let call = async {
            self.requests.ready().await?;
            let response = self.requests.send_request(request).await?;
            let status = response.status();
            let body = response.into_body().collect().await?.to_bytes();
            anyhow::Ok((status, body))
        };
        timeout(TIMEOUT, call).await.context("no answer in time").flatten()
    }
}
