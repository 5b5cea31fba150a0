//! OpenAPI 3.1, written from [`super::operations`] and the wire's types.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::examples;
use super::operation::{Answer, Content, Of, Operation, Parameter, Tag};
use super::operations::operations;
use super::shape::{Shapes, sent};
use crate::http::Route;
use crate::protocol::code::Code;
use crate::protocol::problem::Problem;

const DESCRIPTION: &str = "\
REST beside the WebSocket of `/ws`, whose frames are described in `/asyncapi.json`.

**Who is asking** stands in the header `X-User-ID`, which the gateway sets; or, where the node checks \
tokens itself (`AUTH_MODE=jwt`), in `Authorization: Bearer`. In dev mode, on a laptop, everyone is believed.

**Pages** of the origins in `ALLOWED_ORIGINS` may call all of this (CORS); `OPTIONS` answers a browser's \
question with 204. From pages of other origins nothing is changed: 403.

**Refusals** are RFC 9457 problems with a stable `code`, the `field` at fault, and `retry_ms` where \
trying again helps. What does not exist and what is not yours are told apart by nobody: both are 404. A \
path that is not here is 404, a method that a path does not have is 405 with `Allow`; a request's head \
above 16 KiB is 431.

**Bodies** are JSON. Fields that are not known are ignored; clients ignore those that they do not know, \
too. Lengths in bytes are of UTF-8, and may be reached before `maxLength`, which counts characters.

Each answer carries `X-Request-ID`: the request's own, or a new one.";

pub fn document() -> Value {
    let mut shapes = Shapes::new();
    let mut paths: Map<String, Value> = Map::new();
    let problem = shapes.of(sent::<Problem>());
    for operation in operations() {
        let template = operation.route.template();
        let path = paths.entry(template).or_insert_with(|| path(operation.route));
        path[operation.method.to_ascii_lowercase()] = written(&operation, &mut shapes, &problem);
    }
    let tags = Tag::ALL.map(|tag| {
        let (name, description) = tag.words();
        json!({ "name": name, "description": description })
    });
    let mut document = json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Tidings",
            "version": env!("CARGO_PKG_VERSION"),
            "description": DESCRIPTION,
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "servers": [{ "url": "/", "description": "The node that serves this document." }],
        "tags": tags,
        "paths": paths,
        "components": {
            "securitySchemes": {
                "user": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "X-User-ID",
                    "description": "The user's id, a UUID: in dev and gateway mode.",
                },
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "bearerFormat": "JWT",
                    "description": "A signed token whose `sub` is the user: in jwt mode.",
                },
            },
            "headers": {
                "X-Request-ID": {
                    "description": "The request's own, or a new one.",
                    "required": true,
                    "schema": { "type": "string" },
                },
                "WWW-Authenticate": {
                    "description": "`Bearer`, where tokens are checked.",
                    "schema": { "type": "string" },
                },
                "Retry-After": {
                    "description": "Seconds to wait before the same is tried again.",
                    "schema": { "type": "integer", "minimum": 1 },
                },
            },
        },
    });
    let schemas = shapes.finish(&mut document, "#/components/schemas/");
    document["components"]["schemas"] = schemas.into();
    document
}

fn path(route: Route) -> Value {
    let mut path = json!({});
    let template = route.template();
    let names = template.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    let parameters: Vec<_> = names
        .map(|name| {
            json!({
                "name": name,
                "in": "path",
                "required": true,
                "description": match name {
                    "user_id" => "The member's id.",
                    _ if template.contains("/messages/{id}") => "The message's id.",
                    _ => "The conversation's id.",
                },
                "schema": { "type": "string", "format": "uuid" },
                "example": examples::path_id(template, name),
            })
        })
        .collect();
    if !parameters.is_empty() {
        path["parameters"] = parameters.into();
    }
    if route.is_admin() {
        path["servers"] = json!([{
            "url": "http://{admin}",
            "description": "The admin listener.",
            "variables": {
                "admin": { "default": "127.0.0.1:9083", "description": "As `ADMIN_ADDR` says." },
            },
        }]);
    }
    path
}

fn written(operation: &Operation, shapes: &mut Shapes, problem: &Value) -> Value {
    let mut value = json!({
        "operationId": operation.id,
        "tags": [operation.tag.words().0],
        "summary": operation.summary,
        "description": match operation.description {
            "" => format!("{}.", operation.summary.trim_end_matches('?')),
            description => description.to_owned(),
        },
        "security": if operation.private || operation.route == Route::Socket {
            json!([{ "user": [] }, { "token": [] }])
        } else {
            json!([])
        },
    });
    if !operation.parameters.is_empty() {
        value["parameters"] = operation.parameters.iter().map(parameter).collect();
    }
    if let Some(body) = &operation.body {
        value["requestBody"] = json!({
            "required": true,
            "content": {
                "application/json": {
                    "schema": shapes.of(body.shape),
                    "example": body.example,
                },
            },
        });
    }
    let mut responses = Map::new();
    for answer in &operation.answers {
        responses.insert(answer.status.to_string(), response(answer, shapes));
    }
    let mut refusals: BTreeMap<u16, Vec<Code>> = BTreeMap::new();
    for code in &operation.problems {
        refusals.entry(code.status()).or_default().push(*code);
    }
    for (status, codes) in refusals {
        let refusal = refusal(status, &codes, problem);
        match responses.get_mut(&status.to_string()) {
            // The same status says something else, too: not ready.
            Some(there) => {
                there["content"]["application/problem+json"] =
                    refusal["content"]["application/problem+json"].clone()
            }
            None => {
                responses.insert(status.to_string(), refusal);
            }
        }
    }
    value["responses"] = responses.into();
    value
}

fn parameter(parameter: &Parameter) -> Value {
    let mut value = json!({
        "name": parameter.name,
        "in": parameter.place,
        "required": parameter.required,
        "description": parameter.description,
        "schema": parameter.schema,
    });
    if !parameter.example.is_null() {
        value["example"] = parameter.example.clone();
    }
    if parameter.schema["type"] == "array" {
        value["style"] = "form".into();
        value["explode"] = false.into();
    }
    value
}

fn response(answer: &Answer, shapes: &mut Shapes) -> Value {
    let mut value = json!({ "description": answer.description, "headers": headers(&[]) });
    if let Some(Content { kind, schema, example }) = &answer.content {
        let schema = match schema {
            Of::Shape(shape) => shapes.of(*shape),
            Of::Schema(schema) => schema.clone(),
        };
        value["content"] = json!({ *kind: { "schema": schema, "example": example } });
    }
    value
}

/// The schema of an error that only holds certain codes.
fn refusal(status: u16, codes: &[Code], problem: &Value) -> Value {
    let lines: Vec<_> = codes.iter().map(|c| format!("`{}`: {}.", c.name(), c.title())).collect();
    let mut schema = problem.clone();
    schema["properties"] = json!({
        "code": { "enum": codes.iter().map(|code| code.name()).collect::<Vec<_>>() },
        "status": { "const": status },
    });
    let examples: Map<String, Value> = codes
        .iter()
        .map(|code| {
            let mut problem = serde_json::to_value(Problem::new(*code, code.title()))
                .expect("problems have no failing parts");
            problem["request_id"] = "0b6f2d58-3c1a-4e7b-9d24-8f5a6c7e1b30".into();
            (code.name().to_owned(), json!({ "value": problem }))
        })
        .collect();
    let mut more = Vec::new();
    if status == 401 {
        more.push("WWW-Authenticate");
    }
    if codes.iter().any(|code| code.retry_ms().is_some()) {
        more.push("Retry-After");
    }
    json!({
        "description": lines.join(" "),
        "headers": headers(&more),
        "content": { "application/problem+json": { "schema": schema, "examples": examples } },
    })
}

fn headers(more: &[&str]) -> Value {
    let names = ["X-Request-ID"].iter().chain(more);
    names
        .map(|name| ((*name).to_owned(), json!({ "$ref": format!("#/components/headers/{name}") })))
        .collect::<Map<_, _>>()
        .into()
}
