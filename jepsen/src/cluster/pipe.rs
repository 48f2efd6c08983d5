//! One connection between two parties, under the rules of the links between them, each direction its own.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, split};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};

use super::links::{Block, Links, Pair, Party};
use super::proxy::Target;
use crate::random::Random;

/// Bytes that are read at once, and chunks under way in one direction.
const CHUNK: usize = 16 * 1024;
const CHUNKS: usize = 64;

/// A way from a party to where a target listens, and back.
#[derive(Debug, Clone)]
pub struct Way {
    pub to: Pair,
    pub back: Pair,
    target: Target,
    links: Links,
}

impl Way {
    pub fn new(from: Party, target: Target, links: Links) -> Way {
        Way { to: (from, target.party), back: (target.party, from), target, links }
    }

    fn pairs(&self) -> [Pair; 2] {
        [self.to, self.back]
    }

    fn is(&self, block: Block) -> bool {
        self.pairs().iter().any(|&pair| self.links.rule(pair).block == Some(block))
    }

    /// Connects, if and when the rules let it. A connection needs both directions to come about.
    pub async fn connect(&self) -> io::Result<TcpStream> {
        if self.is(Block::Freeze) {
            self.links.count(self.to, |traffic| traffic.held += 1);
            self.links.without(&self.pairs(), Block::Freeze).await;
        }
        if self.is(Block::Cut) {
            self.links.count(self.to, |traffic| traffic.cut += 1);
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        let far = TcpStream::connect(self.target.address).await?;
        far.set_nodelay(true)?;
        Ok(far)
    }

    /// Joins both ends until each direction has ended, or the connection is cut.
    pub async fn join(&self, near: impl AsyncRead + AsyncWrite, far: TcpStream) {
        let (near_read, near_write) = split(near);
        let (far_read, far_write) = far.into_split();
        // Each direction ends by itself: the end of one is no news for the other, which may be blocked.
        let both = async {
            let _ = tokio::join!(
                pump(near_read, far_write, self.to, &self.links),
                pump(far_read, near_write, self.back, &self.links),
            );
        };
        let pairs = self.pairs();
        tokio::select! {
            () = both => {}
            () = self.links.with(&pairs, Block::Cut) => {
                self.links.count(self.to, |traffic| traffic.cut += 1);
            }
        }
    }
}

/// Takes bytes from one side to the other until there are no more. The end itself is subject to the rules:
/// who is cut off from a node does not learn that it died.
async fn pump(
    mut read: impl AsyncRead + Unpin,
    mut write: impl AsyncWrite + Unpin,
    pair: Pair,
    links: &Links,
) -> io::Result<()> {
    let (sender, mut chunks) = mpsc::channel::<(Instant, Arc<[u8]>)>(CHUNKS);
    let reader = async move {
        let mut buffer = vec![0; CHUNK];
        let mut draws = Random::new(links.traffic(pair).passed);
        loop {
            let count = read.read(&mut buffer).await.unwrap_or(0);
            let rule = links.rule(pair);
            let jitter = rule.jitter.as_micros() as u64;
            let late = rule.delay + Duration::from_micros(draws.between(0..=jitter));
            if !late.is_zero() {
                links.count(pair, |traffic| traffic.slowed += 1);
            }
            let chunk = (Instant::now() + late, buffer[..count].into());
            if sender.send(chunk).await.is_err() || count == 0 {
                return io::Result::Ok(());
            }
        }
    };
    let writer = async {
        while let Some((due, chunk)) = chunks.recv().await {
            sleep_until(due).await;
            if links.rule(pair).block == Some(Block::Freeze) {
                links.count(pair, |traffic| traffic.held += 1);
                links.without(&[pair], Block::Freeze).await;
            }
            if chunk.is_empty() {
                break;
            }
            write.write_all(&chunk).await?;
            links.count(pair, |traffic| traffic.passed += chunk.len() as u64);
            if let Some(rate) = links.rule(pair).bytes_per_second {
                links.count(pair, |traffic| traffic.slowed += 1);
                let micros = chunk.len() as u64 * 1_000_000 / rate.max(1);
                sleep(Duration::from_micros(micros)).await;
            }
        }
        write.shutdown().await
    };
    // What was read last is written before it ends.
    let reader = async {
        let _ = reader.await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        written = writer => written,
        () = reader => Ok(()),
    }
}
