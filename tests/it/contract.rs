//! The contract's documents: served to everybody, committed as they are generated, and true by their
//! own examples. That all traffic is as they say, the harness checks in every scenario.

use std::path::Path;

use serde_json::{Value, json};
use tidings::http::docs::{frame_schemas, openapi_document};

use crate::harness::client::{Answer, Client, Opening};
use crate::harness::cluster::{Cluster, user};
use crate::harness::http::Rest;
use crate::harness::scenarios;

scenarios! {
    the_documents_are_served_to_everybody
        ["AUTH_MODE" = "gateway", "TRUSTED_PROXIES" = "10.0.0.0/8", "ADMIN_ADDR" = "127.0.0.1:0"],
    every_example_of_a_request_is_accepted,
    every_example_of_a_command_is_accepted,
}

/// `UPDATE_SCHEMAS=1 cargo test --test it schemas_are_committed` writes them.
#[test]
fn the_frames_schemas_are_committed_as_they_are_generated() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/schemas");
    #[expect(clippy::disallowed_methods, reason = "asks for the tests, not for the service")]
    let update = std::env::var("UPDATE_SCHEMAS").is_ok_and(|value| value == "1");
    for (name, schema) in frame_schemas() {
        let text = format!("{schema:#}\n");
        let file = folder.join(name);
        if update {
            std::fs::write(&file, &text).unwrap();
        }
        let committed = std::fs::read_to_string(&file).unwrap_or_default();
        assert!(committed == text, "docs/schemas/{name} is old: run with UPDATE_SCHEMAS=1");
        jsonschema::meta::validate(&schema).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}

async fn the_documents_are_served_to_everybody(cluster: &Cluster) {
    let nobody = Rest::new(cluster.addr(0), None);
    let openapi = nobody.get("/openapi.json").await.body(200);
    assert_eq!(&openapi, openapi_document());
    assert_eq!(openapi["openapi"], "3.1.0");
    assert_eq!(nobody.get("/asyncapi.json").await.body(200)["asyncapi"], "3.0.0");
    let page = nobody.get("/docs").await;
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
    let policy = page.header("content-security-policy").unwrap();
    assert!(policy.contains("default-src 'none'") && policy.contains("connect-src 'self'"));
    assert!(!page.text.contains("://"), "the page needs nothing from elsewhere");
    let admin = Rest::new(cluster.admin_addr(0).unwrap(), None);
    admin.get("/openapi.json").await.refused(404, "not_found", None);
}

/// What the examples speak of, as it is called here.
struct Place {
    ada: uuid::Uuid,
    names: Vec<(String, String)>,
}

impl Place {
    /// A group of Ada and Grace with one message, in which all that the examples name is there.
    async fn new(cluster: &Cluster) -> Self {
        let (ada, grace) = (user(), user());
        let group = cluster.group(0, ada, &[grace]).await;
        let message = cluster.send(0, ada, group, "Hello @Grace").await;
        let example = &openapi_document()["paths"]["/api/v1/messages"]["post"]["responses"]["201"];
        let example = &example["content"]["application/json"]["example"];
        let word = |value: &Value| value.as_str().unwrap().to_owned();
        let names = vec![
            (word(&example["id"]), word(&message["id"])),
            (word(&example["conversation_id"]), group.to_string()),
            (word(&example["sender_id"]), ada.to_string()),
            (word(&example["mentions"][0]["user_id"]), grace.to_string()),
        ];
        Self { ada, names }
    }

    fn told(&self, value: &Value) -> String {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        self.names.iter().fold(text, |text, (theirs, ours)| text.replace(theirs, ours))
    }
}

async fn every_example_of_a_request_is_accepted(cluster: &Cluster) {
    let mut count = 0;
    for (path, shared) in openapi_document()["paths"].as_object().unwrap() {
        // What is open, or no request, is looked at elsewhere.
        let operations = shared.as_object().unwrap().iter();
        for (method, operation) in operations.filter(|(_, value)| value["security"][0].is_object())
        {
            if path == "/ws" {
                continue;
            }
            // One's own place for each: what is deleted is gone.
            let place = Place::new(cluster).await;
            let mut rest = cluster.rest(1, place.ada);
            let (mut at, mut query) = (path.clone(), Vec::new());
            let own = operation["parameters"].as_array().into_iter().flatten();
            for parameter in shared["parameters"].as_array().into_iter().flatten().chain(own) {
                let name = parameter["name"].as_str().unwrap();
                // One without does not go with the others.
                let Some(example) = parameter.get("example") else { continue };
                let value = match example.as_array() {
                    Some(list) => {
                        list.iter().map(|one| place.told(one)).collect::<Vec<_>>().join(",")
                    }
                    None => place.told(example),
                };
                match parameter["in"].as_str().unwrap() {
                    "path" => at = at.replace(&format!("{{{name}}}"), &value),
                    // The body's own name for it counts.
                    "header" if !operation["requestBody"].is_null() => {}
                    "header" => rest = rest.with(name, &value),
                    _ => query.push(format!("{name}={value}")),
                }
            }
            if !query.is_empty() {
                at = format!("{at}?{}", query.join("&"));
            }
            let body = &operation["requestBody"]["content"]["application/json"]["example"];
            let body = if body.is_null() { String::new() } else { place.told(body) };
            let method = method.to_uppercase();
            println!("{method} {at} {body}");
            let reply = rest.call(&method, &at, &body).await;
            assert!(reply.status < 300, "{method} {at}: {}", reply.text);
            count += 1;
        }
    }
    assert!(count >= 14, "{count} operations");
}

async fn every_example_of_a_command_is_accepted(cluster: &Cluster) {
    let document = tidings::http::docs::asyncapi_document();
    let operations = document["operations"].as_object().unwrap().values();
    for operation in operations.filter(|operation| operation["action"] == "receive") {
        let name = operation["title"].as_str().unwrap();
        // Nobody has tokens here; what it says of real ones is checked where there are some.
        if name == "refresh_token" {
            continue;
        }
        let place = Place::new(cluster).await;
        // Who promises acks may do all that others may.
        let opening = Opening { query: "?features=acks".into(), ..Opening::new(place.ada) };
        let mut client = Client::open(cluster.addr(0), opening).await.expect("the socket opens");
        let example = &document["components"]["messages"][format!("{name}_command")]["examples"][0]
            ["payload"];
        let payload: Value = serde_json::from_str(&place.told(example)).unwrap();
        let payload = payload.get("payload").cloned().unwrap_or(json!({}));
        let answered = document["components"]["messages"].get(format!("{name}_ok")).is_some();
        if answered {
            let Answer::Ok(_) = client.command(name, payload).await else { panic!("{name}") };
        } else {
            client.submit(name, payload).await;
            // Nothing comes: what comes next answers the next one.
            client.command("ping", json!({})).await.ok();
        }
    }
}
