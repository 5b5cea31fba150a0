//! The one timer of all sockets: pings those that were silent, ends those that did not answer, and
//! those whose token has ended.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fastwebsockets::OpCode;
use tokio_util::sync::CancellationToken;

use super::hub::Hub;
use super::outbound::Item;
use crate::clock::Timestamp;
use crate::protocol::code::CloseCode;

/// Silence is judged at this part of the interval: a ping goes out at most so much late.
const TICKS_PER_INTERVAL: u32 = 5;
/// So much late at most is a token's end noticed, however long the interval.
const LONGEST_TICK: Duration = Duration::from_secs(5);

/// Until `stop`: a session silent for `interval` is pinged, and ended `timeout` later unless it
/// was heard of.
pub async fn run(hub: Arc<Hub>, interval: Duration, timeout: Duration, stop: CancellationToken) {
    let tick = (interval / TICKS_PER_INTERVAL).min(timeout).min(LONGEST_TICK);
    let mut ticks = tokio::time::interval(tick);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let now = Timestamp::now();
        hub.for_each(|session| {
            if session.is_past(now) {
                return session.queue.end(CloseCode::TokenExpired);
            }
            let silent = session.silence();
            if silent >= interval + timeout {
                session.queue.end(CloseCode::HeartbeatMissed);
            } else if silent >= interval && session.ask_for_life() {
                session.push(Item::control(OpCode::Ping, Bytes::new()));
            }
        });
    }
}
