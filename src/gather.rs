//! Connections whose writes are gathered until they are flushed. HTTP/2 (h2) writes and flushes each message of
//! more than 256 bytes by itself when a connection takes vectored writes, and of more than 1 024 when it does
//! not; so requests and answers of usual size share a write here, and a longer message goes out together with
//! the head of its frame.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::Uri;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tower::{Service, ServiceExt as _};

use crate::limits::{GATHER_BYTES, GATHER_KEPT_BYTES};

/// A connection whose writes are gathered.
#[derive(Debug)]
pub struct Gather<S> {
    stream: S,
    gathered: Vec<u8>,
    /// How many of these bytes are written.
    written: usize,
}

/// Opens TCP connections of channels.
pub fn connector(
    timeout: Duration,
) -> impl Service<
    Uri,
    Response = TokioIo<Gather<TcpStream>>,
    Error = impl std::error::Error + Send + Sync + 'static,
    Future = impl Send,
> + Clone
+ Send
+ 'static {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(timeout));
    tcp.map_response(|stream| TokioIo::new(Gather::new(stream.into_inner())))
}

impl<S> Gather<S> {
    pub fn new(stream: S) -> Gather<S> {
        Gather { stream, gathered: Vec::new(), written: 0 }
    }
}

impl<S: AsyncWrite + Unpin> Gather<S> {
    /// Writes what was gathered.
    fn poll_write_out(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.gathered.len() {
            let rest = &self.gathered[self.written..];
            match ready!(Pin::new(&mut self.stream).poll_write(context, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.written += written,
            }
        }
        self.written = 0;
        self.gathered.clear();
        if self.gathered.capacity() > GATHER_KEPT_BYTES {
            self.gathered = Vec::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gather<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.gathered.len() + bytes.len() > GATHER_BYTES {
            ready!(self.poll_write_out(context))?;
            if bytes.len() > GATHER_BYTES {
                return Pin::new(&mut self.stream).poll_write(context, bytes);
            }
        }
        self.gathered.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_write_out(context))?;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_write_out(context))?;
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        false
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gather<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, into)
    }
}

#[cfg(feature = "server")]
impl<S> tonic::transport::server::Connected for Gather<S> {
    /// Nobody asks who calls.
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// Takes few bytes at a time, and only every second time.
    #[derive(Default)]
    struct Slow {
        taken: Vec<u8>,
        writes: usize,
        flushes: usize,
        busy: bool,
        most: usize,
        shut: bool,
    }

    impl AsyncWrite for Slow {
        fn poll_write(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.busy = !self.busy;
            if self.busy {
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            let bytes = &bytes[..bytes.len().min(self.most)];
            self.taken.extend_from_slice(bytes);
            self.writes += 1;
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.flushes += 1;
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.shut = true;
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn writes_go_out_together_when_they_are_flushed() {
        let slow = Slow { most: usize::MAX, ..Slow::default() };
        let mut gather = Gather::new(slow);
        assert!(!gather.is_write_vectored());
        for part in [&b"head"[..], b"", b"body", b"head", b"body"] {
            gather.write_all(part).await.unwrap();
        }
        assert_eq!((gather.stream.writes, gather.stream.flushes), (0, 0));
        gather.flush().await.unwrap();
        assert_eq!(gather.stream.taken, b"headbodyheadbody");
        assert_eq!((gather.stream.writes, gather.stream.flushes), (1, 1));
        gather.flush().await.unwrap();
        assert_eq!((gather.stream.writes, gather.stream.flushes), (1, 2), "nothing is left");
        gather.write_all(b"end").await.unwrap();
        gather.shutdown().await.unwrap();
        assert!(gather.stream.shut);
        assert_eq!(&gather.stream.taken[16..], b"end");
    }

    #[tokio::test]
    async fn nothing_is_lost_or_turned_round_however_slow_the_stream_is() {
        for most in [1, 7, 4_096, usize::MAX] {
            let mut gather = Gather::new(Slow { most, ..Slow::default() });
            let mut expected = Vec::new();
            let lengths = [9, 300, GATHER_BYTES - 1, 1, 20, GATHER_BYTES + 1, 5, GATHER_BYTES, 3];
            for (number, length) in lengths.into_iter().enumerate() {
                let part: Vec<u8> = (0..length).map(|at| (at * 7 + number) as u8).collect();
                gather.write_all(&part).await.unwrap();
                expected.extend(part);
                assert!(gather.gathered.len() <= GATHER_BYTES, "bounded");
                if number % 3 == 2 {
                    gather.flush().await.unwrap();
                    assert_eq!(gather.stream.taken, expected);
                    assert!(gather.gathered.capacity() <= GATHER_KEPT_BYTES);
                }
            }
        }
    }

    #[tokio::test]
    async fn a_stream_that_takes_nothing_more_is_an_error() {
        let mut gather = Gather::new(Slow::default());
        gather.write_all(b"lost").await.unwrap();
        assert_eq!(gather.flush().await.unwrap_err().kind(), io::ErrorKind::WriteZero);
    }

    #[tokio::test]
    async fn what_comes_is_read_as_it_is() {
        let (near, mut far) = tokio::io::duplex(64);
        far.write_all(b"hello").await.unwrap();
        drop(far);
        let mut read = Vec::new();
        Gather::new(near).read_to_end(&mut read).await.unwrap();
        assert_eq!(read, b"hello");
    }
}
