//! What stands in the server's frames, as far as each client reads it.

use serde::Deserialize;
use serde_json::value::RawValue;

/// Any frame of the server. `ref` and `type` never hold escapes: they are ours, or fixed words.
#[derive(Deserialize)]
pub struct Frame<'a> {
    #[serde(rename = "type")]
    pub kind: &'a str,
    #[serde(rename = "ref")]
    pub reference: Option<&'a str>,
    #[serde(borrow)]
    pub payload: Option<&'a RawValue>,
}

impl<'a> Frame<'a> {
    pub fn read(text: &'a [u8]) -> Option<Self> {
        serde_json::from_slice(text).ok()
    }

    /// The number that our `ref` is.
    pub fn number(&self) -> Option<usize> {
        self.reference?.parse().ok()
    }

    pub fn payload<T: Deserialize<'a>>(&self) -> Option<T> {
        serde_json::from_str(self.payload?.get()).ok()
    }
}

/// The `type`, empty where there is none.
pub fn kind(text: &[u8]) -> &str {
    Frame::read(text).map_or("", |frame| frame.kind)
}

/// The payload of an `error`, and the body of a refused request.
#[derive(Clone, Debug, Deserialize)]
pub struct Problem {
    pub code: String,
    pub retry_ms: Option<u64>,
}
