//! Whole numbers as JSON has them, where 46 and 46.0 are the same; and maps of them.

use std::collections::BTreeMap;
use std::fmt;

use schemars::{Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, de};

use crate::ids::Seq;

/// The largest one that every JSON parser holds exactly.
pub const MAX_SEQ: Seq = (1 << 53) - 1;

/// For `deserialize_with`.
pub fn whole<'de, D: Deserializer<'de>, N: TryFrom<i64>>(deserializer: D) -> Result<N, D::Error> {
    struct Whole;

    impl de::Visitor<'_> for Whole {
        type Value = i64;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a whole number")
        }

        fn visit_i64<E: de::Error>(self, value: i64) -> Result<i64, E> {
            Ok(value)
        }

        fn visit_u64<E: de::Error>(self, value: u64) -> Result<i64, E> {
            value.try_into().map_err(|_| E::custom("the number is too large"))
        }

        fn visit_f64<E: de::Error>(self, value: f64) -> Result<i64, E> {
            // Within these a float holds each whole number.
            let exact = value.fract() == 0.0 && value.abs() < (1u64 << 53) as f64;
            if exact { Ok(value as i64) } else { Err(E::custom("not a whole number")) }
        }
    }

    let value = deserializer.deserialize_any(Whole)?;
    value.try_into().map_err(|_| de::Error::custom("the number is out of range"))
}

struct Whole<N>(N);

impl<'de, N: TryFrom<i64>> Deserialize<'de> for Whole<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        whole(deserializer).map(Self)
    }
}

/// The same for a number that may be left out.
pub fn whole_or_none<'de, D: Deserializer<'de>, N: TryFrom<i64>>(
    deserializer: D,
) -> Result<Option<N>, D::Error> {
    let value = Option::<Whole<N>>::deserialize(deserializer)?;
    Ok(value.map(|whole| whole.0))
}

/// The same for seqs by the ids of their conversations.
pub fn seqs<'de, D, K, M>(deserializer: D) -> Result<M, D::Error>
where
    D: Deserializer<'de>,
    K: Deserialize<'de> + Ord,
    M: FromIterator<(K, Seq)>,
{
    let seqs = BTreeMap::<K, Whole<Seq>>::deserialize(deserializer)?;
    Ok(seqs.into_iter().map(|(id, seq)| (id, seq.0)).collect())
}

/// How such a map looks, for `schema_with`.
pub fn seqs_schema<const MOST: usize, const LEAST: Seq>(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "propertyNames": { "type": "string", "format": "uuid" },
        "additionalProperties": { "type": "integer", "minimum": LEAST, "maximum": MAX_SEQ },
        "maxProperties": MOST,
    })
}
