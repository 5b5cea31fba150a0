//! How an operation of the API is described: the words of [`super::operations`].

use serde_json::{Value, json};

use super::shape::{Shape, given, sent};
use crate::http::Route;
use crate::protocol::code::Code;

/// One method of one route.
pub struct Operation {
    pub route: Route,
    pub method: &'static str,
    /// For code that is made from the document.
    pub id: &'static str,
    pub tag: Tag,
    pub summary: &'static str,
    pub description: &'static str,
    pub parameters: Vec<Parameter>,
    pub body: Option<Body>,
    pub answers: Vec<Answer>,
    /// What it can be refused with.
    pub problems: Vec<Code>,
    /// Who is asking must be known.
    pub private: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tag {
    Messages,
    Conversations,
    Members,
    Presence,
    Socket,
    Node,
    Documents,
}

impl Tag {
    pub const ALL: [Self; 7] = [
        Self::Messages,
        Self::Conversations,
        Self::Members,
        Self::Presence,
        Self::Socket,
        Self::Node,
        Self::Documents,
    ];

    /// Its name and what it gathers.
    pub fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::Messages => ("Messages", "Send, read, edit and delete messages."),
            Self::Conversations => ("Conversations", "Direct ones and groups."),
            Self::Members => ("Members", "Who is in a conversation, with which rights."),
            Self::Presence => ("Presence", "Who is online."),
            Self::Socket => ("Socket", "Live events; the frames are described in /asyncapi.json."),
            Self::Node => ("Node", "What a node says of itself, for operators."),
            Self::Documents => ("Documents", "The contract, for programs and people."),
        }
    }
}

pub struct Parameter {
    pub name: &'static str,
    pub place: &'static str,
    pub description: &'static str,
    pub required: bool,
    pub schema: Value,
    /// null: none, for it does not go with the others.
    pub example: Value,
}

/// In the query, and may be left out.
pub fn query(
    name: &'static str,
    description: &'static str,
    schema: Value,
    example: Value,
) -> Parameter {
    Parameter { name, place: "query", description, required: false, schema, example }
}

/// A header that may be left out.
pub fn header(
    name: &'static str,
    description: &'static str,
    schema: Value,
    example: Value,
) -> Parameter {
    Parameter { name, place: "header", description, required: false, schema, example }
}

impl Parameter {
    pub fn required(self) -> Self {
        Self { required: true, ..self }
    }
}

pub struct Body {
    pub shape: Shape,
    pub example: Value,
}

/// An answer that is no problem.
pub struct Answer {
    pub status: u16,
    pub description: &'static str,
    pub content: Option<Content>,
}

pub struct Content {
    pub kind: &'static str,
    pub schema: Of,
    pub example: Value,
}

pub enum Of {
    Shape(Shape),
    Schema(Value),
}

impl Operation {
    /// One that anybody may call.
    pub fn open(
        route: Route,
        method: &'static str,
        tag: Tag,
        id: &'static str,
        summary: &'static str,
    ) -> Self {
        Self {
            route,
            method,
            id,
            tag,
            summary,
            description: "",
            parameters: Vec::new(),
            body: None,
            answers: Vec::new(),
            // A page of a foreign origin, or in dev mode a foreign name for this host.
            problems: vec![Code::ForeignOrigin, Code::Internal],
            private: false,
        }
    }

    /// One of the API: the caller is known, and the store is needed.
    pub fn api(
        route: Route,
        method: &'static str,
        tag: Tag,
        id: &'static str,
        summary: &'static str,
    ) -> Self {
        let mut operation = Self::open(route, method, tag, id, summary);
        operation.private = true;
        // A body is read, and bounded, also where none is asked for.
        operation.problems(&[
            Code::Unauthenticated,
            Code::RequestTimeout,
            Code::TooLarge,
            Code::RateLimited,
            Code::Unavailable,
        ])
    }

    pub fn description(self, description: &'static str) -> Self {
        Self { description, ..self }
    }

    pub fn parameters(mut self, parameters: impl IntoIterator<Item = Parameter>) -> Self {
        self.parameters.extend(parameters);
        self
    }

    pub fn body<T: schemars::JsonSchema>(mut self, example: Value) -> Self {
        self.body = Some(Body { shape: given::<T>(), example });
        self.problems(&[Code::Malformed])
    }

    /// Answered with JSON.
    pub fn answer<T: schemars::JsonSchema>(
        mut self,
        status: u16,
        description: &'static str,
        example: Value,
    ) -> Self {
        let kind = "application/json";
        let content = Some(Content { kind, schema: Of::Shape(sent::<T>()), example });
        self.answers.push(Answer { status, description, content });
        self
    }

    /// Answered with something else.
    pub fn answer_other(
        mut self,
        status: u16,
        description: &'static str,
        kind: &'static str,
        example: &str,
    ) -> Self {
        let schema = match kind {
            "application/json" => json!({ "type": "object" }),
            _ => json!({ "type": "string" }),
        };
        let example = match kind {
            "application/json" => json!({}),
            _ => example.into(),
        };
        let content = Some(Content { kind, schema: Of::Schema(schema), example });
        self.answers.push(Answer { status, description, content });
        self
    }

    /// Answered with no content.
    pub fn answer_empty(mut self, status: u16, description: &'static str) -> Self {
        self.answers.push(Answer { status, description, content: None });
        self
    }

    pub fn problems(mut self, codes: &[Code]) -> Self {
        let new = codes.iter().filter(|code| !self.problems.contains(code)).copied();
        let new: Vec<_> = new.collect();
        self.problems.extend(new);
        self
    }
}
