//! How answers look, and how what is asked for is read from path and query.

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::{Response, StatusCode};
use serde::Serialize;
use tokio::sync::oneshot;

use super::Call;
use crate::ids::{ConversationId, MessageId, UserId};
use crate::protocol::command::{self, MAX_PAGE};
use crate::protocol::problem::Problem;

pub type Answer = Result<Response<Full<Bytes>>, Problem>;

pub const DEFAULT_PAGE: u32 = 50;

pub fn json<T: Serialize>(status: StatusCode, value: &T) -> Response<Full<Bytes>> {
    let body = serde_json::to_vec(value).expect("answers have string keys and no failing parts");
    with_type(status, "application/json", body.into())
}

pub fn ok<T: Serialize>(value: &T) -> Answer {
    Ok(json(StatusCode::OK, value))
}

pub fn no_content() -> Answer {
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::NO_CONTENT;
    Ok(response)
}

pub fn problem(problem: &Problem) -> Response<Full<Bytes>> {
    let status = StatusCode::from_u16(problem.code.status()).expect("codes hold valid statuses");
    let body = serde_json::to_vec(problem).expect("problems have no failing parts");
    let mut response = with_type(status, "application/problem+json", body.into());
    if let Some(retry_ms) = problem.retry_ms() {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(retry_ms.div_ceil(1_000)));
    }
    response
}

pub fn with_type(status: StatusCode, kind: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    response
}

/// What is wrong with a cursor that is none of ours.
pub const CURSOR_FORM: &str = "a cursor is the next_cursor of an earlier answer";

/// Where a list goes on after this page; None if it is not full, and so the last one.
pub fn next_cursor<T, C>(page: &[T], limit: u32, cursor: impl Fn(&T) -> C) -> Option<C> {
    page.last().filter(|_| page.len() == limit as usize).map(cursor)
}

/// Submits something to the write path and waits for what became of it.
pub async fn outcome<T: Send + 'static>(
    submit: impl FnOnce(Box<dyn FnOnce(Result<T, Problem>) + Send>),
) -> Result<T, Problem> {
    let (reply, outcome) = oneshot::channel();
    submit(Box::new(move |result| {
        // The client may have gone; what was stored stands.
        let _ = reply.send(result);
    }));
    outcome.await.map_err(|_| Problem::outcome_unknown())?
}

impl Call<'_> {
    /// The JSON body; decoded once, since the parser works in place.
    pub fn decode<T: serde::de::DeserializeOwned>(&mut self) -> Result<T, Problem> {
        command::from_json(&mut self.body)
    }

    /// What is no id cannot be anyone's conversation.
    pub fn conversation_id(&self) -> Result<ConversationId, Problem> {
        self.path[0].parse().map_err(|_| Problem::conversation_not_found())
    }

    /// What is no id cannot be anyone's message.
    pub fn message_id(&self) -> Result<MessageId, Problem> {
        self.path[0].parse().map_err(|_| Problem::message_not_found())
    }

    pub fn member_id(&self) -> Result<UserId, Problem> {
        self.path[1].parse().map_err(|_| Problem::invalid("user_id", "a user id is a UUID"))
    }

    pub fn query(&self, name: &str) -> Option<String> {
        let mut pairs = form_urlencoded::parse(self.query.as_deref()?.as_bytes());
        pairs.find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
    }

    /// A value of the query that has a form.
    pub fn parsed<T: std::str::FromStr>(
        &self,
        name: &'static str,
        form: &'static str,
    ) -> Result<Option<T>, Problem> {
        let value = self.query(name);
        value.map(|text| text.parse().map_err(|_| Problem::invalid(name, form))).transpose()
    }

    pub fn limit(&self) -> Result<u32, Problem> {
        match self.parsed("limit", "limit is a number from 1 to 200")? {
            None => Ok(DEFAULT_PAGE),
            Some(limit) if (1..=MAX_PAGE).contains(&limit) => Ok(limit),
            Some(_) => Err(Problem::invalid("limit", "limit is a number from 1 to 200")),
        }
    }
}
