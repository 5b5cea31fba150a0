//! One link and one subscriber for each master that holds users, as the layout changes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::join_all;
use redis::RedisError;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::gauges::Gauges;
use super::link::Link;
use super::subscriber::Subscriber;
use super::subscriptions::Groups;
use crate::bus::Inbox;
use crate::config::Addr;
use crate::shards::{Layout, Shards};
use crate::shutdown::Stage;

pub(super) struct Fleet {
    pub shards: Shards,
    pub inbox: Arc<dyn Inbox>,
    pub groups: Arc<Groups>,
    pub gauges: Arc<Gauges>,
    pub stage: Stage,
    /// By master. Changed by `keep` only.
    pub links: Mutex<HashMap<Addr, Arc<Link>>>,
}

/// One master and its two tasks.
struct Ship {
    /// Groups whose channels lie there.
    groups: watch::Sender<Arc<[usize]>>,
    subscriber: Arc<Subscriber>,
    link: Arc<Link>,
    stop: CancellationToken,
}

/// Those that sail, and which group is on which.
#[derive(Default)]
pub(super) struct Sailing {
    ships: HashMap<Addr, Ship>,
    /// For each group, where it was last.
    places: Vec<Option<Addr>>,
}

impl Fleet {
    pub fn link(&self, addr: &Addr) -> Option<Arc<Link>> {
        self.links().get(addr).cloned()
    }

    pub fn links(&self) -> std::sync::MutexGuard<'_, HashMap<Addr, Arc<Link>>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the first connections. Of a cluster one master that answers is enough; an error is one
    /// of the settings, or says that nobody does.
    pub async fn begin(&self) -> Result<Sailing, RedisError> {
        let mut sailing = Sailing::default();
        let launched = self.match_to(&self.shards.layout(), &mut sailing);
        let opened = launched.iter().map(async |addr| {
            let ship = &sailing.ships[addr];
            ship.link.open().await?;
            ship.subscriber.open_first().await
        });
        let (opened, failed): (Vec<_>, Vec<_>) =
            join_all(opened).await.into_iter().partition(Result::is_ok);
        for error in failed.into_iter().filter_map(Result::err) {
            let answer = crate::shards::of_connect(error.clone());
            if opened.is_empty() || matches!(answer, crate::shards::ShardsError::Rejected(_)) {
                return Err(error);
            }
            warn!(%error, "a master of the cluster does not answer");
        }
        self.start(&launched, &sailing);
        Ok(sailing)
    }

    /// Until the stop.
    pub async fn keep(self: Arc<Self>, mut sailing: Sailing) {
        let mut changes = self.shards.changes();
        let following = async {
            loop {
                let layout = changes.borrow_and_update().clone();
                let launched = self.match_to(&layout, &mut sailing);
                self.start(&launched, &sailing);
                if changes.changed().await.is_err() {
                    return std::future::pending::<()>().await;
                }
            }
        };
        self.stage.stop.run_until_cancelled(following).await;
        self.groups.close();
    }

    /// Groups go to the masters that hold them now; masters without any are left. Returns those that
    /// are new.
    fn match_to(&self, layout: &Layout, sailing: &mut Sailing) -> Vec<Addr> {
        let prefix = &self.shards.config().prefix;
        let Sailing { ships, places } = sailing;
        places.resize(self.groups.len(), None);
        let mut now: HashMap<Addr, Vec<usize>> = HashMap::new();
        let mut moved = Vec::new();
        for (group, place) in places.iter_mut().enumerate() {
            // Whose slot nobody holds stays, and waits there.
            let owner = layout.owner(&format!("{prefix}:{{p{group:02}}}:")).or(place.as_ref());
            let Some(owner) = owner.cloned() else { continue };
            now.entry(owner.clone()).or_default().push(group);
            if place.as_ref() != Some(&owner) {
                *place = Some(owner);
                moved.push(group);
            }
        }
        ships.retain(|addr, ship| {
            let stays = now.contains_key(addr);
            if !stays {
                ship.stop.cancel();
            }
            stays
        });
        let mut launched = Vec::new();
        for (addr, groups) in now {
            let groups: Arc<[usize]> = groups.into();
            match ships.get(&addr) {
                Some(ship) => {
                    ship.groups.send_if_modified(|held| {
                        let differs = *held != groups;
                        *held = groups;
                        differs
                    });
                }
                None => {
                    ships.insert(addr.clone(), self.build(&addr, groups));
                    launched.push(addr);
                }
            }
        }
        // Once whoever takes them knows that they are his.
        for group in moved {
            if let Some(ship) = places[group].as_ref().and_then(|addr| ships.get(addr)) {
                self.groups.get(group).moved(ship.subscriber.bell());
            }
        }
        *self.links() =
            ships.iter().map(|(addr, ship)| (addr.clone(), ship.link.clone())).collect();
        launched
    }

    fn build(&self, addr: &Addr, groups: Arc<[usize]>) -> Ship {
        let link = Arc::new(Link::new(&self.shards, addr, self.gauges.clone()));
        let (groups, held) = watch::channel(groups);
        let subscriber = Arc::new(Subscriber::new(self, addr, held, link.clone()));
        Ship { groups, subscriber, link, stop: self.stage.stop.child_token() }
    }

    fn start(&self, launched: &[Addr], sailing: &Sailing) {
        for addr in launched {
            let Ship { subscriber, link, stop, .. } = &sailing.ships[addr];
            let (subscriber, link) = (subscriber.clone(), link.clone());
            // A master may go, and then its two tasks.
            let (ends, stops) = (stop.clone(), stop.clone());
            let subscribing = async move { subscriber.run(ends).await };
            self.stage.spawn_until("subscriber", stop.clone(), subscribing);
            let publishing = async move { link.run(stops).await };
            self.stage.spawn_until("link", stop.clone(), publishing);
        }
    }
}
