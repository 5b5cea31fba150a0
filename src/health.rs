//! `tidings health`: asks the node with these settings, on this machine, whether it serves. For
//! where there is nothing else that could ask, as in the image.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, ensure};
use http_body_util::Empty;
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::HOST;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::config::Config;

/// From the connection to the answer's head: less than orchestrators give a probe.
const TIMEOUT: Duration = Duration::from_secs(2);

/// An error if `/health` does not answer 200 in time; it names the address. Operators' own door is
/// asked where there is one.
pub async fn ask(config: &Config) -> anyhow::Result<()> {
    ensure!(
        config.http.admin_addr.is_some() || config.http.tls.is_none(),
        "behind TLS_CERT_FILE the main port cannot be asked without its authority: set ADMIN_ADDR"
    );
    let addr = reachable(config.http.admin_addr.unwrap_or(config.http.addr));
    ensure!(addr.port() != 0, "port 0 leaves the port open, so it is not known which to ask");
    let status = tokio::time::timeout(TIMEOUT, get_health(addr))
        .await
        .with_context(|| format!("{addr} did not answer in {TIMEOUT:?}"))?
        .with_context(|| format!("{addr} does not answer"))?;
    ensure!(status == StatusCode::OK, "{addr} answers {status}");
    Ok(())
}

async fn get_health(addr: SocketAddr) -> anyhow::Result<StatusCode> {
    let stream = TcpStream::connect(addr).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let request =
        Request::get("/health").header(HOST, addr.to_string()).body(Empty::<Bytes>::new())?;
    tokio::select! {
        ended = connection => {
            ended?;
            anyhow::bail!("the connection ended without an answer")
        }
        answer = sender.send_request(request) => Ok(answer?.status()),
    }
}

/// A node that listens on all addresses is asked on loopback.
fn reachable(addr: SocketAddr) -> SocketAddr {
    let ip = match addr {
        SocketAddr::V4(v4) if v4.ip().is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        SocketAddr::V6(v6) if v6.ip().is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        _ => addr.ip(),
    };
    SocketAddr::new(ip, addr.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_on_all_addresses_is_asked_on_loopback() {
        let asked = |addr: &str| reachable(addr.parse().unwrap()).to_string();
        assert_eq!(asked("0.0.0.0:8083"), "127.0.0.1:8083");
        assert_eq!(asked("[::]:8083"), "[::1]:8083");
        assert_eq!(asked("10.0.0.7:8083"), "10.0.0.7:8083");
    }
}
