//! A bare TCP connection: frames and requests that no proper client would send.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use uuid::Uuid;

use super::{PATIENCE, contract, within};

pub const CONTINUATION: u8 = 0x0;
pub const TEXT: u8 = 0x1;
pub const BINARY: u8 = 0x2;
pub const CLOSE: u8 = 0x8;
pub const PING: u8 = 0x9;
pub const PONG: u8 = 0xa;
/// Of a frame's first byte: the last one of its message.
pub const FIN: u8 = 0x80;

pub struct Raw {
    stream: TcpStream,
    received: Vec<u8>,
}

impl Raw {
    pub async fn connect(addr: SocketAddr) -> Self {
        let stream = within(PATIENCE, "a connection", TcpStream::connect(addr)).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, received: Vec::new() }
    }

    /// A socket of a new user, past its hello.
    pub async fn upgraded(addr: SocketAddr) -> Self {
        Self::upgraded_as(addr, Uuid::new_v4()).await
    }

    pub async fn upgraded_as(addr: SocketAddr, user: Uuid) -> Self {
        let mut raw = Self::connect(addr).await;
        raw.send(
            format!(
                "GET /ws HTTP/1.1\r\nHost: {addr}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                 Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
                 Sec-WebSocket-Protocol: tidings.v1.json\r\nX-User-ID: {user}\r\n\r\n"
            )
            .as_bytes(),
        )
        .await;
        let head = raw.head().await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        // The example of RFC 6455.
        assert!(head.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{head}");
        assert_eq!(raw.event().await["type"], "hello");
        raw
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        // A server that has closed already shows by what is read.
        let _ = within(PATIENCE, "bytes go out", self.stream.write_all(bytes)).await;
    }

    /// Sends a masked frame; `first` holds FIN, reserved bits and opcode.
    pub async fn frame(&mut self, first: u8, payload: &[u8]) {
        let bytes = frame(first, payload);
        self.send(&bytes).await;
    }

    /// The head of an HTTP answer; what follows it stays to be read.
    pub async fn head(&mut self) -> String {
        loop {
            if let Some(end) = find(&self.received, b"\r\n\r\n") {
                let head = self.received.drain(..end + 4).collect();
                return String::from_utf8(head).unwrap();
            }
            let read = within(PATIENCE, "an answer's head", self.read()).await;
            assert!(read > 0, "closed before the head of an answer");
        }
    }

    /// The next frame: its first byte and its payload. None if the connection ended.
    pub async fn read_frame(&mut self) -> Option<(u8, Vec<u8>)> {
        loop {
            if let Some((size, frame)) = parse(&self.received) {
                self.received.drain(..size);
                return Some(frame);
            }
            if within(PATIENCE, "a frame", self.read()).await == 0 {
                return None;
            }
        }
    }

    /// The next frame, which must be an event.
    pub async fn event(&mut self) -> Value {
        let (first, payload) = self.read_frame().await.expect("the socket is open");
        assert_eq!(first, FIN | TEXT, "{payload:?}");
        let event = serde_json::from_slice(&payload).unwrap();
        contract::check_event(&event, None);
        event
    }

    /// The code of the close frame; None if the connection ended without one. Other frames before
    /// it are thrown away.
    pub async fn closed(&mut self) -> Option<u16> {
        loop {
            let (first, payload) = self.read_frame().await?;
            if first == FIN | CLOSE {
                let reason: Value =
                    serde_json::from_slice(&payload[2..]).expect("the reason is JSON");
                assert!(reason["reason"].is_string(), "{reason}");
                return Some(u16::from_be_bytes([payload[0], payload[1]]));
            }
        }
    }

    /// Says that nothing more comes; gives all frames that the server still sends.
    pub async fn finish(&mut self) -> Vec<(u8, Vec<u8>)> {
        // Where the server has closed already, there is nothing to shut.
        let _ = self.stream.shutdown().await;
        let mut frames = Vec::new();
        while let Some(frame) = self.read_frame().await {
            frames.push(frame);
        }
        frames
    }

    /// As [`Self::finish`], for what is no socket yet.
    pub async fn finish_text(&mut self) -> String {
        let _ = self.stream.shutdown().await;
        while within(PATIENCE, "the end", self.read()).await > 0 {}
        String::from_utf8_lossy(&self.received).into_owned()
    }

    /// Whether the server ends the connection within `limit`.
    pub async fn ends_within(&mut self, limit: Duration) -> bool {
        let end = async { while self.read().await > 0 {} };
        tokio::time::timeout(limit, end).await.is_ok()
    }

    /// Bytes read; 0 at the end of the connection, however it ended.
    async fn read(&mut self) -> usize {
        self.stream.read_buf(&mut self.received).await.unwrap_or(0)
    }
}

/// A masked frame's bytes.
pub fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [0x37, 0xfa, 0x21, 0x3d];
    let mut bytes = head(first, payload.len(), 0x80);
    bytes.extend_from_slice(&mask);
    bytes.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    bytes
}

/// A frame's head up to its mask; `masked` is the bit that says whether there is one.
pub fn head(first: u8, size: usize, masked: u8) -> Vec<u8> {
    let mut bytes = vec![first];
    match size {
        ..=125 => bytes.push(masked | size as u8),
        126..=0xffff => {
            bytes.push(masked | 126);
            bytes.extend((size as u16).to_be_bytes());
        }
        _ => {
            bytes.push(masked | 127);
            bytes.extend((size as u64).to_be_bytes());
        }
    }
    bytes
}

/// A frame from the server, if it is whole, and how many bytes it takes.
fn parse(bytes: &[u8]) -> Option<(usize, (u8, Vec<u8>))> {
    let (&first, &second) = (bytes.first()?, bytes.get(1)?);
    assert_eq!(second & 0x80, 0, "a server does not mask");
    let (start, size) = match second {
        126 => (4, u64::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().unwrap()))),
        127 => (10, u64::from_be_bytes(bytes.get(2..10)?.try_into().unwrap())),
        size => (2, u64::from(size)),
    };
    let end = start + usize::try_from(size).unwrap();
    Some((end, (first, bytes.get(start..end)?.to_vec())))
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}
