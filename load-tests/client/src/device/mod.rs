//! One device of a user, as a good client behaves: it comes back with full jitter when and where it
//! may, resumes, acknowledges what it holds, and sends each message until its outcome is known,
//! always under the same `client_message_id`.

mod commands;
mod resume;
mod session;

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};
use uuid::Uuid;

use crate::copy::Copy;
use crate::dice::Dice;
use crate::history::{Entry, History};
use crate::socket::{CONNECT_TIMEOUT, Closed, Identity, Opening, Socket};
use crate::target::Target;

use commands::Commands;
use resume::Resume;
use session::Ended;

/// Orders that may wait for a device.
const ORDERS: usize = 256;
/// Closed because another connection of the device took its place.
const REPLACED: u16 = 4409;
/// So long after it was given up a connection may still reach the server, and take that place.
const GIVEN_UP: Duration = Duration::from_secs(60);
/// The first wait before coming back is up to this, the next up to twice as much, and so on.
const FIRST_WAIT: Duration = Duration::from_millis(100);

#[derive(Clone)]
pub struct Profile {
    pub user: Uuid,
    pub device: String,
    /// Each connection goes to one of them by chance, as behind a load balancer.
    pub targets: Vec<Target>,
    /// Connects with `features=acks` and says what it holds; else its pongs prove.
    pub acks: bool,
    pub seed: u64,
    pub history: History,
    pub receive_buffer: Option<u32>,
    /// Between two attempts to connect.
    pub longest_wait: Duration,
}

/// What a device is told to do.
#[derive(Clone, Copy, Debug)]
pub enum Order {
    Send {
        conversation: Uuid,
        bytes: usize,
    },
    /// One of the messages that it sent.
    Edit,
    Delete,
    /// Closes in order, and stays away.
    Away,
    Back,
    /// Loses its connection, and comes back.
    Drop,
    /// Does not read for so long.
    Stall(Duration),
    /// Reads all that it missed, from the first conversation to the last.
    Resume,
    /// Writes down what it holds, and ends.
    End,
}

/// How it is with a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct State {
    pub connected: bool,
    /// How often it was let in.
    pub connects: u32,
    /// It was told to stay away.
    pub away: bool,
    /// Commands without a final outcome.
    pub waiting: usize,
    /// It reads, or waits for, what it knows to be missing.
    pub behind: bool,
    /// Orders to resume that are fulfilled.
    pub resumed: u32,
    /// It was told not to come back, by this code.
    pub banned: Option<u16>,
}

/// Whoever runs a device holds this.
pub struct Handle {
    pub user: Uuid,
    pub orders: mpsc::Sender<Order>,
    pub state: watch::Receiver<State>,
}

pub struct Device {
    profile: Profile,
    dice: Dice,
    copy: Copy,
    commands: Commands,
    resume: Resume,
    orders: mpsc::Receiver<Order>,
    state: watch::Sender<State>,
    away: bool,
    stalled_until: Option<Instant>,
    /// When it last gave a connection up that the server may still take for one.
    gave_up: Option<Instant>,
    /// Kinds of events that told of no change.
    heard: BTreeSet<(Uuid, String)>,
}

impl Device {
    /// Away until told to come; the caller runs it.
    pub fn new(profile: Profile) -> (Self, Handle) {
        let (sender, orders) = mpsc::channel(ORDERS);
        let (state, seen) = watch::channel(State::default());
        let handle = Handle { user: profile.user, orders: sender, state: seen };
        let device = Self {
            dice: Dice::of(profile.seed, profile.user.as_u64_pair().1),
            copy: Copy::default(),
            commands: Commands::new(&profile.device),
            resume: Resume::default(),
            orders,
            state,
            away: true,
            stalled_until: None,
            gave_up: None,
            heard: BTreeSet::new(),
            profile,
        };
        (device, handle)
    }

    /// Until it is told to end, or nobody can tell it any more.
    pub async fn run(mut self) {
        let mut attempt = 0;
        loop {
            if self.rest(Instant::now()).await {
                break;
            }
            let wait = match self.connect().await {
                Ok(socket) => {
                    attempt = 0;
                    let ended = self.session(socket).await;
                    self.commands.on_lost(|entry| self.profile.note(entry));
                    self.resume.on_lost();
                    self.show(|state| state.connected = false);
                    if let Ended::Dropped | Ended::Silent = ended {
                        self.gave_up = Some(Instant::now());
                    }
                    match ended {
                        Ended::Ordered => break,
                        Ended::Away => self.on_left("goes away", Duration::ZERO),
                        Ended::Dropped => self.on_left("drops its connection", Duration::ZERO),
                        Ended::Silent => self.on_left("hears nothing", Duration::ZERO),
                        Ended::Told(after) => self.on_left("is told to come back", after),
                        Ended::Closed(closed) => self.on_closed(&closed),
                    }
                }
                Err(error) => {
                    self.gave_up = Some(Instant::now());
                    self.note(Entry::NotConnected { why: format!("{error:#}") });
                    Duration::ZERO
                }
            };
            let limit = FIRST_WAIT.saturating_mul(1 << attempt.min(10));
            let jitter = self.dice.up_to(limit.min(self.profile.longest_wait));
            attempt += 1;
            if self.rest(Instant::now() + wait + jitter).await {
                break;
            }
        }
        for (id, conversation) in &self.copy.conversations {
            let mut messages: Vec<_> = conversation.messages.values().cloned().collect();
            messages.sort_unstable_by_key(|message| message.seq);
            self.note(Entry::Holds {
                conversation: *id,
                cursor: conversation.cursor,
                gone: conversation.gone,
                messages,
            });
        }
    }

    /// By its own doing.
    fn on_left(&self, why: &str, wait: Duration) -> Duration {
        self.note(Entry::Closed { code: None, why: why.to_owned() });
        wait
    }

    /// The wait that the server asks for.
    fn on_closed(&mut self, closed: &Closed) -> Duration {
        self.note(Entry::Closed { code: closed.code, why: closed.to_string() });
        if let Some(fault) = &closed.fault {
            self.note(Entry::Fault { what: fault.clone() });
        }
        // Replaced, perhaps by what was left of its own: then it comes back, once.
        let by_itself = closed.code == Some(REPLACED)
            && self.gave_up.take().is_some_and(|at| at.elapsed() < GIVEN_UP);
        if let Some(code @ (1002 | 1007 | 1009 | 4400..=4499)) = closed.code
            && !by_itself
        {
            self.show(|state| state.banned = Some(code));
        }
        Duration::from_millis(closed.retry_ms.unwrap_or_default())
    }

    /// Follows orders without a connection: until then, or as long as it is to stay away. True: it
    /// is to end.
    async fn rest(&mut self, until: Instant) -> bool {
        loop {
            let idle = self.away || self.state.borrow().banned.is_some();
            let order = tokio::select! {
                biased;
                order = self.orders.recv() => order,
                () = sleep_until(until), if !idle => return false,
            };
            match order {
                None | Some(Order::End) => return true,
                Some(order) => self.on_order(order),
            }
        }
    }

    fn on_order(&mut self, order: Order) {
        match order {
            Order::Send { conversation, bytes } => self.commands.send(conversation, bytes),
            Order::Edit => self.commands.edit(&mut self.dice),
            Order::Delete => self.commands.delete(&mut self.dice),
            Order::Away => self.away = true,
            Order::Back => self.away = false,
            Order::Resume => self.resume.order(),
            Order::Stall(time) => self.stalled_until = Some(Instant::now() + time),
            Order::Drop | Order::End => {}
        }
        self.tell_state();
    }

    async fn connect(&mut self) -> anyhow::Result<Socket> {
        let profile = &self.profile;
        let at = self.dice.below(profile.targets.len());
        let mut target = profile.targets[at].clone();
        if profile.acks {
            target.ws_path.push_str("?features=acks");
        }
        let how =
            Opening { source: None, subprotocol: true, receive_buffer: profile.receive_buffer };
        let identity = Identity { user: profile.user, device: &profile.device };
        timeout(CONNECT_TIMEOUT, Socket::connect(&target, how, identity)).await?
    }

    fn note(&self, entry: Entry) {
        self.profile.note(entry);
    }

    fn show(&self, change: impl FnOnce(&mut State)) {
        self.state.send_if_modified(|state| {
            let before = *state;
            change(state);
            *state != before
        });
    }

    fn tell_state(&self) {
        let gap = self.copy.conversations.values().any(|c| c.beyond_gap().is_some() && !c.gone);
        let waiting = self.commands.waiting();
        let behind = gap || self.resume.is_busy();
        let (resumed, away) = (self.resume.fulfilled(), self.away);
        self.show(|state| {
            state.waiting = waiting;
            state.behind = behind;
            state.away = away;
            state.resumed = resumed;
        });
    }
}

impl Profile {
    fn note(&self, entry: Entry) {
        self.history.note(self.user, &self.device, entry);
    }
}
