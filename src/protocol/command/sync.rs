//! What a client knows of its conversations, to be told what it missed.

use std::collections::{BTreeMap, HashMap};
use std::str::FromStr;

use schemars::JsonSchema;
use serde::Deserialize;
use uuid::Uuid;

use super::{MAX_PAGE, MAX_SYNC_CONVERSATIONS};
use crate::ids::{ConversationId, Seq};
use crate::protocol::number::{MAX_SEQ, seqs, seqs_schema, whole_or_none};
use crate::protocol::problem::Problem;

/// As it arrives: what is no id or no place is refused with its field's name, not as a whole.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(description = "What a client knows of its conversations, to be told what it missed.")]
pub struct SyncRequest {
    /// Up to where each is held, by its id: at most 1,000 of the range; 0 holds nothing.
    #[serde(deserialize_with = "seqs")]
    #[schemars(schema_with = "seqs_schema::<MAX_SYNC_CONVERSATIONS, 0>")]
    pub conversations: HashMap<String, Seq>,
    /// The range of ids it is about: above this one. A page's `next_after`.
    #[serde(default)]
    #[schemars(with = "Option<ConversationId>")]
    pub after: Option<String>,
    /// And up to this one.
    #[serde(default)]
    #[schemars(with = "Option<ConversationId>")]
    pub to: Option<String>,
    /// Of the store that the client's copy is of, as `hello` told when it was read.
    #[serde(default)]
    #[schemars(with = "Option<Uuid>")]
    pub store_epoch: Option<String>,
    /// Messages in one answer.
    #[serde(default, deserialize_with = "whole_or_none")]
    #[schemars(range(min = 1, max = MAX_PAGE))]
    pub limit: Option<u32>,
}

/// A checked one.
#[derive(Clone, Debug, PartialEq)]
pub struct Sync {
    /// Up to where the client holds each; in order of id, as they are answered.
    pub cursors: BTreeMap<ConversationId, Seq>,
    /// The range of ids it is about: above this one,
    pub after: Option<ConversationId>,
    /// and up to this one.
    pub to: Option<ConversationId>,
    pub store_epoch: Option<Uuid>,
    /// Messages in one answer.
    pub limit: u32,
}

impl SyncRequest {
    pub fn checked(self) -> Result<Sync, Problem> {
        if self.conversations.len() > MAX_SYNC_CONVERSATIONS {
            let detail = format!(
                "one sync names at most {MAX_SYNC_CONVERSATIONS} conversations, this one names {}; \
                 take more than one, each with its range of ids",
                self.conversations.len()
            );
            return Err(Problem::invalid("conversations", detail));
        }
        let after: Option<ConversationId> = id("after", self.after, "a conversation id")?;
        let to: Option<ConversationId> = id("to", self.to, "a conversation id")?;
        if let (Some(after), Some(to)) = (after, to)
            && to <= after
        {
            return Err(Problem::invalid("to", "to lies above after: the range must hold an id"));
        }
        let limit = self.limit.unwrap_or(MAX_PAGE);
        if !(1..=MAX_PAGE).contains(&limit) {
            let detail = format!("limit is a number from 1 to {MAX_PAGE}");
            return Err(Problem::invalid("limit", detail));
        }
        let mut cursors = BTreeMap::new();
        for (name, seq) in self.conversations {
            let Ok(id) = name.parse::<ConversationId>() else {
                // Cut short: it may be of any length.
                let name: String = name.chars().take(40).collect();
                let field = format!("conversations.{name}");
                return Err(Problem::invalid(field, "a conversation id is a UUID"));
            };
            let refused =
                |detail: &'static str| Err(Problem::invalid(format!("conversations.{id}"), detail));
            if !(0..=MAX_SEQ).contains(&seq) {
                return refused("a seq is a number from 0, which holds nothing, to 2^53 - 1");
            }
            if after.is_some_and(|after| id <= after) || to.is_some_and(|to| id > to) {
                return refused("this id is outside of the range (after, to]");
            }
            if cursors.insert(id, seq).is_some() {
                return refused("this conversation is named twice");
            }
        }
        let store_epoch = id("store_epoch", self.store_epoch, "as hello told it: a UUID")?;
        Ok(Sync { cursors, after, to, store_epoch, limit })
    }
}

fn id<T: FromStr>(
    field: &'static str,
    text: Option<String>,
    form: &str,
) -> Result<Option<T>, Problem> {
    let parsed = text.map(|text| text.parse::<T>());
    parsed.transpose().map_err(|_| Problem::invalid(field, format!("{field} is {form}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::code::Code;
    use crate::protocol::command::from_json;

    const LOW: &str = "018bcfe5-6807-7abc-8000-000000000001";
    const MID: &str = "018bcfe5-6807-7abc-8000-000000000002";
    const HIGH: &str = "018bcfe5-6807-7abc-8000-000000000003";

    fn check(text: &str) -> Result<Sync, Problem> {
        from_json::<SyncRequest>(&mut text.as_bytes().to_vec())?.checked()
    }

    fn refused(text: &str) -> (Code, String) {
        let problem = check(text).expect_err("it is refused");
        (problem.code, problem.field.expect("the field is named").into_owned())
    }

    #[test]
    fn a_sync_is_put_in_order() {
        let sync = check(&format!(
            r#"{{"conversations":{{"{HIGH}":7,"{MID}":0}},"after":"{LOW}","to":"{HIGH}","limit":3}}"#
        ))
        .unwrap();
        let cursors: Vec<_> = sync.cursors.iter().map(|(id, seq)| (id.to_string(), *seq)).collect();
        assert_eq!(cursors, [(MID.to_owned(), 0), (HIGH.to_owned(), 7)]);
        assert_eq!((sync.limit, sync.store_epoch), (3, None));
        let all = check(r#"{"conversations":{}}"#).unwrap();
        assert_eq!((all.after, all.to, all.limit), (None, None, MAX_PAGE));
    }

    #[test]
    fn faults_name_the_field() {
        let invalid = |text: String| {
            let (code, field) = refused(&text);
            assert_eq!(code, Code::Invalid, "{text}");
            field
        };
        let named = |name: &str, rest: &str| format!(r#"{{"conversations":{{"{name}":1}}{rest}}}"#);
        assert_eq!(invalid(named("nonsense", "")), "conversations.nonsense");
        assert_eq!(invalid(named(&"x".repeat(500), "")).len(), "conversations.".len() + 40);
        let negative = format!(r#"{{"conversations":{{"{MID}":-1}}}}"#);
        assert_eq!(invalid(negative), format!("conversations.{MID}"));
        // The range holds its end and not its beginning.
        let outside = [format!(r#","after":"{MID}""#), format!(r#","to":"{LOW}""#)];
        for range in outside {
            assert_eq!(invalid(named(MID, &range)), format!("conversations.{MID}"), "{range}");
        }
        let twice = format!(r#"{{"conversations":{{"{MID}":1,"{}":1}}}}"#, MID.to_uppercase());
        assert_eq!(invalid(twice), format!("conversations.{MID}"));
        for (rest, field) in [
            (r#","after":"x""#.to_owned(), "after"),
            (r#","to":"x""#.to_owned(), "to"),
            (format!(r#","after":"{MID}","to":"{MID}""#), "to"),
            (r#","store_epoch":"x""#.to_owned(), "store_epoch"),
            (r#","limit":0"#.to_owned(), "limit"),
            (r#","limit":201"#.to_owned(), "limit"),
        ] {
            assert_eq!(invalid(format!(r#"{{"conversations":{{}}{rest}}}"#)), field);
        }
        let shape = refused(&format!(r#"{{"conversations":{{"{MID}":"1"}}}}"#));
        assert_eq!(shape, (Code::Malformed, format!("conversations.{MID}")));
        assert_eq!(refused("{}"), (Code::Malformed, "conversations".to_owned()));
    }

    #[test]
    fn at_most_a_thousand_are_named() {
        let named = |count: u128| {
            let names = (1..=count).map(|n| format!("\"{}\":1", Uuid::from_u128(n)));
            format!(r#"{{"conversations":{{{}}}}}"#, names.collect::<Vec<_>>().join(","))
        };
        assert_eq!(check(&named(1_000)).unwrap().cursors.len(), 1_000);
        assert_eq!(refused(&named(1_001)), (Code::Invalid, "conversations".to_owned()));
    }
}
