//! A refusal as people and clients read it: RFC 9457 problem details, in HTTP bodies and in the
//! payload of `error` frames alike.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Serialize;
use serde::ser::SerializeMap;

use super::code::Code;

/// What happened, to which input, and what to do.
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    pub code: Code,
    /// One sentence for people; never holds what belongs to somebody else.
    pub detail: Cow<'static, str>,
    /// The input at fault, as a path: `mentions[2].offset`.
    pub field: Option<Cow<'static, str>>,
    pub request_id: Option<String>,
    /// Overrides the code's own.
    pub retry_ms: Option<u64>,
}

impl Problem {
    pub fn new(code: Code, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { code, detail: detail.into(), field: None, request_id: None, retry_ms: None }
    }

    pub fn invalid(
        field: impl Into<Cow<'static, str>>,
        detail: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self { field: Some(field.into()), ..Self::new(Code::Invalid, detail) }
    }

    pub fn conversation_not_found() -> Self {
        Self::new(Code::NotFound, "there is no such conversation among yours")
    }

    pub fn message_not_found() -> Self {
        Self::new(Code::NotFound, "there is no such message among those you can see")
    }

    pub fn outcome_unknown() -> Self {
        let detail = "the node stopped before the outcome was known; try again";
        Self::new(Code::Unavailable, detail)
    }

    pub fn retry_ms(&self) -> Option<u64> {
        self.retry_ms.or(self.code.retry_ms())
    }
}

impl Serialize for Problem {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("type", &format_args!("urn:tidings:problem:{}", self.code.name()))?;
        map.serialize_entry("title", self.code.title())?;
        map.serialize_entry("status", &self.code.status())?;
        map.serialize_entry("detail", &self.detail)?;
        map.serialize_entry("code", self.code.name())?;
        if let Some(field) = &self.field {
            map.serialize_entry("field", field)?;
        }
        map.serialize_entry("request_id", &self.request_id)?;
        if let Some(retry_ms) = self.retry_ms() {
            map.serialize_entry("retry_ms", &retry_ms)?;
        }
        map.end()
    }
}

impl JsonSchema for Problem {
    fn schema_name() -> Cow<'static, str> {
        "Problem".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let types = Code::ALL.map(|code| format!("urn:tidings:problem:{}", code.name()));
        json_schema!({
            "description": "What happened, to which input, and what to do (RFC 9457).",
            "type": "object",
            "required": ["type", "title", "status", "detail", "code", "request_id"],
            "properties": {
                "type": { "type": "string", "enum": types },
                "title": { "type": "string" },
                "status": { "type": "integer", "minimum": 400, "maximum": 599 },
                "detail": { "description": "One sentence for people.", "type": "string" },
                "code": {
                    "description": "For programs: its meaning never changes.",
                    "type": "string",
                    "enum": Code::ALL.map(Code::name)
                },
                "field": {
                    "description": "The input at fault, as a path.",
                    "type": "string",
                    "examples": ["mentions[2].offset"]
                },
                "request_id": {
                    "description": "As in the header X-Request-ID; null on a socket.",
                    "type": ["string", "null"]
                },
                "retry_ms": {
                    "description": "How long to wait before the same is tried again, where that helps.",
                    "type": "integer",
                    "minimum": 0
                }
            }
        })
    }
}
