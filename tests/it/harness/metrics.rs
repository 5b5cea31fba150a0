//! What nodes show at `/metrics`.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::http::Rest;
use super::until;

/// Each series with its value, by its name with the labels in order.
pub type Series = BTreeMap<String, f64>;

pub async fn series(addr: SocketAddr) -> Series {
    let reply = Rest::new(addr, None).get("/metrics").await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    assert!(reply.header("content-type").unwrap().starts_with("text/plain"), "{reply:?}");
    let lines = reply.text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    let values = lines.map(|line| {
        let (name, value) = line.rsplit_once(' ').expect("name and value");
        (with_sorted_labels(name), value.parse().unwrap_or_else(|_| panic!("no number: {line}")))
    });
    values.collect()
}

/// Their order means nothing.
fn with_sorted_labels(series: &str) -> String {
    let Some((name, labels)) = series.split_once('{') else { return series.to_owned() };
    // A template of a route holds braces, but no quotes or commas.
    let mut labels: Vec<_> = labels.strip_suffix('}').unwrap().split("\",").collect();
    if let Some(last) = labels.last_mut() {
        *last = last.trim_end_matches('"');
    }
    labels.sort_unstable();
    format!("{name}{{{}\"}}", labels.join("\","))
}

pub fn value(series: &Series, name: &str) -> f64 {
    *series.get(name).unwrap_or_else(|| {
        let (family, _) = name.split_once('{').unwrap_or((name, ""));
        let alike: Vec<_> = series.keys().filter(|key| key.starts_with(family)).collect();
        panic!("there is no {name}, only {alike:#?}")
    })
}

pub async fn metric(addr: SocketAddr, name: &str) -> f64 {
    value(&series(addr).await, name)
}

/// Waits until a node shows more than nothing of each.
pub async fn moves(addr: SocketAddr, names: &[&str]) {
    until(&format!("{names:?} move"), async || {
        let shown = series(addr).await;
        names.iter().all(|name| value(&shown, name) > 0.0).then_some(())
    })
    .await;
}
