//! Pages of other origins (CORS): those of `ALLOWED_ORIGINS` may call the API and read its answers;
//! of all others nothing that changes something is done, whether or not they could read the answer.

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_METHOD,
    HeaderMap, HeaderValue, ORIGIN, VARY,
};
use hyper::{Method, Request, Response, StatusCode};

use super::answer::Answer;
use super::{Door, Route};
use crate::auth::Authenticator;
use crate::protocol::code::Code;
use crate::protocol::problem::Problem;

/// Every header that a call of the API may have.
const REQUEST_HEADERS: &str =
    "authorization, content-type, idempotency-key, x-device-id, x-request-id, x-user-id";
/// What a page may read of an answer beside its body.
const ANSWER_HEADERS: &str = "retry-after, x-request-id";
/// An hour in seconds: after a change of the list, pages may ask in vain for so long.
const MAX_AGE: &str = "3600";

/// A browser asks whether a page may make a call.
pub fn is_preflight(request: &Request<Incoming>) -> bool {
    let headers = request.headers();
    request.method() == Method::OPTIONS
        && headers.contains_key(ORIGIN)
        && headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD)
}

/// For an origin that is allowed.
pub fn preflight(route: Route) -> Answer {
    let mut response = Response::new(Full::<Bytes>::default());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    let methods = HeaderValue::from_str(&route.methods().join(", ")).expect("is ASCII");
    headers.insert(ACCESS_CONTROL_ALLOW_METHODS, methods);
    headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static(REQUEST_HEADERS));
    headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static(MAX_AGE));
    Ok(response)
}

/// Refuses what a page of a foreign origin would change. The admin listener has no pages at all.
pub fn admit(auth: &Authenticator, door: Door, request: &Request<Incoming>) -> Result<(), Problem> {
    if matches!(*request.method(), Method::GET | Method::HEAD) {
        return Ok(());
    }
    match door {
        Door::Main => auth.admit_origin(request.headers()),
        Door::Admin if !request.headers().contains_key(ORIGIN) => Ok(()),
        Door::Admin => {
            Err(Problem::new(Code::ForeignOrigin, "no page may act on the admin listener"))
        }
    }
}

/// Says in an answer, also in a refusal, which origin may read it.
pub fn mark(headers: &mut HeaderMap, allowed: Option<HeaderValue>) {
    headers.append(VARY, HeaderValue::from_static("origin"));
    if let Some(origin) = allowed {
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        let exposed = HeaderValue::from_static(ANSWER_HEADERS);
        headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
    }
}
