//! A TCP proxy that can break what passes it: cut, refuse, hold, delay, close one half, cut after so
//! many bytes. One listener stands between one node and one of its parts, or before a node's door.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

/// Of the kernel, on each side: what waits for a slow reader is to wait at its writer, not here.
const BUFFER_BYTES: u32 = 32 << 10;

/// What holds for all connections until it is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Pass,
    /// New connections are closed at once.
    Refuse,
    /// Connections are accepted and stay open, and nothing passes: a network that swallows all.
    Hold,
    /// Each piece waits for so long.
    Delay(Duration),
}

/// What happens once to the connections that are open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strike {
    Cut,
    /// The client is told that the server says no more, and what the client says is swallowed.
    HalfClose,
    /// In this direction so many bytes pass, then the connection is cut.
    After(Direction, usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    ToServer,
    ToClient,
}

#[derive(Clone, Copy)]
struct Rule {
    upstream: SocketAddr,
    mode: Mode,
    /// The latest strike and its number; connections that are younger do not feel it.
    strike: Option<(u64, Strike)>,
}

pub struct Proxy {
    pub port: u16,
    rule: watch::Sender<Rule>,
    _tasks: JoinSet<()>,
}

impl Proxy {
    pub async fn start(port: u16, upstream: SocketAddr) -> anyhow::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        // Inherited by what is accepted.
        socket.set_send_buffer_size(BUFFER_BYTES)?;
        socket.bind((Ipv4Addr::LOCALHOST, port).into()).with_context(|| format!("port {port}"))?;
        let listener = socket.listen(1_024)?;
        let port = listener.local_addr()?.port();
        let (rule, seen) = watch::channel(Rule { upstream, mode: Mode::Pass, strike: None });
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, seen));
        Ok(Self { port, rule, _tasks: tasks })
    }

    pub fn addr(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    pub fn set(&self, mode: Mode) {
        self.rule.send_modify(|rule| rule.mode = mode);
    }

    /// Connections that are made from now on go there; those that are open are cut.
    pub fn lead_to(&self, upstream: SocketAddr) {
        self.rule.send_modify(|rule| rule.upstream = upstream);
        self.strike(Strike::Cut);
    }

    pub fn strike(&self, strike: Strike) {
        self.rule.send_modify(|rule| {
            let number = rule.strike.map_or(0, |(number, _)| number);
            rule.strike = Some((number + 1, strike));
        });
    }
}

async fn accept(listener: TcpListener, rule: watch::Receiver<Rule>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                // Without a file descriptor left there is nothing to do but to try again.
                let Ok((client, _)) = accepted else {
                    sleep(Duration::from_millis(20)).await;
                    continue;
                };
                if rule.borrow().mode != Mode::Refuse {
                    connections.spawn(connection(client, rule.clone()));
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connection(client: TcpStream, mut rule: watch::Receiver<Rule>) {
    let born = rule.borrow().strike.map_or(0, |(number, _)| number);
    // A held connection reaches nobody, but its client cannot know.
    if rule.wait_for(|rule| rule.mode != Mode::Hold).await.is_err() {
        return;
    }
    let upstream = rule.borrow().upstream;
    let Ok(server) = connect(upstream).await else { return };
    // Small pieces are wanted now, as without a proxy.
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (client_in, client_out) = client.into_split();
    let (server_in, server_out) = server.into_split();
    let to_server = pipe(client_in, server_out, Direction::ToServer, born, rule.clone());
    let to_client = pipe(server_in, client_out, Direction::ToClient, born, rule);
    // The end of one direction is passed on; a cut ends both, and drops all halves.
    let (mut to_server, mut to_client) = (std::pin::pin!(to_server), std::pin::pin!(to_client));
    tokio::select! {
        end = &mut to_server => if end == End::Closed { to_client.await; },
        end = &mut to_client => if end == End::Closed { to_server.await; },
    }
}

async fn connect(upstream: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(BUFFER_BYTES)?;
    socket.connect(upstream).await
}

#[derive(PartialEq, Eq)]
enum End {
    /// In order, by who wrote.
    Closed,
    Cut,
}

async fn pipe(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    direction: Direction,
    born: u64,
    mut rule: watch::Receiver<Rule>,
) -> End {
    let mut buffer = vec![0; 32 << 10];
    let mut left: Option<usize> = None;
    let mut felt = born;
    let mut swallow = false;
    loop {
        let now = *rule.borrow_and_update();
        if let Some((number, strike)) = now.strike
            && number > felt
        {
            felt = number;
            match strike {
                Strike::Cut => return End::Cut,
                Strike::HalfClose if direction == Direction::ToClient => {
                    // Nobody is interested in how it went.
                    let _ = to.shutdown().await;
                    swallow = true;
                }
                Strike::HalfClose => swallow = true,
                Strike::After(of, bytes) if of == direction => left = Some(bytes),
                Strike::After(..) => {}
            }
        }
        if now.mode == Mode::Refuse {
            return End::Cut;
        }
        tokio::select! {
            biased;
            changed = rule.changed() => if changed.is_err() { return End::Cut },
            read = from.read(&mut buffer), if now.mode != Mode::Hold => {
                let Ok(size) = read else { return End::Cut };
                if size == 0 {
                    let _ = to.shutdown().await;
                    return End::Closed;
                }
                if let Mode::Delay(time) = now.mode {
                    sleep(time).await;
                }
                let passes = left.map_or(size, |left| left.min(size));
                if !swallow && to.write_all(&buffer[..passes]).await.is_err() {
                    return End::Cut;
                }
                if let Some(left) = &mut left {
                    *left -= passes;
                    if *left == 0 {
                        return End::Cut;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::timeout;

    /// A server that answers what it hears.
    async fn echo() -> (SocketAddr, JoinSet<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                connections.spawn(async move {
                    let (mut from, mut to) = stream.into_split();
                    let _ = tokio::io::copy(&mut from, &mut to).await;
                });
            }
        });
        (addr, tasks)
    }

    async fn says(stream: &mut TcpStream, text: &str) -> Option<String> {
        stream.write_all(text.as_bytes()).await.ok()?;
        let mut heard = vec![0; text.len()];
        stream.read_exact(&mut heard).await.ok()?;
        String::from_utf8(heard).ok()
    }

    #[tokio::test]
    async fn it_passes_and_breaks() {
        let (upstream, _server) = echo().await;
        let proxy = Proxy::start(0, upstream).await.unwrap();
        let open = async || TcpStream::connect(proxy.addr()).await.unwrap();
        let mut one = open().await;
        assert_eq!(says(&mut one, "hello").await.as_deref(), Some("hello"));

        proxy.set(Mode::Hold);
        let held = timeout(Duration::from_millis(100), says(&mut one, "held")).await;
        assert!(held.is_err(), "nothing passes");
        proxy.set(Mode::Pass);
        let mut late = [0; 4];
        one.read_exact(&mut late).await.unwrap();
        assert_eq!(&late, b"held", "a network that comes back brings what was on its way");

        let (other, _other_server) = echo().await;
        proxy.lead_to(other);
        assert_eq!(says(&mut one, "x").await, None);
        let mut one = open().await;
        assert_eq!(says(&mut one, "hello").await.as_deref(), Some("hello"));
        assert_eq!(proxy.rule.borrow().upstream, other);
        proxy.strike(Strike::Cut);
        assert_eq!(says(&mut one, "x").await, None);
        let mut two = open().await;
        assert_eq!(says(&mut two, "young").await.as_deref(), Some("young"));

        proxy.strike(Strike::After(Direction::ToClient, 3));
        two.write_all(b"abcdef").await.unwrap();
        let mut heard = Vec::new();
        let _ = two.read_to_end(&mut heard).await;
        assert_eq!(heard, b"abc");

        let mut three = open().await;
        assert_eq!(says(&mut three, "hi").await.as_deref(), Some("hi"));
        proxy.strike(Strike::HalfClose);
        let mut heard = Vec::new();
        assert_eq!(three.read_to_end(&mut heard).await.unwrap(), 0, "the server says no more");
        three.write_all(b"still taken").await.unwrap();

        proxy.set(Mode::Refuse);
        let mut four = open().await;
        assert_eq!(says(&mut four, "x").await, None);
    }
}
