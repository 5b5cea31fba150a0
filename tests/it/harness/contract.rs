//! Judges the traffic of all scenarios by the documents that the node serves: an answer or event
//! that they do not describe is a failure, and so is a request that was accepted against their word.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use jsonschema::Validator;
use serde_json::Value;
use tidings::http::docs::{asyncapi_document, openapi_document};

use super::http::Reply;

/// Compiled once for the whole run.
static VALIDATORS: Mutex<Option<HashMap<String, Arc<Validator>>>> = Mutex::new(None);

/// The schema at `pointer` of one of the documents.
fn validator(document: &Value, pointer: &str) -> Option<Arc<Validator>> {
    let key = format!("{}{pointer}", document["openapi"]);
    let mut validators = VALIDATORS.lock().unwrap();
    let validators = validators.get_or_insert_default();
    if let Some(validator) = validators.get(&key) {
        return Some(validator.clone());
    }
    let mut schema = document.pointer(pointer)?.clone();
    schema["components"] = document["components"].clone();
    let options = jsonschema::options().should_validate_formats(true);
    let validator = options.build(&schema).unwrap_or_else(|error| panic!("{pointer}: {error}"));
    let validator = Arc::new(validator);
    validators.insert(key, validator.clone());
    Some(validator)
}

fn check(document: &Value, pointer: &str, value: &Value, what: &str) {
    let Some(validator) = validator(document, pointer) else { panic!("{what} is not described") };
    // The errors are told only when there are some: finding them costs more.
    if validator.is_valid(value) {
        return;
    }
    let faults: Vec<_> = validator.iter_errors(value).map(|fault| fault.to_string()).collect();
    panic!("{what} is not as described: {faults:#?}\n{value:#}");
}

/// A part of a JSON pointer.
fn escaped(text: &str) -> String {
    text.replace('~', "~0").replace('/', "~1")
}

/// The path of the document that a request's path is one of.
fn template(path: &str) -> Option<&'static str> {
    let path = path.split('?').next().unwrap_or_default();
    let path = path.strip_suffix('/').filter(|path| !path.is_empty()).unwrap_or(path);
    let parts: Vec<_> = path.split('/').collect();
    let fits = |template: &str| {
        let wanted: Vec<_> = template.split('/').collect();
        wanted.len() == parts.len()
            && wanted.iter().zip(&parts).all(|(want, part)| want.starts_with('{') || want == part)
    };
    let paths = openapi_document()["paths"].as_object().unwrap().keys();
    // A literal part is a better fit than an id.
    let fitting = paths.filter(|template| fits(template));
    fitting.min_by_key(|template| template.matches('{').count()).map(String::as_str)
}

/// Judges a request and its answer.
pub fn check_reply(method: &str, path: &str, body: &str, reply: &Reply) {
    let Some(request_id) = reply.header("x-request-id") else {
        // The HTTP library's own, before there was a request.
        assert!(matches!(reply.status, 400 | 431) && reply.text.is_empty(), "{reply:?}");
        return;
    };
    assert!(!request_id.is_empty());
    let document = openapi_document();
    let what = format!("{} of {method} {path:.200}", reply.status);
    let operation = template(path)
        .map(|path| format!("/paths/{}/{}", escaped(path), method.to_lowercase()))
        .filter(|pointer| document.pointer(pointer).is_some());
    let nothing_here = reply.status == 404 && reply.text.contains("there is nothing at this path");
    if method == "OPTIONS" && reply.status == 204 {
        // A browser's question, which every path answers.
        assert!(reply.header("access-control-allow-methods").is_some(), "{reply:?}");
        return;
    }
    let (Some(operation), false) = (operation, nothing_here) else {
        assert!(matches!(reply.status, 403..=405), "{what} is not described: {reply:?}");
        assert_eq!(reply.header("allow").is_some(), reply.status == 405, "{reply:?}");
        check(document, "/components/schemas/Problem", &reply.json(), &what);
        return;
    };
    let answer = format!("{operation}/responses/{}", reply.status);
    let described =
        document.pointer(&answer).unwrap_or_else(|| panic!("{what} is not described: {reply:?}"));
    let retry = described["headers"].get("Retry-After").is_some();
    assert!(retry || reply.header("retry-after").is_none(), "{what}: Retry-After");
    let kind = reply.header("content-type").map(|kind| kind.split(';').next().unwrap());
    match kind {
        None => assert!(
            described.get("content").is_none() && reply.text.is_empty(),
            "{what}: {reply:?}"
        ),
        Some(kind) => {
            let schema = format!("{answer}/content/{}/schema", escaped(kind));
            let value =
                if kind.ends_with("json") { reply.json() } else { reply.text.as_str().into() };
            check(document, &schema, &value, &what);
        }
    }
    if reply.status < 300 && document.pointer(&format!("{operation}/requestBody")).is_some() {
        let schema = format!("{operation}/requestBody/content/application~1json/schema");
        let body = serde_json::from_str(body).expect("what was accepted is JSON");
        check(document, &schema, &body, &format!("the body accepted by {method} {path}"));
    }
}

/// Judges a frame of the server; `answered` is the command it answers, if that is known.
pub fn check_event(event: &Value, answered: Option<&Value>) {
    let document = asyncapi_document();
    let kind = event["type"].as_str().unwrap_or_else(|| panic!("it has no type: {event}"));
    let schema = |name: &str| format!("/components/messages/{}/payload", escaped(name));
    match (kind, answered) {
        ("ok", Some(command)) => {
            let name = command["type"].as_str().unwrap();
            check(document, &schema(&format!("{name}_ok")), event, &format!("the ok of {name}"));
            check(
                document,
                &schema(&format!("{name}_command")),
                command,
                &format!("the {name} that was accepted"),
            );
        }
        ("ok", None) => {}
        _ => check(document, &schema(kind), event, &format!("the event {kind}")),
    }
}
