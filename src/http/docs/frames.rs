//! The JSON Schemas of all frames, each way: what `docs/schemas/` holds, and what AsyncAPI's
//! messages are made of.

use serde_json::{Value, json};

use super::commands::{CommandEntry, commands};
use super::examples;
use super::shape::{Shapes, sent};
use crate::protocol::command::MAX_REF_BYTES;
use crate::protocol::event::Event;
use crate::protocol::problem::Problem;

const DIALECT: &str = "https://json-schema.org/draft/2020-12/schema";

/// What a frame is called, what it means, how it looks.
pub struct Framed {
    pub name: String,
    pub description: String,
    pub schema: Value,
    pub example: Value,
}

/// One of each event, in the order of their declaration.
pub fn events(shapes: &mut Shapes) -> Vec<Framed> {
    let mut event = shapes.of(sent::<Event<'static>>());
    if event.get("$ref").is_some() {
        event = shapes.take("Event");
    }
    let variants = event["oneOf"].as_array().expect("an enum with contents").iter();
    let framed = variants.map(|variant| {
        let mut schema = variant.clone();
        let name = schema["properties"]["type"]["const"].as_str().expect("it is tagged").to_owned();
        let description = schema["description"].as_str().unwrap_or_default().to_owned();
        schema["title"] = name.clone().into();
        let example = json!({ "type": name, "payload": examples::event(&name) });
        Framed { name, description, schema, example }
    });
    framed.collect()
}

fn reference() -> Value {
    json!({
        "description": "The client's own; the answer carries it.",
        "type": "string",
        "maxLength": MAX_REF_BYTES,
    })
}

/// One of each command.
pub fn given(shapes: &mut Shapes) -> Vec<Framed> {
    let framed =
        commands().into_iter().map(|CommandEntry { name, description, payload, .. }| {
            let mut schema = json!({
                "title": name,
                "description": description,
                "type": "object",
                "required": ["type"],
                "properties": { "type": { "type": "string", "const": name }, "ref": reference() },
            });
            let mut example = json!({ "type": name, "ref": "1" });
            if let Some((shape, payload)) = payload {
                schema["required"] = json!(["type", "payload"]);
                schema["properties"]["payload"] = shapes.of(shape);
                example["payload"] = payload;
            }
            Framed { name: name.into(), description: description.into(), schema, example }
        });
    framed.collect()
}

/// The `ok` of a command.
pub fn ok(command: &CommandEntry, shapes: &mut Shapes) -> Option<Framed> {
    let (shape, example) = command.answer.as_ref()?;
    let name = format!("{}_ok", command.name);
    let description = format!("Answers a `{}` that carried a `ref`.", command.name);
    let schema = json!({
        "title": name,
        "description": description,
        "type": "object",
        "required": ["type", "ref", "payload"],
        "properties": {
            "type": { "type": "string", "const": "ok" },
            "ref": reference(),
            "payload": shapes.of(*shape),
        },
        "additionalProperties": false,
    });
    let example = json!({ "type": "ok", "ref": "1", "payload": example });
    Some(Framed { name, description, schema, example })
}

/// The refusal of a command.
pub fn error(shapes: &mut Shapes) -> Framed {
    let description = "Refuses a command, with its `ref` if it had one; the socket stays open.";
    let schema = json!({
        "title": "error",
        "description": description,
        "type": "object",
        "required": ["type", "payload"],
        "properties": {
            "type": { "type": "string", "const": "error" },
            "ref": reference(),
            "payload": shapes.of(sent::<Problem>()),
        },
        "additionalProperties": false,
    });
    let problem = Problem::conversation_not_found();
    let example = json!({ "type": "error", "ref": "1", "payload": problem });
    Framed { name: "error".into(), description: description.into(), schema, example }
}

/// Each file of `docs/schemas/` that is made from the types, by its name.
pub fn files() -> [(&'static str, Value); 2] {
    let mut shapes = Shapes::new();
    let client = given(&mut shapes);
    let client = whole(
        shapes,
        client,
        "urn:tidings:schema:client-frame:1",
        "Client frame",
        "A command, as the text of a frame. Fields that are not known are ignored.",
    );
    let mut shapes = Shapes::new();
    let mut server = events(&mut shapes);
    server.extend(commands().iter().filter_map(|command| ok(command, &mut shapes)));
    server.push(error(&mut shapes));
    let server = whole(
        shapes,
        server,
        "urn:tidings:schema:server-frame:1",
        "Server frame",
        "An event, or the answer to a command, as the text of a frame. Events may be added: clients \
         ignore types that they do not know.",
    );
    [("client-frame.schema.json", client), ("server-frame.schema.json", server)]
}

fn whole(shapes: Shapes, frames: Vec<Framed>, id: &str, title: &str, description: &str) -> Value {
    let frames: Vec<_> = frames.into_iter().map(|frame| frame.schema).collect();
    let mut document = json!({
        "$schema": DIALECT,
        "$id": id,
        "title": title,
        "description": description,
        "anyOf": frames,
    });
    let definitions = shapes.finish(&mut document, "#/$defs/");
    document["$defs"] = definitions.into();
    document
}
