//! The bare stream below a socket: TCP, or TLS on it. Reader and writer share it in one task; each
//! call does what can be done at once.

use std::io::{self, IoSlice, Read, Write};
use std::net::Shutdown;
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use futures_util::FutureExt;
use rustls::ServerConnection;
use socket2::SockRef;
use tokio::io::{AsyncRead, Interest, ReadBuf};
use tokio::net::TcpStream;

/// What a frame is read by.
const LARGEST_READ: usize = 16 * 1024;

pub trait Wire: Send + Sync + 'static {
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
    fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
    /// 0 at the client's end; `WouldBlock` clears the readiness.
    fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize>;
    fn try_write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize>;
    /// Whether the kernel has all that was taken; `WouldBlock` clears the readiness.
    fn try_flush(&self) -> io::Result<()>;
    /// Nothing more will be written.
    fn finish(&self);
    /// The client has closed its half, which none does that still wants something of a socket.
    fn is_gone(&self) -> bool;
}

impl Wire for TcpStream {
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_read_ready(cx)
    }

    fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_write_ready(cx)
    }

    /// Tokio's own `try_read` keeps the readiness after a short read, though nothing is left then,
    /// and the next look is a system call for nothing. As in its `poll_read`, only what was ready
    /// before the read is cleared: what comes meanwhile shows anew (epoll tells of each edge).
    fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let not_ready = || io::Error::from(io::ErrorKind::WouldBlock);
        let mut read = Err(not_ready());
        let _ = self.try_io(Interest::READABLE, || {
            read = Read::read(&mut &*SockRef::from(self), buffer);
            match &read {
                Ok(size) if (1..buffer.len()).contains(size) => Err(not_ready()),
                Ok(_) => Ok(()),
                Err(error) => Err(error.kind().into()),
            }
        });
        read
    }

    fn try_write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.try_write_vectored(slices)
    }

    fn try_flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn finish(&self) {
        let _ = SockRef::from(self).shutdown(Shutdown::Write);
    }

    fn is_gone(&self) -> bool {
        let ready = self.ready(Interest::READABLE).now_or_never();
        ready.is_some_and(|ready| ready.is_ok_and(|ready| ready.is_read_closed()))
    }
}

/// TLS whose records are read and written as the TCP stream allows it.
pub struct Tls {
    tcp: TcpStream,
    /// Never waited for: reader and writer take turns in one task.
    state: Mutex<ServerConnection>,
}

impl Tls {
    pub fn new(tcp: TcpStream, state: ServerConnection) -> Self {
        Self { tcp, state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, ServerConnection> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn flush(&self, state: &mut ServerConnection) -> io::Result<()> {
        while state.wants_write() {
            if state.write_tls(&mut Direct(&self.tcp))? == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
        }
        Ok(())
    }
}

impl Wire for Tls {
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let waits = self.state().process_new_packets();
        // Errors show when it is read.
        if waits.is_ok_and(|waits| waits.plaintext_bytes_to_read() == 0 && !waits.peer_has_closed())
        {
            return self.tcp.poll_read_ready(cx);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.tcp.poll_write_ready(cx)
    }

    fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let state = &mut *self.state();
        loop {
            match state.reader().read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return read,
            }
            if state.read_tls(&mut Direct(&self.tcp))? == 0 {
                return Ok(0);
            }
            if let Err(error) = state.process_new_packets() {
                // With what it has to say to the client about it.
                let _ = self.flush(state);
                return Err(io::Error::new(io::ErrorKind::InvalidData, error));
            }
        }
    }

    fn try_write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let state = &mut *self.state();
        self.flush(state)?;
        let taken = state.writer().write_vectored(slices)?;
        match self.flush(state) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            // What is left goes out with the next call.
            _ => Ok(taken),
        }
    }

    fn try_flush(&self) -> io::Result<()> {
        self.flush(&mut self.state())
    }

    fn finish(&self) {
        let mut state = self.state();
        state.send_close_notify();
        let _ = self.flush(&mut state);
        Wire::finish(&self.tcp);
    }

    fn is_gone(&self) -> bool {
        self.tcp.is_gone()
    }
}

/// The TCP stream as rustls wants it.
struct Direct<'a>(&'a TcpStream);

impl Read for Direct<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Wire::try_read(self.0, buffer)
    }
}

impl Write for Direct<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write_vectored(slices)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What comes in, for who reads frames.
pub struct Incoming<'a, W>(pub &'a W);

impl<W: Wire> AsyncRead for Incoming<'_, W> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // No more than that is zeroed for a read, however large the frame is that is waited for.
        let size = buffer.remaining().min(LARGEST_READ);
        loop {
            ready!(self.0.poll_readable(cx))?;
            match self.0.try_read(buffer.initialize_unfilled_to(size)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return Poll::Ready(read.map(|size| buffer.advance(size))),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::net::TcpListener;
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    async fn connected() -> (TcpStream, std::net::TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        client.set_nodelay(true).unwrap();
        let (server, _) = listener.accept().unwrap();
        server.set_nonblocking(true).unwrap();
        (TcpStream::from_std(server).unwrap(), client)
    }

    /// The next bytes, at most `most`; none at the end.
    async fn read(wire: &TcpStream, most: usize) -> Vec<u8> {
        let mut buffer = vec![0; most];
        loop {
            let ready = std::future::poll_fn(|cx| wire.poll_readable(cx));
            timeout(PATIENCE, ready).await.expect("there is something to read").unwrap();
            match Wire::try_read(wire, &mut buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                size => {
                    buffer.truncate(size.unwrap());
                    return buffer;
                }
            }
        }
    }

    #[tokio::test]
    async fn a_short_read_ends_the_readiness_and_a_full_one_does_not() {
        let (wire, mut client) = connected().await;
        client.write_all(b"abcdef").unwrap();
        assert_eq!(read(&wire, 4).await, b"abcd");
        let is_ready = || std::future::poll_fn(|cx| Poll::Ready(wire.poll_readable(cx).is_ready()));
        assert!(is_ready().await);
        assert_eq!(read(&wire, 4).await, b"ef");
        assert!(!is_ready().await);
        // What the client sends with its end, and the end.
        client.write_all(b"gh").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read(&wire, 4).await, b"gh");
        assert_eq!(read(&wire, 4).await, b"");
        assert!(wire.is_gone());
    }
}
