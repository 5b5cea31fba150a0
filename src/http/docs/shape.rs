//! JSON Schemas of the wire's own types, gathered while a document is written.
//!
//! What the server sends is closed: a field it does not name is a fault. What clients send is open:
//! fields that are not known are ignored.

use schemars::generate::{SchemaGenerator, SchemaSettings};
use schemars::transform::{Transform, transform_subschemas};
use schemars::{JsonSchema, Schema};
use serde_json::{Map, Value};

/// A type and its direction.
#[derive(Clone, Copy)]
pub struct Shape {
    sent: bool,
    of: fn(&mut SchemaGenerator) -> Schema,
}

/// What the server sends.
pub fn sent<T: JsonSchema>() -> Shape {
    Shape { sent: true, of: SchemaGenerator::subschema_for::<T> }
}

/// What a client sends.
pub fn given<T: JsonSchema>() -> Shape {
    Shape { sent: false, of: SchemaGenerator::subschema_for::<T> }
}

/// The schemas of one document.
pub struct Shapes {
    sent: SchemaGenerator,
    given: SchemaGenerator,
}

impl Shapes {
    pub fn new() -> Self {
        // Places that no document has: `finish` puts the final ones there.
        let at = |path: &str| {
            SchemaSettings::draft2020_12().with(|s| s.definitions_path = path.to_owned().into())
        };
        let sent = at("/sent").for_serialize().with_transform(Close).with_transform(Tidy);
        let given = at("/given").for_deserialize().with_transform(Tidy);
        Self { sent: sent.into_generator(), given: given.into_generator() }
    }

    /// The schema itself, or where it will stand.
    pub fn of(&mut self, shape: Shape) -> Value {
        let generator = if shape.sent { &mut self.sent } else { &mut self.given };
        let mut schema = (shape.of)(generator);
        generator.transforms_mut().for_each(|transform| transform.transform(&mut schema));
        schema.into()
    }

    /// The schema of a type that the server sends, which will not stand by itself.
    pub fn take(&mut self, name: &str) -> Value {
        let taken = self.sent.definitions_mut().remove(name).expect("it was added before");
        let mut schema = Schema::try_from(taken).expect("a schema is an object");
        self.sent.transforms_mut().for_each(|transform| transform.transform(&mut schema));
        schema.into()
    }

    /// Points all references of the document to `path` (`#/components/schemas/`), and gives what is to stand there.
    /// A type that is not the same in both directions is called `...Given` when clients send it.
    pub fn finish(mut self, document: &mut Value, path: &str) -> Map<String, Value> {
        let mut all = self.sent.take_definitions(true);
        let given = self.given.take_definitions(true);
        let differ = |name: &str, all: &Map<String, Value>| {
            all.get(name).is_some_and(|sent| plain(sent) != plain(&given[name]))
        };
        let both: Vec<String> = given.keys().filter(|name| differ(name, &all)).cloned().collect();
        for (name, schema) in given {
            let name = if both.contains(&name) { format!("{name}Given") } else { name };
            all.insert(name, schema);
        }
        let place = |reference: &str| {
            if let Some(name) = reference.strip_prefix("#/sent/") {
                return Some(format!("{path}{name}"));
            }
            let name = reference.strip_prefix("#/given/")?;
            let suffix = if both.iter().any(|both| both == name) { "Given" } else { "" };
            Some(format!("{path}{name}{suffix}"))
        };
        point(document, &place);
        all.values_mut().for_each(|schema| point(schema, &place));
        all
    }
}

/// The schema without its references' places, to compare both directions.
fn plain(schema: &Value) -> Value {
    let mut schema = schema.clone();
    point(&mut schema, &|reference| reference.rsplit('/').next().map(str::to_owned));
    schema
}

fn point(value: &mut Value, place: &impl Fn(&str) -> Option<String>) {
    match value {
        Value::Object(map) => map.iter_mut().for_each(|(key, value)| match value {
            Value::String(reference) if key == "$ref" => {
                if let Some(placed) = place(reference) {
                    *reference = placed;
                }
            }
            _ => point(value, place),
        }),
        Value::Array(list) => list.iter_mut().for_each(|value| point(value, place)),
        _ => {}
    }
}

/// Objects hold what they name and nothing else.
#[derive(Clone, Debug)]
struct Close;

impl Transform for Close {
    fn transform(&mut self, schema: &mut Schema) {
        if schema.get("properties").is_some() && schema.get("additionalProperties").is_none() {
            schema.insert("additionalProperties".into(), false.into());
        }
        transform_subschemas(self, schema);
    }
}

/// Descriptions without the source's line ends; no formats that only Rust has.
#[derive(Clone, Debug)]
struct Tidy;

impl Transform for Tidy {
    fn transform(&mut self, schema: &mut Schema) {
        if let Some(Value::String(text)) = schema.get_mut("description") {
            let paragraphs = text.split("\n\n").map(|paragraph| paragraph.replace('\n', " "));
            *text = paragraphs.collect::<Vec<_>>().join("\n\n");
        }
        if schema.get("format").and_then(Value::as_str).is_some_and(|form| form.starts_with("uint"))
        {
            schema.remove("format");
        }
        transform_subschemas(self, schema);
    }
}
