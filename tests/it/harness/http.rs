//! A small REST client: one connection per request, deadlines on everything.

use std::net::SocketAddr;

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{HeaderMap, Request};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use uuid::Uuid;

use super::{PATIENCE, contract, within};

#[derive(Clone)]
pub struct Rest {
    addr: SocketAddr,
    headers: Vec<(String, String)>,
}

#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: HeaderMap,
    pub text: String,
}

impl Rest {
    pub fn new(addr: SocketAddr, user: Option<Uuid>) -> Self {
        let rest = Self { addr, headers: Vec::new() };
        match user {
            Some(user) => rest.with("x-user-id", &user.to_string()),
            None => rest,
        }
    }

    /// With one more header on each request.
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    pub async fn get(&self, path: &str) -> Reply {
        self.call("GET", path, "").await
    }

    pub async fn post(&self, path: &str, body: Value) -> Reply {
        self.call("POST", path, &body.to_string()).await
    }

    pub async fn patch(&self, path: &str, body: Value) -> Reply {
        self.call("PATCH", path, &body.to_string()).await
    }

    pub async fn delete(&self, path: &str) -> Reply {
        self.call("DELETE", path, "").await
    }

    pub async fn call(&self, method: &str, path: &str, body: &str) -> Reply {
        let what = format!("an answer to {method} {path}");
        let answered = self.try_call(method, path, body);
        within(PATIENCE, &what, answered).await.unwrap_or_else(|error| panic!("no {what}: {error}"))
    }

    /// An error if the node cannot be reached, or goes away before it answers.
    pub async fn try_call(&self, method: &str, path: &str, body: &str) -> anyhow::Result<Reply> {
        let stream = TcpStream::connect(self.addr).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let mut request = Request::builder().method(method).uri(path);
        request = request.header("host", self.addr.to_string());
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        let request = request.body(Full::new(Bytes::from(body.to_owned())))?;
        let answer = async {
            let response = sender.send_request(request).await?;
            let (head, body) = response.into_parts();
            let bytes = body.collect().await?.to_bytes();
            let text = String::from_utf8(bytes.into())?;
            anyhow::Ok(Reply { status: head.status.as_u16(), headers: head.headers, text })
        };
        let mut answer = std::pin::pin!(answer);
        let reply = tokio::select! {
            reply = &mut answer => reply,
            // The server may close first: what it answered is there all the same.
            _ = connection => answer.await,
        }?;
        contract::check_reply(method, path, body, &reply);
        Ok(reply)
    }
}

impl Reply {
    /// The JSON of an answer that must have this status.
    pub fn body(self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.text);
        self.json()
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("no JSON: {self:?}"))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    /// A refusal as it is promised: status, code and field of a problem, told as such.
    pub fn refused(self, status: u16, code: &str, field: Option<&str>) -> Value {
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self:?}");
        let id = self.header("x-request-id").expect("it has an id").to_owned();
        let problem = self.body(status);
        check_problem(&problem, status, code, field);
        assert_eq!(problem["request_id"], id.as_str());
        problem
    }
}

/// That a problem says what happened, in the words promised.
pub fn check_problem(problem: &Value, status: u16, code: &str, field: Option<&str>) {
    assert_eq!(problem["status"], status, "{problem}");
    assert_eq!(problem["code"], code, "{problem}");
    assert_eq!(problem.get("field").and_then(Value::as_str), field, "{problem}");
    assert_eq!(problem["type"], format!("urn:tidings:problem:{code}"), "{problem}");
    for name in ["title", "detail"] {
        assert!(problem[name].as_str().is_some_and(|text| text.len() > 3), "{problem}");
    }
}
