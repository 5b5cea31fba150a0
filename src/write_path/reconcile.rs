//! Closes the loop for members who are behind: published again while a device is live, handed
//! over when none is, until `settled_seq` has caught up. Any live node claims what is due.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::dispatcher::{Dispatcher, message_envelope, recipient};
use crate::bus::{Class, Classic, Envelope, Head};
use crate::clock::Timestamp;
use crate::config::DeliveryConfig;
use crate::ids::{ConversationId, Seq, UserId};
use crate::offline::Reason;
use crate::presence::Status;
use crate::protocol::event::Event;
use crate::protocol::model::ChangeKind;
use crate::store::Result;
use crate::store::types::{Laggard, Proof, Run};
use crate::telemetry::metrics::LaggardOutcome;
use crate::telemetry::traces::Trace;

const EVERY: Duration = Duration::from_millis(500);
const CLAIM: u32 = 64;
/// How long a claim is this node's; longer than a round, and renewed while hand-overs go on.
const CLAIM_LEASE: Duration = Duration::from_secs(30);
/// How long a step for a live device may take; all of a round go on at once. So often the claims
/// of those who are handed over are renewed.
const STEP_LIMIT: Duration = Duration::from_secs(10);
/// Parts that are handed over at a time, each of one claim.
const HAND_OVERS: usize = 4;
/// How long a part waits for the end of another; then it is not its turn.
const ROOM_LIMIT: Duration = Duration::from_secs(5);
/// Users to be hastened that may wait.
pub const HASTEN_QUEUE: usize = 4_096;
/// Messages published again, or handed over, at a time for one member.
const PAGE: u32 = 100;
const MAX_BACKOFF: Duration = Duration::from_secs(60);
/// How soon to look again when presence is not known.
const UNKNOWN_PAUSE: Duration = Duration::from_secs(2);

/// What a laggard lacks is messages, not their later changes.
const CREATED: ChangeKind = ChangeKind::MessageCreated;

/// What is to be done about one laggard.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Step {
    /// A device is live, and it lacks little.
    Republish,
    /// A device is live, and it lacks so much that it reads by itself.
    Resync,
    HandOver(Reason),
    Later,
}

fn step(laggard: &Laggard, status: &Status, offline_after: Duration) -> Step {
    match status {
        Status::Offline { .. } => Step::HandOver(Reason::Absent),
        _ if laggard.age >= offline_after => Step::HandOver(Reason::Late),
        Status::Unknown { .. } => Step::Later,
        Status::Online(_) if laggard.behind > i64::from(PAGE) => Step::Resync,
        Status::Online(_) => Step::Republish,
    }
}

/// Laggards that are dealt with together, and what is to be done about each.
type Part = Vec<(Laggard, Step)>;
/// When to look again, for the store.
type Again = (UserId, ConversationId, Duration);

/// Where parts go that are to be handed over.
struct HandOvers {
    room: Arc<Semaphore>,
    parts: mpsc::Sender<(Part, OwnedSemaphorePermit)>,
}

/// Until `stop`. `hasten` names users whose sockets ended badly: what they are known to lack is
/// looked at now.
pub async fn run(
    dispatcher: Arc<Dispatcher>,
    delivery: DeliveryConfig,
    hasten: mpsc::Receiver<UserId>,
    stop: CancellationToken,
) {
    let (parts, mut begun) = mpsc::channel(HAND_OVERS);
    let to_hand_over = HandOvers { room: Arc::new(Semaphore::new(HAND_OVERS)), parts };
    let hand_overs = stream::poll_fn(|cx| begun.poll_recv(cx))
        .for_each_concurrent(HAND_OVERS, |(part, room)| {
            hand_over_part(&dispatcher, &delivery, part, room)
        });
    // What is cut off here is this node's until its claim runs out, and then anyone's.
    tokio::select! {
        () = stop.cancelled() => {}
        () = work(&dispatcher, &delivery, hasten, &to_hand_over) => {}
        () = hand_overs => {}
    }
}

async fn work(
    dispatcher: &Arc<Dispatcher>,
    delivery: &DeliveryConfig,
    mut hasten: mpsc::Receiver<UserId>,
    to_hand_over: &HandOvers,
) {
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut users = Vec::new();
    loop {
        ticks.tick().await;
        while users.len() < HASTEN_QUEUE
            && let Ok(user) = hasten.try_recv()
        {
            users.push(user);
        }
        if !users.is_empty() {
            users.sort_unstable();
            users.dedup();
            if let Err(error) = dispatcher.store.hasten_laggards(&users).await {
                tracing::warn!(%error, "laggards were not made due");
            }
            users.clear();
        }
        match work_off(dispatcher, delivery, to_hand_over).await {
            Ok(claimed) if claimed == CLAIM as usize => ticks.reset_immediately(),
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "laggards could not be worked off"),
        }
    }
}

async fn work_off(
    dispatcher: &Arc<Dispatcher>,
    delivery: &DeliveryConfig,
    to_hand_over: &HandOvers,
) -> Result<usize> {
    let laggards = dispatcher.store.claim_laggards(CLAIM, CLAIM_LEASE).await?;
    if laggards.is_empty() {
        return Ok(0);
    }
    let claimed = laggards.len();
    let users: Vec<UserId> = laggards.iter().map(|laggard| laggard.user_id).collect();
    let status = dispatcher.presence.status(&users).await;
    let steps = laggards.into_iter().zip(status).map(|(laggard, status)| {
        let step = step(&laggard, &status, delivery.offline_after);
        (laggard, step)
    });
    // Live devices do not wait for an offline sink that is away.
    let (hand_overs, live): (Part, Part) =
        steps.partition(|(_, step)| matches!(step, Step::HandOver(_)));
    let taken = live.iter().map(|(laggard, step)| async move {
        let done = timeout(STEP_LIMIT, attend(dispatcher, laggard, *step)).await.unwrap_or(false);
        again(laggard, *step, done, delivery)
    });
    let live = join_all(taken).await;
    dispatcher.store.postpone_laggards(&live).await?;
    if hand_overs.is_empty() {
        return Ok(claimed);
    }
    match timeout(ROOM_LIMIT, to_hand_over.room.clone().acquire_owned()).await {
        Ok(Ok(room)) => {
            // There is a place for each that has room.
            let _ = to_hand_over.parts.try_send((hand_overs, room));
        }
        _ => {
            let later = hand_overs.iter().map(|(one, step)| again(one, *step, false, delivery));
            dispatcher.store.postpone_laggards(&later.collect::<Vec<_>>()).await?;
        }
    }
    Ok(claimed)
}

/// As long as it takes, for what is given up here may be under way all the same and would be handed
/// over twice; the offline sink gives up by itself.
async fn hand_over_part(
    dispatcher: &Arc<Dispatcher>,
    delivery: &DeliveryConfig,
    part: Part,
    _room: OwnedSemaphorePermit,
) {
    let taken = part.iter().map(|(laggard, step)| async move {
        let done = attend(dispatcher, laggard, *step).await;
        again(laggard, *step, done, delivery)
    });
    let mut taken = pin!(join_all(taken));
    loop {
        let (done, postponed) = match timeout(STEP_LIMIT, &mut taken).await {
            Ok(postponed) => (true, postponed),
            Err(_) => {
                let claim = |(laggard, _): &(Laggard, Step)| {
                    (laggard.user_id, laggard.conversation_id, CLAIM_LEASE)
                };
                (false, part.iter().map(claim).collect())
            }
        };
        if let Err(error) = dispatcher.store.postpone_laggards(&postponed).await {
            tracing::warn!(%error, "laggards were not postponed");
        }
        if done {
            return;
        }
    }
}

fn again(laggard: &Laggard, step: Step, done: bool, delivery: &DeliveryConfig) -> Again {
    (laggard.user_id, laggard.conversation_id, pause(laggard, step, done, delivery))
}

/// True if the laggard is settled.
async fn attend(dispatcher: &Arc<Dispatcher>, laggard: &Laggard, step: Step) -> bool {
    take(dispatcher, laggard, step).await.unwrap_or_else(|error| {
        tracing::warn!(%error, user.id = %laggard.user_id, "a laggard stays behind");
        false
    })
}

/// When to look again. One who is done is looked at once more, at once: his row is gone, or there
/// is something new.
fn pause(laggard: &Laggard, step: Step, done: bool, delivery: &DeliveryConfig) -> Duration {
    let until_late = delivery.offline_after.saturating_sub(laggard.age);
    match step {
        _ if done => Duration::ZERO,
        Step::Later => UNKNOWN_PAUSE.min(until_late),
        Step::Republish | Step::Resync => {
            backoff(delivery.settle_grace, laggard.tries).min(until_late)
        }
        Step::HandOver(_) => backoff(delivery.settle_grace, laggard.tries),
    }
}

fn backoff(grace: Duration, tries: i32) -> Duration {
    let doubled = grace.saturating_mul(1 << tries.clamp(0, 16));
    doubled.min(MAX_BACKOFF)
}

/// True if the laggard is settled; its row is gone then.
async fn take(dispatcher: &Arc<Dispatcher>, laggard: &Laggard, step: Step) -> Result<bool> {
    dispatcher.metrics.dispatch.laggards.of(step.outcome()).increment(1);
    match step {
        Step::Later => Ok(false),
        Step::Republish => republish(dispatcher, laggard, false).await,
        Step::Resync => {
            let conversations = [laggard.conversation_id];
            let resync = Event::Resync { conversations: Some(&conversations) };
            let head = Head {
                class: Class::Ephemeral,
                conversation_id: laggard.conversation_id,
                sender_id: laggard.user_id,
                origin: None,
                lo: 0,
                hi: 0,
                sent_at: Timestamp::now(),
            };
            let envelope = Envelope { head, full: resync.encode(), classic: Classic::None };
            dispatcher.bus.publish(&[(laggard.user_id, envelope.encode())]).await;
            // Classic clients cannot read what they missed by themselves.
            republish(dispatcher, laggard, true).await
        }
        Step::HandOver(reason) => hand_over(dispatcher, laggard, reason).await,
    }
}

/// The oldest messages he lacks, to all of his sockets or to the classic ones.
async fn republish(
    dispatcher: &Arc<Dispatcher>,
    laggard: &Laggard,
    classic_only: bool,
) -> Result<bool> {
    let Laggard { user_id, conversation_id, settled_seq, .. } = *laggard;
    let lacking = dispatcher.store.lacking(user_id, conversation_id, settled_seq, PAGE).await?;
    let envelopes = lacking.iter().map(|message| {
        let mut envelope = message_envelope(CREATED, message, None, message.created_at);
        if classic_only {
            envelope.classic = Classic::Own(vec![std::mem::take(&mut envelope.full)]);
        }
        (user_id, envelope.encode())
    });
    let envelopes: Vec<_> = envelopes.collect();
    dispatcher.bus.publish(&envelopes).await;
    // Its proof removes the row.
    Ok(false)
}

async fn hand_over(
    dispatcher: &Arc<Dispatcher>,
    laggard: &Laggard,
    reason: Reason,
) -> Result<bool> {
    let Laggard { user_id, conversation_id, mut settled_seq, .. } = *laggard;
    let muted = laggard.muted_until.is_some_and(|until| until > Timestamp::now());
    loop {
        let lacking = dispatcher.store.lacking(user_id, conversation_id, settled_seq, PAGE).await?;
        let Some(last) = lacking.last().map(|message| message.seq) else { return Ok(true) };
        let more = lacking.len() == PAGE as usize;
        let seqs: Vec<Seq> = lacking.iter().map(|message| message.seq).collect();
        let records = lacking.into_iter().map(|message| {
            let recipients = vec![recipient(&message, user_id, muted)];
            dispatcher.hand_over(CREATED, Arc::new(message), recipients, reason, Trace::default())
        });
        let confirmed = join_all(records).await;
        // What was confirmed in order is not handed over again.
        let confirmed = confirmed.iter().take_while(|runs| !runs.is_empty()).count();
        let Some(hi) = seqs[..confirmed].last().copied() else { return Ok(false) };
        // All that lies between is confirmed, too, or is the user's own.
        let lo = settled_seq + 1;
        let run = Run { conversation_id, user_id, lo, hi, proof: Proof::Offline };
        // Nobody is told of what Kafka has, however large the group.
        dispatcher.store.settle(&[run], 0).await?;
        if hi < last {
            return Ok(false);
        }
        if !more {
            return Ok(true);
        }
        settled_seq = last;
    }
}

impl Step {
    fn outcome(self) -> LaggardOutcome {
        match self {
            Self::Republish => LaggardOutcome::Republished,
            Self::Resync => LaggardOutcome::Resync,
            Self::HandOver(_) => LaggardOutcome::Offline,
            Self::Later => LaggardOutcome::Postponed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn laggard(age: u64, behind: i64) -> Laggard {
        Laggard {
            user_id: UserId(uuid::Uuid::from_u128(1)),
            conversation_id: ConversationId(uuid::Uuid::from_u128(2)),
            tries: 0,
            settled_seq: 1,
            last_seq: 9,
            age: Duration::from_secs(age),
            behind,
            muted_until: None,
        }
    }

    #[test]
    fn absence_unknown_waits_until_it_is_too_late() {
        let after = Duration::from_secs(30);
        let online = Status::Online(Vec::new());
        let offline = Status::Offline { last_seen: None };
        let unknown = Status::Unknown { last_seen: None };
        assert_eq!(step(&laggard(1, 1), &online, after), Step::Republish);
        assert_eq!(step(&laggard(1, 101), &online, after), Step::Resync);
        assert_eq!(step(&laggard(31, 1), &online, after), Step::HandOver(Reason::Late));
        assert_eq!(step(&laggard(1, 1), &offline, after), Step::HandOver(Reason::Absent));
        assert_eq!(step(&laggard(1, 1), &unknown, after), Step::Later);
        assert_eq!(step(&laggard(31, 1), &unknown, after), Step::HandOver(Reason::Late));
    }

    #[test]
    fn a_laggard_is_looked_at_when_it_becomes_late() {
        let delivery = DeliveryConfig {
            offline_after: Duration::from_secs(30),
            settle_grace: Duration::from_secs(5),
            receipts_max_members: 256,
            receipts_retention: Duration::from_secs(3_600),
        };
        let tried = Laggard { tries: 4, ..laggard(27, 1) };
        let pause = |step, done| pause(&tried, step, done, &delivery);
        assert_eq!(pause(Step::Republish, false), Duration::from_secs(3));
        assert_eq!(pause(Step::HandOver(Reason::Absent), false), MAX_BACKOFF);
        assert_eq!(pause(Step::HandOver(Reason::Absent), true), Duration::ZERO);
    }

    #[test]
    fn the_pause_doubles_up_to_a_minute() {
        let grace = Duration::from_secs(5);
        assert_eq!(backoff(grace, 0), grace);
        assert_eq!(backoff(grace, 2), grace * 4);
        assert_eq!(backoff(grace, 30), MAX_BACKOFF);
    }
}
