//! The identities everything else speaks in: newtypes, so that a user is never taken for a conversation.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize};
use uuid::Uuid;

use crate::clock::Timestamp;

/// A place in a conversation's change log: 1 for its creation, without gaps from there.
pub type Seq = i64;

/// Mixes an id to a number that is the same on every node and in every release: lanes, partitions
/// and slots are chosen by it.
fn mix(id: Uuid) -> u64 {
    let (high, low) = id.as_u64_pair();
    // The finalizer of SplitMix64: every input bit reaches every output bit.
    let mut x = high ^ low.rotate_left(32);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

macro_rules! uuid_newtype {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl $name {
            /// A number that is the same for this id on every node and in every release.
            pub fn hash(self) -> u64 {
                mix(self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl JsonSchema for $name {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "format": "uuid" })
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Uuid::parse_str(text).map(Self)
            }
        }
    };
}

uuid_newtype!(
    /// A person or a bot, as the gateway or the token names it.
    UserId
);
uuid_newtype!(ConversationId);
uuid_newtype!(
    /// A UUIDv7 whose 12 `rand_a` bits hold the conversation's slot, so that an id alone says to
    /// which shard it belongs the day the store is split.
    MessageId
);
uuid_newtype!(
    /// One socket's life.
    SessionId
);
uuid_newtype!(
    /// One lease of one process; a process whose lease ran out takes a new one.
    NodeId
);
uuid_newtype!(
    /// One write batch's row in the outbox.
    OutboxId
);

impl ConversationId {
    pub fn random() -> Self {
        Self(Uuid::now_v7())
    }

    /// The shard slot, 0..4096.
    pub fn slot(self) -> u16 {
        (self.hash() % 4096) as u16
    }
}

impl MessageId {
    pub fn new(conversation: ConversationId, now: Timestamp) -> Self {
        let mut rest: [u8; 10] = Uuid::new_v4().as_bytes()[6..].try_into().expect("16 - 6 is 10");
        let slot = conversation.slot();
        // `rand_a` is the first 12 of these bits; the builder overwrites the version and variant.
        rest[0] = (slot >> 8) as u8;
        rest[1] = slot as u8;
        let millis = now.millis().max(0) as u64;
        Self(uuid::Builder::from_unix_timestamp_millis(millis, &rest).into_uuid())
    }

    /// The slot of its conversation, for an id made by [`MessageId::new`].
    pub fn slot(self) -> u16 {
        (self.0.as_u64_pair().0 & 0xfff) as u16
    }
}

impl SessionId {
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }
}

impl NodeId {
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }
}

impl OutboxId {
    pub fn random() -> Self {
        Self(Uuid::now_v7())
    }
}

/// A device's name as its client gives it: 1 to 128 bytes, no control characters.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct DeviceId(Arc<str>);

impl DeviceId {
    pub const MAX_BYTES: usize = 128;

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for DeviceId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() || text.len() > Self::MAX_BYTES {
            return Err(format!(
                "a device id has 1 to {} bytes, this one has {}",
                Self::MAX_BYTES,
                text.len()
            ));
        }
        if text.chars().any(char::is_control) {
            return Err("a device id has no control characters".into());
        }
        Ok(Self(text.into()))
    }
}

impl<'de> Deserialize<'de> for DeviceId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for DeviceId {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "DeviceId".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "minLength": 1,
            "maxLength": Self::MAX_BYTES,
            "pattern": r"^[^\u0000-\u001f\u007f-\u009f]*$",
        })
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_id_is_a_uuid_v7_that_holds_its_conversations_slot() {
        let conversation = ConversationId::random();
        let id = MessageId::new(conversation, Timestamp::from_millis(1_700_000_000_000));
        assert_eq!(id.0.get_version_num(), 7);
        assert_eq!(id.slot(), conversation.slot());
        assert_eq!(id.0.get_timestamp().unwrap().to_unix().0, 1_700_000_000);
        assert_ne!(id, MessageId::new(conversation, Timestamp::from_millis(1_700_000_000_000)));
    }

    #[test]
    fn the_hash_is_fixed_for_all_releases() {
        let id: UserId = "018f4e3a-0000-7000-8000-000000000001".parse().unwrap();
        assert_eq!(id.hash() % 128, UserId(id.0).hash() % 128);
        assert_eq!(id.hash(), mix(id.0));
    }

    #[test]
    fn device_ids_are_bounded() {
        assert!("phone".parse::<DeviceId>().is_ok());
        assert!("".parse::<DeviceId>().is_err());
        assert!("x".repeat(129).parse::<DeviceId>().is_err());
        assert!("a\nb".parse::<DeviceId>().is_err());
    }
}
