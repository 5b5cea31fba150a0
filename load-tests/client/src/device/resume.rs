//! Which logs a device has to read, and the one page that is on its way.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;
use uuid::Uuid;

use crate::copy::Copy;

/// Conversations that one sync may name.
const MAX_NAMED: usize = 1_000;

#[derive(Default)]
pub struct Resume {
    /// Of the store that the copy is of: named until all has been read under another.
    epoch: Option<Uuid>,
    /// All conversations are to be read from the first on.
    all: bool,
    /// Fulfils an order.
    ordered: bool,
    fulfilled: u32,
    /// These are.
    some: BTreeSet<Uuid>,
    reading: Option<Reading>,
    not_before: Option<Instant>,
    pages: u64,
}

struct Reading {
    /// All conversations: the pages go on until the last.
    all: bool,
    ordered: bool,
    after: Option<Uuid>,
    to: Option<Uuid>,
    /// None between two pages.
    asked: Option<Asked>,
}

struct Asked {
    reference: String,
    /// The cursors that were named.
    named: BTreeMap<Uuid, u64>,
}

impl Resume {
    pub fn is_busy(&self) -> bool {
        self.all || self.ordered || self.reading.is_some() || !self.some.is_empty()
    }

    pub fn fulfilled(&self) -> u32 {
        self.fulfilled
    }

    pub fn order(&mut self) {
        self.all = true;
        self.ordered = true;
    }

    pub fn want_all(&mut self) {
        self.all = true;
    }

    pub fn want(&mut self, id: Uuid) {
        self.some.insert(id);
    }

    /// A new connection: what is missed is read; an order is fulfilled again from the beginning.
    /// True: the copy is of another store.
    pub fn on_hello(&mut self, epoch: Uuid) -> bool {
        self.all = true;
        *self.epoch.get_or_insert(epoch) != epoch
    }

    pub fn on_lost(&mut self) {
        self.ordered |= self.reading.take().is_some_and(|reading| reading.ordered);
        self.some.clear();
        self.not_before = None;
    }

    pub fn next(&self) -> Option<Instant> {
        self.not_before.filter(|_| self.reading.as_ref().is_none_or(|r| r.asked.is_none()))
    }

    /// The frame that asks for the next page, if one may go out now.
    pub fn take(&mut self, now: Instant, copy: &Copy) -> Option<String> {
        if self.not_before.is_some_and(|at| now < at) {
            return None;
        }
        self.not_before = None;
        if self.reading.is_none() {
            self.reading = Some(if self.all {
                (self.all, self.some) = (false, BTreeSet::new());
                let ordered = std::mem::take(&mut self.ordered);
                Reading { all: true, ordered, after: None, to: None, asked: None }
            } else {
                let id = self.some.pop_first()?;
                let after = Some(Uuid::from_u128(id.as_u128() - 1));
                Reading { all: false, ordered: false, after, to: Some(id), asked: None }
            });
        }
        let reading = self.reading.as_mut().filter(|reading| reading.asked.is_none())?;
        let in_range = |id: &Uuid| {
            reading.after.is_none_or(|after| *id > after) && reading.to.is_none_or(|to| *id <= to)
        };
        let mut named: BTreeMap<Uuid, u64> = copy
            .conversations
            .iter()
            .filter(|(id, conversation)| in_range(id) && !conversation.gone)
            .map(|(id, conversation)| (*id, conversation.cursor))
            .collect();
        let mut to = reading.to;
        if named.len() > MAX_NAMED {
            let beyond = *named.keys().nth(MAX_NAMED).expect("there are more");
            named.split_off(&beyond);
            to = named.last_key_value().map(|(id, _)| *id);
        }
        if let (false, Some(id)) = (reading.all, reading.to) {
            // Also one we do not know yet, or were removed from.
            named.entry(id).or_insert(0);
        }
        self.pages += 1;
        let reference = format!("sync-{}", self.pages);
        let mut payload = json!({ "conversations": named });
        let mut set = |key: &str, value: Option<Uuid>| {
            if let Some(value) = value {
                payload[key] = json!(value);
            }
        };
        set("after", reading.after);
        set("to", to);
        set("store_epoch", self.epoch);
        let frame = json!({ "type": "sync", "ref": reference, "payload": payload });
        reading.asked = Some(Asked { reference, named });
        Some(Value::to_string(&frame))
    }

    /// The cursors that were named in what this answers; None if nothing was asked by that name.
    pub fn answered(&mut self, reference: &str) -> Option<BTreeMap<Uuid, u64>> {
        let asked = &mut self.reading.as_mut()?.asked;
        asked.take_if(|asked| asked.reference == reference).map(|asked| asked.named)
    }

    /// The page was taken in; `named_to` is the last id it could be about.
    pub fn on_page(&mut self, epoch: Uuid, next_after: Option<Uuid>, named: &BTreeMap<Uuid, u64>) {
        let Some(reading) = &mut self.reading else { return };
        // A range that ended for want of room for names goes on behind it.
        let cut = (named.len() == MAX_NAMED && reading.all)
            .then(|| named.last_key_value().map(|(id, _)| *id))
            .flatten();
        match next_after.or(cut) {
            Some(after) => reading.after = Some(after),
            None => {
                if reading.all {
                    self.epoch = Some(epoch);
                }
                self.fulfilled += u32::from(reading.ordered);
                self.reading = None;
            }
        }
    }

    /// Refused: the same again, later.
    pub fn on_error(&mut self, retry_ms: Option<u64>) {
        self.not_before = Some(Instant::now() + Duration::from_millis(retry_ms.unwrap_or(500)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(resume: &mut Resume, copy: &Copy) -> Option<Value> {
        resume.take(Instant::now(), copy).map(|frame| serde_json::from_str(&frame).unwrap())
    }

    fn id(number: u128) -> Uuid {
        Uuid::from_u128(number)
    }

    #[test]
    fn one_page_at_a_time_until_the_range_is_done() {
        let mut copy = Copy::default();
        for number in 1..=1_001 {
            copy.told(id(number), 1, None);
        }
        let mut resume = Resume::default();
        resume.on_hello(id(9));
        resume.order();
        let first = ask(&mut resume, &copy).unwrap();
        assert_eq!(first["payload"]["conversations"].as_object().unwrap().len(), 1_000);
        assert_eq!(first["payload"]["to"], json!(id(1_000)));
        assert_eq!(first["payload"]["store_epoch"], json!(id(9)));
        assert_eq!(ask(&mut resume, &copy), None, "one is on its way");
        let named = resume.answered("sync-1").unwrap();
        resume.on_page(id(9), None, &named);
        assert_eq!(resume.fulfilled(), 0, "one conversation is left");
        let second = ask(&mut resume, &copy).unwrap();
        assert_eq!(second["payload"]["after"], json!(id(1_000)));
        assert_eq!(second["payload"].get("to"), None);
        let named = resume.answered("sync-2").unwrap();
        resume.on_page(id(9), None, &named);
        assert_eq!((resume.fulfilled(), resume.is_busy()), (1, false));
    }

    #[test]
    fn one_conversation_is_asked_for_by_its_range() {
        let (mut resume, copy) = (Resume::default(), Copy::default());
        resume.want(id(5));
        let asked = ask(&mut resume, &copy).unwrap()["payload"].take();
        assert_eq!(asked["conversations"], json!({ id(5).to_string(): 0 }));
        assert_eq!((&asked["after"], &asked["to"]), (&json!(id(4)), &json!(id(5))));
    }

    #[test]
    fn the_old_epoch_is_named_until_all_was_read_under_the_new_one() {
        let (mut resume, copy) = (Resume::default(), Copy::default());
        let named = |frame: Option<Value>| frame.unwrap()["payload"]["store_epoch"].take();
        assert!(!resume.on_hello(id(1)), "the first is no other");
        resume.on_lost();
        assert!(resume.on_hello(id(2)));
        assert_eq!(named(ask(&mut resume, &copy)), json!(id(1)));
        let cursors = resume.answered("sync-1").unwrap();
        resume.on_page(id(2), Some(id(7)), &cursors);
        assert_eq!(named(ask(&mut resume, &copy)), json!(id(1)), "more pages are to come");
        let cursors = resume.answered("sync-2").unwrap();
        resume.on_page(id(2), None, &cursors);
        resume.want(id(5));
        assert_eq!(named(ask(&mut resume, &copy)), json!(id(2)));
    }

    #[test]
    fn an_order_survives_a_lost_connection() {
        let (mut resume, copy) = (Resume::default(), Copy::default());
        resume.order();
        ask(&mut resume, &copy).unwrap();
        resume.on_lost();
        resume.on_hello(id(1));
        ask(&mut resume, &copy).unwrap();
        let named = resume.answered("sync-2").unwrap();
        resume.on_page(id(1), None, &named);
        assert_eq!(resume.fulfilled(), 1);
    }
}
