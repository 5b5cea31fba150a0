//! The documents are whole: nothing that the code has is missing, nothing else stands in them, and
//! what they show holds by their own word.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::*;
use crate::http::Route;
use crate::protocol::code::{CloseCode, Code};
use crate::protocol::command::COMMANDS;

type Pairs = BTreeSet<(String, String)>;

#[test]
fn every_method_of_every_route_is_described_once() {
    let operations = operations::operations();
    let described = operations.iter().map(|o| (o.route.template().to_owned(), o.method.to_owned()));
    let described: Pairs = described.collect();
    assert_eq!(described.len(), operations.len(), "one is described twice");
    let routes = Route::ALL.into_iter().filter(|route| *route != Route::Unknown);
    let there = routes.flat_map(|route| {
        let methods = route.methods().iter();
        methods.map(move |method| (route.template().to_owned(), (*method).to_owned()))
    });
    assert_eq!(described, there.collect());
    let ids: BTreeSet<_> = operations.iter().map(|operation| operation.id).collect();
    assert_eq!(ids.len(), operations.len(), "an id stands for two operations");
    let answered = |o: &operation::Operation| o.answers.iter().any(|answer| answer.status < 400);
    assert!(operations.iter().all(answered), "each one succeeds somehow");
}

#[test]
fn every_command_event_and_code_is_described() {
    let described: Vec<_> = commands::commands().iter().map(|command| command.name).collect();
    assert_eq!(described, COMMANDS);
    let document = asyncapi_document();
    let messages = document["components"]["messages"].as_object().unwrap();
    for name in COMMANDS.map(|name| format!("{name}_command")).iter().map(String::as_str) {
        assert!(messages.contains_key(name), "{name}");
    }
    for name in ["hello", "typing", "new_message", "error"] {
        assert!(messages[name]["payload"]["additionalProperties"] == false, "{name}");
    }
    let operations = document["operations"].as_object().unwrap();
    let answers = messages.keys().filter(|name| name.ends_with("_ok")).count();
    assert_eq!(operations.len() + answers, messages.len(), "no name stands for two");
    let numbers = document["channels"]["socket"]["x-close-codes"].as_array().unwrap();
    assert_eq!(numbers.len(), CloseCode::ALL.len());
    let codes = document["x-problem-codes"].as_array().unwrap();
    assert_eq!(codes.len(), Code::ALL.len());
    let mut used: BTreeSet<_> =
        operations::operations().iter().flat_map(|o| o.problems.clone()).map(Code::name).collect();
    // Of every path and of none; and of the socket.
    used.extend([Code::MethodNotAllowed, Code::UnknownCommand].map(Code::name));
    let unused: Vec<_> = Code::ALL.into_iter().filter(|code| !used.contains(code.name())).collect();
    assert_eq!(unused, []);
}

/// Checks a value by a schema somewhere in a document.
fn check(document: &Value, schema: &Value, value: &Value, what: &str) {
    let mut schema = schema.clone();
    schema["components"] = document["components"].clone();
    let validator = jsonschema::options().should_validate_formats(true).build(&schema);
    let validator = validator.unwrap_or_else(|error| panic!("{what}: {error}"));
    let faults: Vec<_> = validator.iter_errors(value).map(|error| error.to_string()).collect();
    assert!(faults.is_empty(), "{what}: {faults:#?}\n{value:#}");
}

#[test]
fn every_example_is_what_its_schema_says() {
    let document = asyncapi_document();
    for (name, message) in document["components"]["messages"].as_object().unwrap() {
        for example in message["examples"].as_array().unwrap() {
            check(document, &message["payload"], &example["payload"], name);
        }
        let described = message["summary"].as_str().unwrap();
        assert!(described.ends_with('.'), "{name} is described: {described}");
    }
    let document = openapi_document();
    let mut count = 0;
    for (path, methods) in document["paths"].as_object().unwrap() {
        let contents = |value: &Value| {
            let contents = value["content"].as_object().cloned().unwrap_or_default();
            contents.into_iter().map(|(_, content)| content).collect::<Vec<_>>()
        };
        let methods = methods.as_object().unwrap();
        for parameter in methods.get("parameters").into_iter().flat_map(|p| p.as_array().unwrap()) {
            check(document, &parameter["schema"], &parameter["example"], path);
        }
        for operation in methods.values().filter(|value| value["operationId"].is_string()) {
            let what = operation["operationId"].as_str().unwrap();
            for parameter in operation["parameters"].as_array().into_iter().flatten() {
                if let Some(example) = parameter.get("example") {
                    check(document, &parameter["schema"], example, what);
                }
            }
            let answers = operation["responses"].as_object().unwrap().values();
            for content in answers.chain([&operation["requestBody"]]).flat_map(contents) {
                let examples = content["examples"].as_object().cloned().unwrap_or_default();
                let examples = examples.into_values().map(|mut example| example["value"].take());
                for example in examples.chain(content.get("example").cloned()) {
                    check(document, &content["schema"], &example, what);
                    count += 1;
                }
            }
        }
    }
    assert!(count > 60, "{count} examples");
}

#[test]
fn what_the_server_sends_is_closed_and_what_clients_send_is_open() {
    let [(_, client), (_, server)] = frame_schemas();
    let client = jsonschema::validator_for(&client).unwrap();
    let server = jsonschema::validator_for(&server).unwrap();
    let ping = json!({ "type": "ping", "ref": "1", "more": 1 });
    assert!(client.is_valid(&ping));
    assert!(!client.is_valid(&json!({ "type": "fly" })));
    assert!(!client.is_valid(&json!({ "type": "ping", "ref": "x".repeat(129) })));
    let pong = |at: &str| json!({ "type": "pong", "payload": { "timestamp": at } });
    assert!(server.is_valid(&pong("2026-11-22T09:30:00.123Z")));
    assert!(!server.is_valid(&pong("2026-11-22T09:30:00Z")));
    let mut more = pong("2026-11-22T09:30:00.123Z");
    more["payload"]["more"] = 1.into();
    assert!(!server.is_valid(&more));
    let mut event = json!({ "type": "new_message", "payload": examples::event("new_message") });
    assert!(server.is_valid(&event));
    event["payload"]["message"].as_object_mut().unwrap().remove("edited_at");
    assert!(!server.is_valid(&event), "what may be null is there all the same");
}
