//! The people: users with one or two devices in conversations of 2 to 20, who write, edit, delete,
//! come and go, are let in and removed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use hyper::Method;
use serde_json::json;
use tidings_client::device::{Device, Handle, Order, Profile, State};
use tidings_client::dice::Dice;
use tidings_client::history::History;
use tidings_client::rest::Rest;
use tidings_client::target::Target;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use uuid::Uuid;

/// Of a device, before it gets no more to do.
const MAX_WAITING: usize = 60;
/// Of a hundred users that are there at first.
const LEAVERS_PERCENT: u64 = 10;
/// Until all are there for the first time.
const CONNECT_LIMIT: Duration = Duration::from_secs(60);
/// Who wants the big messages of a slow consumer's run.
const BIG_BYTES: usize = 14_000;

#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub users: usize,
    /// Of a hundred users: never connected before the end.
    pub absent_percent: u64,
    pub conversations: usize,
    /// Messages a second, all together.
    pub rate: u64,
    pub big: bool,
}

pub struct Group {
    pub id: Uuid,
    pub owner: usize,
    /// Whom the owner lets in and removes; the others stay.
    guests: Vec<usize>,
    members: Vec<usize>,
}

pub struct User {
    pub id: Uuid,
    absent: bool,
    /// Only reads, and goes away for good at some time: what comes then is Kafka's.
    leaves: bool,
    pub devices: Vec<Handle>,
}

pub struct World {
    plan: Plan,
    pub users: Vec<User>,
    pub groups: Vec<Group>,
    /// Who was let in after the conversation began, once or more often.
    added: Mutex<BTreeSet<(Uuid, Uuid)>>,
    tasks: JoinSet<()>,
}

/// A user's id shows his number, for those who read histories.
fn user_id(seed: u64, number: usize) -> Uuid {
    let bits = (u128::from(seed) << 64) | number as u128;
    uuid::Builder::from_custom_bytes(bits.to_be_bytes()).into_uuid()
}

impl World {
    /// Makes the conversations, and the devices, which are all away yet.
    pub async fn create(
        plan: Plan,
        seed: u64,
        nodes: &[Target],
        doors: Vec<Target>,
        history: &History,
    ) -> anyhow::Result<Self> {
        let mut dice = Dice::of(seed, 1);
        let mut tasks = JoinSet::new();
        let mut users = Vec::new();
        for number in 0..plan.users {
            let id = user_id(seed, number);
            let absent = dice.percent(plan.absent_percent);
            let leaves = !absent && dice.percent(LEAVERS_PERCENT);
            let mut devices = Vec::new();
            for device in 0..if dice.percent(15) { 2 } else { 1 } {
                let (device, handle) = Device::new(Profile {
                    user: id,
                    device: format!("u{number}d{device}"),
                    targets: doors.clone(),
                    acks: dice.percent(50),
                    seed: dice.between(0, u64::MAX - 1),
                    history: history.clone(),
                    receive_buffer: plan.big.then_some(4 << 10),
                    longest_wait: Duration::from_secs(2),
                });
                tasks.spawn(device.run());
                devices.push(handle);
            }
            users.push(User { id, absent, leaves, devices });
        }
        let mut world = Self { plan, users, groups: Vec::new(), added: Mutex::default(), tasks };
        let mut rests = Vec::new();
        for node in nodes {
            rests.push(Rest::connect(node).await?);
        }
        for number in 0..plan.conversations {
            let size = if plan.big { 20 } else { dice.between(2, 20) as usize };
            let mut members = BTreeSet::new();
            while members.len() < size.min(plan.users) {
                members.insert(dice.below(plan.users));
            }
            let members: Vec<usize> = members.into_iter().collect();
            let owner = members[dice.below(members.len())];
            let others: Vec<usize> = members.iter().copied().filter(|m| *m != owner).collect();
            let ids: Vec<Uuid> = others.iter().map(|at| world.users[*at].id).collect();
            let rest = &mut rests[number % nodes.len()];
            let title = format!("conversation {number}");
            let created = rest.create_group(world.users[owner].id, &title, &ids).await?;
            let mut guests: Vec<usize> =
                others.iter().copied().filter(|_| dice.percent(25)).collect();
            // And some who come new.
            guests
                .extend((0..2).map(|_| dice.below(plan.users)).filter(|at| !members.contains(at)));
            world.groups.push(Group { id: created.id, owner, guests, members });
        }
        Ok(world)
    }

    pub fn devices(&self) -> impl Iterator<Item = &Handle> {
        self.users.iter().flat_map(|user| &user.devices)
    }

    /// Of those who are there at all.
    pub fn present(&self) -> impl Iterator<Item = &Handle> {
        self.users.iter().filter(|user| !user.absent).flat_map(|user| &user.devices)
    }

    pub async fn connect(&self) -> anyhow::Result<()> {
        let devices: Vec<&Handle> = self.present().collect();
        // A crowd comes one after the other: it has its storm later.
        for some in devices.chunks(500) {
            for device in some {
                device.orders.send(Order::Back).await?;
            }
            let all = || some.iter().all(|device| device.state.borrow().connected);
            until("all devices are connected", CONNECT_LIMIT, async || Ok(all())).await?;
        }
        Ok(())
    }

    /// All sockets at once; until all are back and have read what they missed.
    pub async fn drop_all_and_wait(&self, limit: Duration) -> anyhow::Result<()> {
        let devices: Vec<(&Handle, u32)> =
            self.present().map(|device| (device, device.state.borrow().connects)).collect();
        for (device, _) in &devices {
            device.orders.send(Order::Drop).await?;
        }
        let back = |device: &Handle, before| {
            let state = device.state.borrow();
            state.away || state.connected && state.connects > before && !state.behind
        };
        let all = || devices.iter().all(|(device, before)| back(device, *before));
        until("all devices are back", limit, async || Ok(all())).await
    }

    /// Traffic for so long. Ends by itself.
    pub async fn live(&self, time: Duration, seed: u64, nodes: &[Target]) {
        let until = Instant::now() + time;
        tokio::join!(
            self.talk(until, Dice::of(seed, 2)),
            self.come_and_go(until, Dice::of(seed, 3)),
            self.let_in_and_remove(until, Dice::of(seed, 4), nodes),
        );
    }

    async fn talk(&self, until: Instant, mut dice: Dice) {
        let mut turns = interval(Duration::from_secs(1) / self.plan.rate.max(1) as u32);
        turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while turns.tick().await < until {
            let group = &self.groups[dice.below(self.groups.len())];
            let everybody = group.members.len() + group.guests.len();
            let at = dice.below(everybody);
            let who = group.members.iter().chain(&group.guests).nth(at).copied();
            let user = &self.users[who.unwrap_or(group.owner)];
            let big = self.plan.big && dice.percent(60);
            let order = match dice.below(100) {
                0..5 => Order::Edit,
                5..8 => Order::Delete,
                _ => Order::Send {
                    conversation: group.id,
                    bytes: if big { BIG_BYTES } else { dice.between(40, 200) as usize },
                },
            };
            let device = &user.devices[dice.below(user.devices.len())];
            if !user.absent && !user.leaves && device.state.borrow().waiting < MAX_WAITING {
                // A device that does not even take orders is busy enough.
                let _ = device.orders.try_send(order);
            }
        }
    }

    /// Every moment somebody leaves, and comes back a little later; some do not.
    async fn come_and_go(&self, until: Instant, mut dice: Dice) {
        let (leavers, others): (Vec<_>, Vec<_>) =
            self.users.iter().filter(|user| !user.absent).partition(|user| user.leaves);
        let devices: Vec<&Handle> = others.iter().flat_map(|user| &user.devices).collect();
        let mut leavers = leavers.into_iter();
        let mut away: BTreeMap<Instant, usize> = BTreeMap::new();
        while Instant::now() < until {
            sleep(Duration::from_millis(150)).await;
            if dice.percent(10)
                && let Some(leaver) = leavers.next()
            {
                for device in &leaver.devices {
                    let _ = device.orders.try_send(Order::Away);
                }
            }
            let back: Vec<usize> =
                away.extract_if(..=Instant::now(), |_, _| true).map(|(_, at)| at).collect();
            for at in back {
                let _ = devices[at].orders.try_send(Order::Back);
            }
            let at = dice.below(devices.len());
            let order = if dice.percent(60) { Order::Away } else { Order::Drop };
            if !away.values().any(|gone| *gone == at)
                && devices[at].orders.try_send(order).is_ok()
                && matches!(order, Order::Away)
            {
                away.insert(Instant::now() + Duration::from_millis(dice.between(500, 5_000)), at);
            }
        }
        for at in away.into_values() {
            let _ = devices[at].orders.send(Order::Back).await;
        }
    }

    async fn let_in_and_remove(&self, until: Instant, mut dice: Dice, nodes: &[Target]) {
        let mut inside: BTreeSet<(usize, usize)> = (0..self.groups.len())
            .flat_map(|at| self.groups[at].members.iter().map(move |member| (at, *member)))
            .collect();
        while Instant::now() < until {
            sleep(Duration::from_millis(dice.between(100, 500))).await;
            let at = dice.below(self.groups.len());
            let group = &self.groups[at];
            let Some(guest) = dice.pick(&group.guests).copied() else { continue };
            let (id, owner, conversation) =
                (self.users[guest].id, self.users[group.owner].id, group.id);
            let path = format!("/api/v1/conversations/{conversation}/participants");
            let node = &nodes[dice.below(nodes.len())];
            // How it went shows in the database; the other way round is tried next in any case.
            let _ = if inside.remove(&(at, guest)) {
                request(node, Method::DELETE, &format!("{path}/{id}"), owner, None).await
            } else {
                inside.insert((at, guest));
                self.note_added(conversation, id);
                let body = json!({ "user_ids": [id], "with_history": dice.percent(70) });
                request(node, Method::POST, &path, owner, Some(&body)).await
            };
        }
    }

    fn note_added(&self, conversation: Uuid, user: Uuid) {
        let mut added = self.added.lock().unwrap_or_else(PoisonError::into_inner);
        added.insert((conversation, user));
    }

    pub fn added(&self) -> Vec<(Uuid, Uuid)> {
        self.added.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect()
    }

    /// All that was asked for has its outcome.
    pub async fn answered(&self, limit: Duration) -> anyhow::Result<()> {
        let none = || self.devices().all(|device| device.state.borrow().waiting == 0);
        until("all commands have their outcome", limit, async || Ok(none())).await
    }

    /// Everybody comes, reads all that he missed, and holds still.
    pub async fn resume(&self, limit: Duration) -> anyhow::Result<()> {
        for device in self.devices() {
            device.orders.send(Order::Back).await?;
            device.orders.send(Order::Resume).await?;
        }
        let done = |state: &State| {
            state.banned.is_some() || state.connected && state.resumed > 0 && !state.behind
        };
        let all = || self.devices().all(|device| done(&device.state.borrow()));
        until("all devices have resumed", limit, async || Ok(all())).await
    }

    /// Everybody writes down what he holds, and leaves.
    pub async fn end(&mut self, limit: Duration) -> anyhow::Result<()> {
        for device in self.devices() {
            device.orders.send(Order::End).await?;
        }
        let all = async {
            while self.tasks.join_next().await.transpose()?.is_some() {}
            anyhow::Ok(())
        };
        tokio::time::timeout(limit, all).await.context("devices do not end")?
    }
}

async fn request(
    node: &Target,
    method: Method,
    path: &str,
    user: Uuid,
    body: Option<&serde_json::Value>,
) -> anyhow::Result<()> {
    let mut rest = Rest::connect(node).await?;
    let (status, answer) = rest.call(method, path, user, body).await?;
    if !status.is_success() {
        bail!("{status} {answer}");
    }
    Ok(())
}

/// Waits for a condition.
pub async fn until(
    what: &str,
    limit: Duration,
    mut holds: impl AsyncFnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + limit;
    while !holds().await? {
        if Instant::now() > deadline {
            bail!("waited {limit:?} in vain until {what}");
        }
        sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}
