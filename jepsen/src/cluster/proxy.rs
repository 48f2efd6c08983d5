//! The way to one listener of a node: every connection to it goes through here, and obeys the rules of the
//! links between the two parties, each direction its own.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until};

use super::callers::Callers;
use super::links::{Block, Links, Pair, Party};

/// Bytes that are read at once, and chunks under way in one direction.
const CHUNK: usize = 16 * 1024;
const CHUNKS: usize = 64;

/// Where a proxy leads, and who is there; changes when another node takes the place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    pub party: Party,
    pub address: SocketAddr,
}

/// Who connects to a proxy.
#[derive(Debug, Clone)]
pub enum From {
    Clients,
    /// One of the nodes: found out for each connection.
    Peers(Callers),
}

#[derive(Debug)]
pub struct Proxy {
    pub address: SocketAddr,
    target: watch::Sender<Target>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// Listens on a free port, which stays its own.
    pub async fn start(from: From, target: Target, links: Links) -> io::Result<Proxy> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let (target, targets) = watch::channel(target);
        let task = tokio::spawn(accept(listener, from, targets, links));
        Ok(Proxy { address, target, task })
    }

    /// Leads elsewhere from now on; connections that stand go on.
    pub fn lead_to(&self, target: Target) {
        self.target.send_replace(target);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, from: From, targets: watch::Receiver<Target>, links: Links) {
    // Connections end with the listener.
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let (stream, caller) = match listener.accept().await {
            Ok(accepted) => accepted,
            // Out of descriptors, or a connection that is gone again.
            Err(_) => {
                sleep(Duration::from_millis(10)).await;
                continue;
            }
        };
        let target = *targets.borrow();
        let party = match &from {
            From::Clients => Some(Party::Clients),
            From::Peers(callers) => callers.who(caller, listener.local_addr().ok()),
        };
        // Nobody of ours, or gone before it could be found out: it may try again.
        let Some(party) = party else { continue };
        let links = links.clone();
        connections.spawn(async move { serve(stream, party, target, links).await });
        while connections.try_join_next().is_some() {}
    }
}

async fn serve(stream: TcpStream, party: Party, target: Target, links: Links) {
    let (to, back) = ((party, target.party), (target.party, party));
    let pairs = [to, back];
    if links.rule(to).block == Some(Block::Cut) || links.rule(back).block == Some(Block::Cut) {
        links.count(to, |traffic| traffic.cut += 1);
        return;
    }
    let connection = async {
        // A connection needs both directions to come about.
        if pairs.iter().any(|&pair| links.rule(pair).block == Some(Block::Freeze)) {
            links.count(to, |traffic| traffic.held += 1);
            links.without(&pairs, Block::Freeze).await;
        }
        let far = TcpStream::connect(target.address).await?;
        far.set_nodelay(true)?;
        stream.set_nodelay(true)?;
        let (near_read, near_write) = stream.into_split();
        let (far_read, far_write) = far.into_split();
        // Each direction ends by itself: the end of one is no news for the other, which may be blocked.
        let _ = tokio::join!(
            pump(near_read, far_write, to, &links),
            pump(far_read, near_write, back, &links),
        );
        io::Result::Ok(())
    };
    tokio::select! {
        _ = connection => {}
        () = links.with(&pairs, Block::Cut) => links.count(to, |traffic| traffic.cut += 1),
    }
}

/// Takes bytes from one side to the other until there are no more. The end itself is subject to the rules:
/// who is cut off from a node does not learn that it died.
async fn pump(
    mut read: OwnedReadHalf,
    mut write: OwnedWriteHalf,
    pair: Pair,
    links: &Links,
) -> io::Result<()> {
    let (sender, mut chunks) = mpsc::channel::<(Instant, Arc<[u8]>)>(CHUNKS);
    let reader = async move {
        let mut buffer = vec![0; CHUNK];
        let mut draws = crate::random::Random::new(u64::from(read.peer_addr()?.port()));
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

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: Party = Party::Node(1);
    const TO: Pair = (Party::Clients, NODE);
    const BACK: Pair = (NODE, Party::Clients);
    const SOON: Duration = Duration::from_millis(300);

    /// A server that returns what it gets, behind a proxy.
    async fn echo() -> (Proxy, Links) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = stream.into_split();
                    tokio::io::copy(&mut read, &mut write).await
                });
            }
        });
        let links = Links::default();
        let target = Target { party: NODE, address };
        (Proxy::start(From::Clients, target, links.clone()).await.unwrap(), links)
    }

    async fn connect(proxy: &Proxy) -> TcpStream {
        TcpStream::connect(proxy.address).await.unwrap()
    }

    /// What comes back within some time; None: nothing.
    async fn say(stream: &mut TcpStream, text: &str) -> Option<String> {
        let _ = stream.write_all(text.as_bytes()).await;
        hear(stream).await
    }

    async fn hear(stream: &mut TcpStream) -> Option<String> {
        let mut buffer = [0; 64];
        let count = tokio::time::timeout(SOON, stream.read(&mut buffer)).await.ok()?;
        Some(String::from_utf8(buffer[..count.unwrap_or(0)].to_vec()).unwrap())
    }

    fn block(links: &Links, pair: Pair, block: Option<Block>) {
        links.change(|rules| rules.entry(pair).or_default().block = block);
    }

    #[tokio::test]
    async fn bytes_pass_and_are_counted() {
        let (proxy, links) = echo().await;
        let mut stream = connect(&proxy).await;
        assert_eq!(say(&mut stream, "hello").await.as_deref(), Some("hello"));
        assert_eq!((links.traffic(TO).passed, links.traffic(BACK).passed), (5, 5));
        assert_eq!((links.traffic(TO).held, links.traffic(TO).cut), (0, 0));
    }

    /// Each direction by itself; what was held arrives after the heal.
    #[tokio::test]
    async fn what_is_frozen_waits() {
        for (frozen, open) in [(TO, BACK), (BACK, TO)] {
            let (proxy, links) = echo().await;
            let mut stream = connect(&proxy).await;
            assert_eq!(say(&mut stream, "a").await.as_deref(), Some("a"));
            block(&links, frozen, Some(Block::Freeze));
            assert_eq!(say(&mut stream, "b").await, None);
            assert_eq!(links.traffic(frozen).held, 1);
            assert_eq!(links.traffic(frozen).passed, 1);
            assert_eq!(links.traffic(open).held, 0);
            // Nor does a new connection come about.
            let mut other = connect(&proxy).await;
            assert_eq!(say(&mut other, "c").await, None);
            block(&links, frozen, None);
            assert_eq!(hear(&mut stream).await.as_deref(), Some("b"));
            assert_eq!(hear(&mut other).await.as_deref(), Some("c"));
        }
    }

    #[tokio::test]
    async fn what_is_cut_is_closed() {
        let (proxy, links) = echo().await;
        let mut stream = connect(&proxy).await;
        assert_eq!(say(&mut stream, "a").await.as_deref(), Some("a"));
        block(&links, BACK, Some(Block::Cut));
        assert_eq!(hear(&mut stream).await.as_deref(), Some(""));
        let mut other = connect(&proxy).await;
        assert_eq!(hear(&mut other).await.as_deref(), Some(""));
        assert_eq!(links.traffic(TO).cut, 2);
        block(&links, BACK, None);
        let mut third = connect(&proxy).await;
        assert_eq!(say(&mut third, "d").await.as_deref(), Some("d"));
    }

    #[tokio::test]
    async fn what_is_late_arrives_in_order() {
        let (proxy, links) = echo().await;
        let mut stream = connect(&proxy).await;
        let delay = Duration::from_millis(80);
        let rule = super::super::links::Rule { delay, ..Default::default() };
        links.change(|rules| {
            rules.insert(TO, rule);
        });
        let began = Instant::now();
        assert_eq!(say(&mut stream, "a").await.as_deref(), Some("a"));
        assert!(began.elapsed() >= delay, "{:?}", began.elapsed());
        assert_eq!(links.traffic(TO).slowed, 1);
    }

    /// Who is cut off from a peer does not learn that it died.
    #[tokio::test]
    async fn an_end_waits_too() {
        let (proxy, links) = echo().await;
        let mut stream = connect(&proxy).await;
        assert_eq!(say(&mut stream, "a").await.as_deref(), Some("a"));
        block(&links, BACK, Some(Block::Freeze));
        stream.shutdown().await.unwrap();
        assert_eq!(hear(&mut stream).await, None);
        block(&links, BACK, None);
        assert_eq!(hear(&mut stream).await.as_deref(), Some(""));
    }
}
