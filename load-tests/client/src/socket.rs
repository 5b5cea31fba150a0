//! A WebSocket client on a bare TCP stream. An idle one holds its stream, two empty vectors and
//! nothing else: bytes are read into a buffer that all clients of a thread share.
//!
//! One task owns a client and drives it by [`Socket::pump`]; pings are answered there, so a client
//! that is pumped counts as alive and proves what it received.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use uuid::Uuid;

use crate::frame::{self, Opcode};
use crate::target::Target;
use crate::wire;

pub const SUBPROTOCOL: &str = "tidings.v1.json";
/// From the first packet to `hello`.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// The key of RFC 6455's example and the answer it demands: there is no cache between us and the
/// server that a random key would have to defeat.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
const MAX_HEAD: usize = 16 << 10;
/// Many frames arrive with one read.
const READ_BYTES: usize = 64 << 10;
/// A write buffer above this is given back once it is empty.
const KEEP_BYTES: usize = 4 << 10;
const NORMAL: u16 = 1000;

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_BYTES]);
}

/// Who connects.
#[derive(Clone, Copy, Debug)]
pub struct Identity<'a> {
    pub user: Uuid,
    pub device: &'a str,
}

/// How to connect.
#[derive(Clone, Copy, Debug, Default)]
pub struct Opening {
    /// The address to come from; None where the kernel chooses.
    pub source: Option<std::net::IpAddr>,
    /// Without it, a classic client.
    pub subprotocol: bool,
    /// Of the kernel, for a client that is to be slow.
    pub receive_buffer: Option<u32>,
}

/// How the server ended the socket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Closed {
    /// None: the connection ended without a close frame.
    pub code: Option<u16>,
    /// When to come back, as the close frame's reason says.
    pub retry_ms: Option<u64>,
    /// The server broke the protocol: that must not be mistaken for a cut.
    pub fault: Option<String>,
}

impl Closed {
    fn read(payload: &[u8]) -> Self {
        #[derive(serde::Deserialize)]
        struct Reason {
            retry_ms: Option<u64>,
        }
        let code = payload.first_chunk().map(|code| u16::from_be_bytes(*code));
        let reason = payload.get(2..).and_then(|text| serde_json::from_slice::<Reason>(text).ok());
        Self { code, retry_ms: reason.and_then(|reason| reason.retry_ms), fault: None }
    }
}

impl std::fmt::Display for Closed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.fault, self.code) {
            (Some(fault), _) => write!(f, "protocol fault: {fault}"),
            (None, Some(code)) => write!(f, "closed {code}"),
            (None, None) => f.write_str("cut off"),
        }
    }
}

pub struct Socket {
    stream: TcpStream,
    /// The beginning of a frame whose end has not arrived.
    rest: Vec<u8>,
    out: Outbox,
}

/// Frames on their way out.
#[derive(Default)]
pub struct Outbox {
    bytes: Vec<u8>,
    written: usize,
    mask: u32,
}

impl Outbox {
    pub fn text(&mut self, text: &str) {
        self.frame(Opcode::Text, text.as_bytes());
    }

    fn frame(&mut self, opcode: Opcode, payload: &[u8]) {
        // Differs from frame to frame; nobody here has to be kept from guessing it.
        self.mask = self.mask.wrapping_mul(0x915f_77f5).wrapping_add(0x9e37_79b9);
        frame::encode(&mut self.bytes, opcode, self.mask, payload);
    }
}

impl Socket {
    /// Connects from `source` and waits for `hello`.
    pub async fn open(
        target: &Target,
        source: Option<std::net::IpAddr>,
        identity: Identity<'_>,
        subprotocol: bool,
    ) -> anyhow::Result<Self> {
        let how = Opening { source, subprotocol, receive_buffer: None };
        let opening = async {
            let mut client = Self::connect(target, how, identity).await?;
            let mut greeted = false;
            while !greeted {
                let greet = |_: &mut Outbox, text: &[u8]| greeted |= wire::kind(text) == "hello";
                if let Some(closed) = client.pump(greet).await {
                    bail!("{closed} before hello");
                }
            }
            Ok(client)
        };
        timeout(CONNECT_TIMEOUT, opening).await.context("no hello in time")?
    }

    /// Connects; `hello` is still to come. The caller limits the time.
    pub async fn connect(
        target: &Target,
        how: Opening,
        identity: Identity<'_>,
    ) -> anyhow::Result<Self> {
        let Opening { source, subprotocol, receive_buffer } = how;
        let socket = if target.addr.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
        let socket = socket?;
        if let Some(source) = source {
            socket.bind(SocketAddr::new(source, 0)).context("bind")?;
        }
        if let Some(bytes) = receive_buffer {
            socket.set_recv_buffer_size(bytes).context("the receive buffer")?;
        }
        let mut stream = socket.connect(target.addr).await.context("connect")?;
        stream.set_nodelay(true)?;
        let offer = if subprotocol { "Sec-WebSocket-Protocol: tidings.v1.json\r\n" } else { "" };
        let bearer = target.key.as_ref().map_or_else(String::new, |key| {
            format!("Authorization: Bearer {}\r\n", key.token(identity.user))
        });
        let head = format!(
            "GET {} HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n{offer}X-User-ID: {}\r\n\
             X-Device-ID: {}\r\nX-Platform: web\r\nX-App-Version: load-tests\r\n{bearer}\r\n",
            target.ws_path, target.host, identity.user, identity.device,
        );
        stream.write_all(head.as_bytes()).await?;
        let mut received = Vec::new();
        let end = loop {
            ensure!(received.len() < MAX_HEAD, "the handshake's answer has no end");
            ensure!(read_more(&mut stream, &mut received).await? > 0, "cut off in the handshake");
            if let Some(at) = received.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
        };
        let head = String::from_utf8_lossy(&received[..end]);
        if let Err(fault) = check_answer(&head, subprotocol) {
            // The problem's text usually arrives with its head.
            let body = String::from_utf8_lossy(&received[end..]);
            bail!("{fault} {body}");
        }
        let rest = received[end..].to_vec();
        let mut client = Self { stream, rest, out: Outbox::default() };
        client.out.mask = identity.user.as_u64_pair().1 as u32;
        Ok(client)
    }

    pub fn outbox(&mut self) -> &mut Outbox {
        &mut self.out
    }

    /// Writes what is queued, and returns once something was read: `on_text` has then seen all
    /// messages that were whole. Some: the socket has ended. Cancel-safe: whatever was read has
    /// been seen.
    pub async fn pump(&mut self, mut on_text: impl FnMut(&mut Outbox, &[u8])) -> Option<Closed> {
        match poll_fn(|cx| self.poll_pump(cx, &mut on_text)).await {
            Ok(closed) => closed,
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                Some(Closed { fault: Some(error.to_string()), ..Closed::default() })
            }
            Err(_) => Some(Closed::default()),
        }
    }

    fn poll_pump(
        &mut self,
        cx: &mut Context<'_>,
        on_text: &mut dyn FnMut(&mut Outbox, &[u8]),
    ) -> Poll<io::Result<Option<Closed>>> {
        self.write(cx)?;
        if !self.rest.is_empty() && frame::decode(&self.rest)?.is_some() {
            // Arrived together with the handshake's answer.
            return Poll::Ready(self.take_in(&[], on_text));
        }
        SCRATCH.with_borrow_mut(|scratch| {
            let mut buffer = ReadBuf::new(scratch);
            ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer))?;
            if buffer.filled().is_empty() {
                return Poll::Ready(Ok(Some(Closed::default())));
            }
            Poll::Ready(self.take_in(buffer.filled(), on_text))
        })
    }

    /// As much as the kernel takes; the rest when `cx` is woken.
    fn write(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let out = &mut self.out;
        while out.written < out.bytes.len() {
            match Pin::new(&mut self.stream).poll_write(cx, &out.bytes[out.written..]) {
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(size)) => out.written += size,
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => return Ok(()),
            }
        }
        out.written = 0;
        out.bytes.clear();
        if out.bytes.capacity() > KEEP_BYTES {
            out.bytes = Vec::new();
        }
        Ok(())
    }

    fn take_in(
        &mut self,
        data: &[u8],
        on_text: &mut dyn FnMut(&mut Outbox, &[u8]),
    ) -> io::Result<Option<Closed>> {
        let mut kept = std::mem::take(&mut self.rest);
        let mut input = if kept.is_empty() {
            data
        } else {
            kept.extend_from_slice(data);
            &kept
        };
        let mut closed = None;
        while let Some((frame, used)) = frame::decode(input)? {
            match frame.opcode {
                Opcode::Text => on_text(&mut self.out, frame.payload),
                Opcode::Ping => self.out.frame(Opcode::Pong, frame.payload),
                Opcode::Pong => {}
                Opcode::Close => {
                    closed = Some(Closed::read(frame.payload));
                    break;
                }
            }
            input = &input[used..];
        }
        self.rest = input.to_vec();
        Ok(closed)
    }

    /// Ends the connection without a word: a reset, as when a network or a process is gone.
    pub fn cut(self) {
        // Without it, it ends all the same, by a FIN.
        let _: io::Result<()> = self.stream.set_zero_linger();
    }

    /// Says goodbye and waits for the answer.
    pub async fn close(mut self) {
        self.out.frame(Opcode::Close, &NORMAL.to_be_bytes());
        let goodbye = async { while self.pump(|_, _| {}).await.is_none() {} };
        // A server that does not answer is left without one.
        let _: Result<(), _> = timeout(CLOSE_TIMEOUT, goodbye).await;
    }
}

async fn read_more(stream: &mut TcpStream, into: &mut Vec<u8>) -> io::Result<usize> {
    poll_fn(|cx| {
        SCRATCH.with_borrow_mut(|scratch| {
            let mut buffer = ReadBuf::new(scratch);
            ready!(Pin::new(&mut *stream).poll_read(cx, &mut buffer))?;
            into.extend_from_slice(buffer.filled());
            Poll::Ready(Ok(buffer.filled().len()))
        })
    })
    .await
}

/// The head of the handshake's answer; an error says what is wrong with it.
fn check_answer(head: &str, subprotocol: bool) -> Result<(), String> {
    let mut lines = head.lines();
    let status = lines.next().unwrap_or_default();
    if status.split(' ').nth(1) != Some("101") {
        return Err(format!("the handshake was answered with {status}"));
    }
    let (mut accepted, mut echoed) = (false, false);
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        accepted |= name.eq_ignore_ascii_case("sec-websocket-accept") && value.trim() == ACCEPT;
        echoed |=
            name.eq_ignore_ascii_case("sec-websocket-protocol") && value.trim() == SUBPROTOCOL;
    }
    if !accepted {
        return Err("the handshake's answer has the wrong Sec-WebSocket-Accept".to_owned());
    }
    if echoed != subprotocol {
        return Err("the subprotocol is echoed exactly if it was offered".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_to_the_handshake_is_checked() {
        let good = "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\n\
                    sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
        assert_eq!(check_answer(good, false), Ok(()));
        assert!(check_answer(good, true).is_err(), "no subprotocol");
        assert!(check_answer(&good.replace("s3p", "xxx"), false).is_err(), "another key");
        let busy = check_answer("HTTP/1.1 503 Service Unavailable\r\n\r\n", false);
        assert!(busy.unwrap_err().contains("503"));
    }

    #[test]
    fn an_idle_client_is_small() {
        assert!(size_of::<Socket>() <= 128, "{}", size_of::<Socket>());
    }
}
