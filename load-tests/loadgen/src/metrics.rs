//! The node's own metrics, where it serves them: in dev mode at its main port, else at ADMIN_ADDR.

use std::collections::BTreeMap;

use anyhow::ensure;
use serde::Serialize;
use tidings_client::rest::Rest;
use tidings_client::target::Target;

use crate::report::round;

/// By name, with its labels as they stand there.
pub struct Scrape(BTreeMap<String, f64>);

/// Of one use case of the store: how often, and how long each took, with the wait for a connection.
#[derive(Debug, PartialEq, Serialize)]
pub struct Query {
    pub calls: f64,
    pub us_per_call: f64,
}

pub async fn scrape(target: &Target) -> anyhow::Result<Scrape> {
    let text = Rest::connect(target).await?.text("/metrics").await?;
    let scrape = parse(&text);
    ensure!(!scrape.0.is_empty(), "{target}/metrics: no metrics");
    Ok(scrape)
}

fn parse(text: &str) -> Scrape {
    let value = |line: &str| {
        let (name, value) = line.rsplit_once(' ')?;
        Some((name.to_owned(), value.parse().ok()?))
    };
    Scrape(text.lines().filter(|line| !line.starts_with('#')).filter_map(value).collect())
}

impl Scrape {
    /// The sum over all labels; None where there is no such metric.
    pub fn sum(&self, name: &str) -> Option<f64> {
        let is_it = |key: &str| key == name || key.starts_with(&format!("{name}{{"));
        let mut values = self.0.iter().filter(|(key, _)| is_it(key)).map(|(_, value)| *value);
        let first = values.next()?;
        Some(first + values.sum::<f64>())
    }

    /// What the store did since `earlier`, by use case.
    pub fn queries_since(&self, earlier: &Self) -> BTreeMap<String, Query> {
        let (sum, count) =
            ("tidings_store_query_seconds_sum{", "tidings_store_query_seconds_count{");
        let since = |key: &str| {
            let now = self.0.get(key).copied().unwrap_or_default();
            now - earlier.0.get(key).copied().unwrap_or_default()
        };
        let each = self.0.keys().filter_map(|key| {
            let labels = key.strip_prefix(count)?;
            let (calls, seconds) = (since(key), since(&format!("{sum}{labels}")));
            let name = labels.split('"').nth(1)?.to_owned();
            (calls > 0.0)
                .then(|| (name, Query { calls, us_per_call: round(seconds * 1e6 / calls, 1) }))
        });
        each.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_store_did_is_the_difference() {
        let scrape = |count, sum| {
            parse(&format!(
                "# HELP x y\nopen 3\nclosed{{code=\"1\"}} 2\nclosed{{code=\"2\"}} 5\n\
                 tidings_store_query_seconds_sum{{operation=\"page\"}} {sum}\n\
                 tidings_store_query_seconds_count{{operation=\"page\"}} {count}\n"
            ))
        };
        let (before, after) = (scrape(2, 0.5), scrape(6, 0.504));
        assert_eq!(
            (after.sum("open"), after.sum("closed"), after.sum("none")),
            (Some(3.0), Some(7.0), None)
        );
        let queries = after.queries_since(&before);
        assert_eq!(queries["page"], Query { calls: 4.0, us_per_call: 1_000.0 });
        assert!(after.queries_since(&after).is_empty());
    }
}
