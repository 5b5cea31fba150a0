//! One of the crowd: opens, listens, is cut, comes back, and reads what it missed.
//!
//! What is needed for a moment only is boxed: what stands here is held ten thousand times.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;
use tidings_client::dice::Dice;
use tidings_client::socket::{CONNECT_TIMEOUT, Closed, Identity, Opening, Socket};
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

use super::{Crowd, Cut, Stage};
use crate::modes::count;
use crate::wire::{self, Frame};

/// As the reference client waits: at first up to this, then up to twice as much, and so on.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// After a sync was refused without a word about when to ask again.
const RETRY: Duration = Duration::from_millis(500);

type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

#[derive(Deserialize)]
struct Page<'a> {
    #[serde(borrow)]
    conversations: Vec<Entry<'a>>,
    next_after: Option<Uuid>,
}

#[derive(Deserialize)]
struct Entry<'a> {
    id: Uuid,
    next_seq: Option<u64>,
    #[serde(borrow, default)]
    messages: Vec<&'a RawValue>,
}

pub async fn run(crowd: Arc<Crowd>, index: usize) {
    let opening: Boxed<'_, _> = Box::pin(connect(&crowd, index));
    let mut socket = match opening.await {
        Ok(socket) => socket,
        Err((why, _)) => {
            crowd.counts.failed.fetch_add(1, Relaxed);
            return count(&mut crowd.stats().ends, &why);
        }
    };
    crowd.counts.opened.fetch_add(1, Relaxed);
    let mut stage = crowd.stage.subscribe();
    loop {
        let closed = tokio::select! {
            closed = socket.pump(|_, _| {}) => closed,
            changed = stage.changed() => {
                let now = *stage.borrow_and_update();
                match now {
                    Stage::Return { cut } => {
                        match crowd.args.cut {
                            Cut::Reset => socket.cut(),
                            Cut::Close => Box::pin(socket.close()).await,
                        }
                        let returning: Boxed<'_, _> = Box::pin(come_back(&crowd, index, cut));
                        socket = returning.await;
                        None
                    }
                    _ if changed.is_err() || now == Stage::Close => {
                        return Box::pin(socket.close()).await;
                    }
                    _ => None,
                }
            }
        };
        if let Some(closed) = closed {
            return count(&mut crowd.stats().ends, &closed.to_string());
        }
    }
}

/// Until it holds what it missed, however often it takes.
async fn come_back(crowd: &Crowd, index: usize, cut: Instant) -> Socket {
    let mut dice = Dice::new(index as u64);
    let mut wait = dice.up_to(crowd.args.spread.unwrap_or(FIRST_WAIT));
    let mut attempt = 0;
    loop {
        sleep(wait).await;
        let started = Instant::now();
        let failed = match connect(crowd, index).await {
            Ok(mut socket) => {
                let greeted = Instant::now();
                if attempt == 0 {
                    crowd.counts.returned.fetch_add(1, Relaxed);
                }
                match resume(crowd, index, &mut socket).await {
                    Ok(messages) => {
                        note(crowd, started, greeted, cut);
                        crowd.counts.caught_up.fetch_add(messages, Relaxed);
                        crowd.counts.resumed.fetch_add(1, Relaxed);
                        return socket;
                    }
                    Err(closed) => {
                        let retry = Duration::from_millis(closed.retry_ms.unwrap_or_default());
                        (format!("{closed} before all was read"), retry)
                    }
                }
            }
            Err(failed) => failed,
        };
        let (why, retry) = failed;
        count(&mut crowd.stats().retries, &why);
        attempt += 1;
        wait =
            retry + dice.up_to(FIRST_WAIT.saturating_mul(1 << attempt.min(10)).min(LONGEST_WAIT));
    }
}

fn note(crowd: &Crowd, started: Instant, greeted: Instant, cut: Instant) {
    let mut stats = crowd.stats();
    stats.handshake.record(greeted - started);
    stats.connected.record(greeted - cut);
    stats.resume.record(greeted.elapsed());
    stats.back.record(cut.elapsed());
}

/// From the first packet to `hello`. An error says why, and when the server wants to be asked again.
async fn connect(crowd: &Crowd, index: usize) -> Result<Socket, (String, Duration)> {
    let target = &crowd.args.url;
    let identity = Identity { user: crowd.users[index].id, device: "load" };
    let how = Opening { source: target.source(index), subprotocol: true, receive_buffer: None };
    let opening = async {
        let connected = Socket::connect(target, how, identity).await;
        let mut socket = connected.map_err(|error| (format!("{error:#}"), Duration::ZERO))?;
        let mut greeted = false;
        while !greeted {
            let closed = socket.pump(|_, text| greeted |= wire::kind(text) == "hello").await;
            if let Some(closed) = closed {
                let retry = Duration::from_millis(closed.retry_ms.unwrap_or_default());
                return Err((format!("{closed} before hello"), retry));
            }
        }
        Ok(socket)
    };
    let late = || ("no hello in time".to_owned(), Duration::ZERO);
    timeout(CONNECT_TIMEOUT, opening).await.unwrap_or_else(|_| Err(late()))
}

/// Reads page after page; the messages that they had.
async fn resume(crowd: &Crowd, index: usize, socket: &mut Socket) -> Result<usize, Closed> {
    let mut cursors: BTreeMap<Uuid, u64> = crowd.users[index].cursors.clone();
    let (mut after, mut messages) = (None::<Uuid>, 0);
    loop {
        let named: BTreeMap<_, _> =
            cursors.iter().filter(|(id, _)| after.is_none_or(|after| **id > after)).collect();
        let sync = json!({
            "type": "sync",
            "ref": "sync",
            "payload": { "conversations": named, "after": after },
        });
        socket.outbox().text(&sync.to_string());
        let mut answer = None;
        while answer.is_none() {
            let closed = socket.pump(|_, text| answer = answer.take().or_else(|| read(text))).await;
            if let Some(closed) = closed {
                return Err(closed);
            }
        }
        match answer.expect("the loop ends with one") {
            Answer::Page { moved, messages: more, next_after } => {
                cursors.extend(moved);
                messages += more;
                after = next_after;
                if after.is_none() {
                    return Ok(messages);
                }
            }
            Answer::Refused { code, retry } => {
                count(&mut crowd.stats().retries, &format!("sync: {code}"));
                wait(socket, retry).await?;
            }
        }
    }
}

enum Answer {
    Page { moved: Vec<(Uuid, u64)>, messages: usize, next_after: Option<Uuid> },
    Refused { code: String, retry: Duration },
}

/// What a frame is to the sync; None: something else.
fn read(text: &[u8]) -> Option<Answer> {
    let frame = Frame::read(text)?;
    match (frame.kind, frame.reference) {
        ("ok", Some("sync")) => {
            let page: Page<'_> = frame.payload()?;
            let moved =
                page.conversations.iter().filter_map(|entry| Some((entry.id, entry.next_seq?)));
            Some(Answer::Page {
                moved: moved.collect(),
                messages: page.conversations.iter().map(|entry| entry.messages.len()).sum(),
                next_after: page.next_after,
            })
        }
        ("error", Some("sync")) => {
            let wire::Problem { code, retry_ms } = frame.payload()?;
            Some(Answer::Refused { code, retry: retry_ms.map_or(RETRY, Duration::from_millis) })
        }
        _ => None,
    }
}

/// Events and pings go on meanwhile.
async fn wait(socket: &mut Socket, time: Duration) -> Result<(), Closed> {
    let listening = async {
        loop {
            if let Some(closed) = socket.pump(|_, _| {}).await {
                return closed;
            }
        }
    };
    timeout(time, listening).await.map_or(Ok(()), Err)
}
