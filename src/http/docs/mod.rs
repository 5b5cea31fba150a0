//! The contract, made from the code: OpenAPI, AsyncAPI, the frames' schemas, and a page that shows
//! them. They hold no secret, so they are served to everybody in every mode, on the main port.
//!
//! A new route or method needs an entry in `operations`, a new command one in `commands`, a new
//! event an example in `examples`; the tests say what is missing.

mod asyncapi;
mod commands;
mod examples;
mod frames;
mod openapi;
mod operation;
mod operations;
mod shape;
#[cfg(test)]
mod tests;

use std::sync::LazyLock;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{CONTENT_SECURITY_POLICY, HeaderValue};
use hyper::{Response, StatusCode};
use serde_json::Value;

use super::answer;
use super::state::PAGE_POLICY;
pub use frames::files as frame_schemas;

/// The documents are the same for the life of the process.
static OPENAPI: LazyLock<(Value, Bytes)> = LazyLock::new(|| written(openapi::document()));
static ASYNCAPI: LazyLock<(Value, Bytes)> = LazyLock::new(|| written(asyncapi::document()));

fn written(document: Value) -> (Value, Bytes) {
    let bytes = serde_json::to_vec(&document).expect("a document has string keys");
    (document, bytes.into())
}

/// The document that [`openapi`] serves.
pub fn openapi_document() -> &'static Value {
    &OPENAPI.0
}

/// The document that [`asyncapi`] serves.
pub fn asyncapi_document() -> &'static Value {
    &ASYNCAPI.0
}

pub fn openapi() -> Response<Full<Bytes>> {
    answer::with_type(StatusCode::OK, "application/json", OPENAPI.1.clone())
}

pub fn asyncapi() -> Response<Full<Bytes>> {
    answer::with_type(StatusCode::OK, "application/json", ASYNCAPI.1.clone())
}

/// Shows both documents; it fetches nothing from anywhere else.
pub fn page() -> Response<Full<Bytes>> {
    let page = Bytes::from_static(include_bytes!("page.html"));
    let mut response = answer::with_type(StatusCode::OK, "text/html; charset=utf-8", page);
    let policy = HeaderValue::from_static(PAGE_POLICY);
    response.headers_mut().insert(CONTENT_SECURITY_POLICY, policy);
    response
}
