//! Which masters there are, and which of them holds what.

use std::collections::{BTreeSet, HashMap};
use std::ops::RangeInclusive;

use crate::config::Addr;

const SLOTS: usize = 16_384;
/// Of a slot that nobody is known to hold.
const NOBODY: u16 = u16::MAX;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    masters: Vec<Addr>,
    /// Of a cluster: for each slot the place of its master in `masters`.
    slots: Option<Box<[u16]>>,
}

impl Layout {
    /// One master holds everything.
    pub fn one(master: Addr) -> Self {
        Self { masters: vec![master], slots: None }
    }

    /// Of a cluster, by what its nodes say of themselves. Who says that a slot is his under the
    /// highest epoch is right, which is the cluster's own rule; slots whose master says nothing stay
    /// where they were. Masters without slots are left out.
    pub fn of(claims: &[Claim], before: Option<&Self>) -> Self {
        // A known owner that says nothing has epoch 0.
        let known = |slot| Some((0, before?.owner_of_slot(slot)?));
        let mut owners: Vec<Option<(u64, &Addr)>> = (0..SLOTS).map(known).collect();
        for claim in claims {
            for slot in claim.slots.iter().cloned().flatten() {
                let owner = owners.get_mut(usize::from(slot));
                let Some(owner) = owner else { continue };
                if owner.is_none_or(|(epoch, _)| claim.epoch >= epoch) {
                    *owner = Some((claim.epoch, &claim.addr));
                }
            }
        }
        let order = |addr: &&Addr| (addr.host.to_string(), addr.port);
        let masters: BTreeSet<_> = owners.iter().flatten().map(|(_, addr)| order(addr)).collect();
        let masters: Vec<Addr> =
            masters.into_iter().map(|(host, port)| Addr { host: host.into(), port }).collect();
        let places: HashMap<&Addr, u16> = masters.iter().zip(0..).collect();
        let place = |owner: Option<(u64, &Addr)>| owner.map_or(NOBODY, |(_, addr)| places[addr]);
        let slots = owners.into_iter().map(place).collect();
        Self { slots: Some(slots), masters }
    }

    pub fn masters(&self) -> &[Addr] {
        &self.masters
    }

    pub fn is_cluster(&self) -> bool {
        self.slots.is_some()
    }

    /// None: of a cluster, in which nobody is known to hold the key's slot.
    pub fn owner(&self, key: &str) -> Option<&Addr> {
        match self.slots {
            None => self.masters.first(),
            Some(_) => self.owner_of_slot(usize::from(slot(key))),
        }
    }

    fn owner_of_slot(&self, slot: usize) -> Option<&Addr> {
        self.masters.get(usize::from(*self.slots.as_ref()?.get(slot)?))
    }
}

/// What one node of a cluster says of itself.
#[derive(Debug, PartialEq, Eq)]
pub struct Claim {
    pub addr: Addr,
    pub epoch: u64,
    pub slots: Vec<RangeInclusive<u16>>,
}

/// The answer to `CLUSTER NODES`: what the node says of itself, if it is a master, and all nodes it knows.
/// `asked`: the address at which it was reached, for a node does not always know its own.
pub fn read_nodes(text: &str, asked: &Addr, by_name: bool) -> (Option<Claim>, Vec<Addr>) {
    let (mut claim, mut known) = (None, Vec::new());
    for line in text.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let [_, place, flags, _, _, _, epoch, _, slots @ ..] = words.as_slice() else { continue };
        let flags: Vec<&str> = flags.split(',').collect();
        if flags.iter().any(|flag| matches!(*flag, "noaddr" | "handshake")) {
            continue;
        }
        let Some(addr) = read_addr(place, asked, by_name) else { continue };
        if flags.contains(&"myself") && flags.contains(&"master") {
            // What is on its way from one node to another stands in brackets, besides.
            let slots = slots.iter().filter_map(|range| {
                let (first, last) = range.split_once('-').unwrap_or((range, range));
                Some(first.parse().ok()?..=last.parse().ok()?)
            });
            let epoch = epoch.parse().unwrap_or(0);
            claim = Some(Claim { addr: addr.clone(), epoch, slots: slots.collect() });
        }
        known.push(addr);
    }
    (claim, known)
}

/// `ip:port@bus-port[,name[,…]]`
fn read_addr(text: &str, asked: &Addr, by_name: bool) -> Option<Addr> {
    let (text, name) = text.split_once(',').unwrap_or((text, ""));
    let name = name.split(',').next().filter(|name| by_name && !name.is_empty());
    let (host, port) = text.split('@').next()?.rsplit_once(':')?;
    let host = match name.unwrap_or(host) {
        "" => asked.host.clone(),
        host => host.into(),
    };
    Some(Addr { host, port: port.parse().ok()? })
}

/// CRC16 (XMODEM) of the key's hash tag, if it has one.
fn slot(key: &str) -> u16 {
    let tag = key.split_once('{').and_then(|(_, rest)| rest.split_once('}'));
    let hashed = tag.map_or(key, |(tag, _)| if tag.is_empty() { key } else { tag });
    let crc = hashed.bytes().fold(0u16, |crc, byte| {
        (0..8).fold(crc ^ u16::from(byte) << 8, |crc, _| {
            if crc & 0x8000 == 0 { crc << 1 } else { crc << 1 ^ 0x1021 }
        })
    });
    crc % SLOTS as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(port: u16) -> Addr {
        Addr { host: "h".into(), port }
    }

    fn claim(port: u16, epoch: u64, slots: RangeInclusive<u16>) -> Claim {
        Claim { addr: addr(port), epoch, slots: vec![slots] }
    }

    #[test]
    fn slots_are_those_of_redis() {
        // By CLUSTER KEYSLOT.
        for (key, expected) in
            [("123456789", 12739), ("a:{p00}:user:x", slot("p00")), ("{}x", slot("{}x")), ("", 0)]
        {
            assert_eq!(slot(key), expected, "{key}");
        }
        assert_eq!(slot("foo"), 12182);
        assert_eq!(slot("{user1000}.following"), slot("{user1000}.followers"));
        assert_eq!(slot("foo{{bar}}zap"), slot("{bar"));
    }

    #[test]
    fn the_highest_epoch_is_right_and_silence_changes_nothing() {
        let first = Layout::of(&[claim(1, 1, 0..=9999), claim(2, 2, 10000..=16383)], None);
        assert_eq!(first.masters(), [addr(1), addr(2)]);
        assert_eq!(first.owner("foo"), Some(&addr(2)));
        // The second is away, then back and still believes; its replica was promoted.
        let silent = Layout::of(&[claim(1, 1, 0..=9999)], Some(&first));
        assert_eq!(silent, first);
        let claims =
            [claim(2, 2, 10000..=16383), claim(3, 3, 10000..=16383), claim(1, 1, 0..=9999)];
        let promoted = Layout::of(&claims, Some(&first));
        assert_eq!(promoted.masters(), [addr(1), addr(3)]);
        let nobody = Layout::of(&claims[2..], None);
        assert_eq!((nobody.owner("foo"), nobody.owner("")), (None, Some(&addr(1))));
        assert_eq!(Layout::one(addr(5)).owner("foo"), Some(&addr(5)));
    }

    #[test]
    fn nodes_are_read() {
        let text = "a1 10.0.0.1:7000@17000,one myself,master - 0 1 7 connected 0-5 9 [10->-b2] [7-<-c3]\n\
            b2 :0@0 master,noaddr - 0 1 2 disconnected 11\n\
            c3 10.0.0.3:7000@17000 slave a1 0 1 7 connected\n\n";
        let (claim, known) = read_nodes(text, &addr(1), false);
        let first = Addr { host: "10.0.0.1".into(), port: 7000 };
        assert_eq!(known, [first.clone(), Addr { host: "10.0.0.3".into(), port: 7000 }]);
        let slots = vec![0..=5, 9..=9];
        assert_eq!(claim, Some(Claim { addr: first, epoch: 7, slots }));
        let (_, known) = read_nodes(text, &addr(1), true);
        assert_eq!(&*known[0].host, "one");
        let alone = "a1 :7000@17000 myself,master - 0 0 0 connected\n";
        assert_eq!(read_nodes(alone, &addr(1), false).1, [addr(7000)]);
    }
}
