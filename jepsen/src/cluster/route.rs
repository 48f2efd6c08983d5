//! How a client reaches a node: directly, so that a refused connection is known as such, and yet under the rules
//! of the links between clients and that node.

use std::io;

use tokio::io::{DuplexStream, duplex};
use tokio::sync::watch;

use super::links::{Links, Party};
use super::pipe::Way;
use super::proxy::Target;

/// Bytes that stand between a client and its link.
const BUFFER: usize = 64 * 1024;

/// The way to whoever is in one slot.
#[derive(Debug, Clone)]
pub struct Route {
    pub(super) target: watch::Receiver<Target>,
    pub(super) links: Links,
}

impl Route {
    /// Connects; what fails here was not sent.
    pub async fn connect(&self) -> io::Result<DuplexStream> {
        let way = Way::new(Party::Clients, *self.target.borrow(), self.links.clone());
        let far = way.connect().await?;
        let (near, inner) = duplex(BUFFER);
        tokio::spawn(async move { way.join(inner, far).await });
        Ok(near)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;
    use tokio::time::{Instant, timeout};

    use super::*;
    use crate::cluster::links::{Block, Pair, Rule};

    const NODE: Party = Party::Node(1);
    const TO: Pair = (Party::Clients, NODE);
    const BACK: Pair = (NODE, Party::Clients);
    const SOON: Duration = Duration::from_millis(300);

    /// A server that returns what it gets, and a way to it.
    async fn echo() -> (Route, Links) {
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
        let (_, target) = watch::channel(Target { party: NODE, address });
        (Route { target, links: links.clone() }, links)
    }

    async fn connect(route: &Route) -> DuplexStream {
        timeout(SOON, route.connect()).await.unwrap().unwrap()
    }

    /// What comes back within some time; None: nothing.
    async fn say(stream: &mut DuplexStream, text: &str) -> Option<String> {
        let _ = stream.write_all(text.as_bytes()).await;
        hear(stream).await
    }

    async fn hear(stream: &mut DuplexStream) -> Option<String> {
        let mut buffer = [0; 64];
        let count = timeout(SOON, stream.read(&mut buffer)).await.ok()?;
        Some(String::from_utf8(buffer[..count.unwrap_or(0)].to_vec()).unwrap())
    }

    fn block(links: &Links, pair: Pair, block: Option<Block>) {
        links.change(|rules| rules.entry(pair).or_default().block = block);
    }

    #[tokio::test]
    async fn bytes_pass_and_are_counted() {
        let (route, links) = echo().await;
        let mut stream = connect(&route).await;
        assert_eq!(say(&mut stream, "hello").await.as_deref(), Some("hello"));
        assert_eq!((links.traffic(TO).passed, links.traffic(BACK).passed), (5, 5));
        assert_eq!((links.traffic(TO).held, links.traffic(TO).cut), (0, 0));
    }

    /// Each direction by itself; what was held arrives after the heal.
    #[tokio::test]
    async fn what_is_frozen_waits() {
        for (frozen, open) in [(TO, BACK), (BACK, TO)] {
            let (route, links) = echo().await;
            let mut stream = connect(&route).await;
            assert_eq!(say(&mut stream, "a").await.as_deref(), Some("a"));
            block(&links, frozen, Some(Block::Freeze));
            assert_eq!(say(&mut stream, "b").await, None);
            assert_eq!(links.traffic(frozen).held, 1);
            assert_eq!(links.traffic(frozen).passed, 1);
            assert_eq!(links.traffic(open).held, 0);
            // Nor does a new connection come about.
            let mut other = Box::pin(route.connect());
            assert!(timeout(SOON, &mut other).await.is_err());
            block(&links, frozen, None);
            assert_eq!(hear(&mut stream).await.as_deref(), Some("b"));
            let mut other = other.await.unwrap();
            assert_eq!(say(&mut other, "c").await.as_deref(), Some("c"));
        }
    }

    #[tokio::test]
    async fn what_is_cut_is_closed() {
        let (route, links) = echo().await;
        let mut stream = connect(&route).await;
        assert_eq!(say(&mut stream, "a").await.as_deref(), Some("a"));
        block(&links, BACK, Some(Block::Cut));
        assert_eq!(hear(&mut stream).await.as_deref(), Some(""));
        assert!(route.connect().await.is_err());
        assert_eq!(links.traffic(TO).cut, 2);
        block(&links, BACK, None);
        let mut third = connect(&route).await;
        assert_eq!(say(&mut third, "d").await.as_deref(), Some("d"));
    }

    #[tokio::test]
    async fn what_is_late_arrives_in_order() {
        let (route, links) = echo().await;
        let mut stream = connect(&route).await;
        let delay = Duration::from_millis(80);
        let rule = Rule { delay, ..Default::default() };
        links.change(|rules| {
            rules.insert(TO, rule);
        });
        let began = Instant::now();
        assert_eq!(say(&mut stream, "a").await.as_deref(), Some("a"));
        assert!(began.elapsed() >= delay, "{:?}", began.elapsed());
        assert_eq!(links.traffic(TO).slowed, 1);
    }

    /// A node that is not there is not reached, which is known at once.
    #[tokio::test]
    async fn nobody_there() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let (_, target) = watch::channel(Target { party: NODE, address });
        let route = Route { target, links: Links::default() };
        let error = timeout(SOON, route.connect()).await.unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }

    /// Who is cut off from a peer does not learn that it died.
    #[tokio::test]
    async fn an_end_waits_too() {
        let (route, links) = echo().await;
        let mut stream = connect(&route).await;
        assert_eq!(say(&mut stream, "a").await.as_deref(), Some("a"));
        block(&links, BACK, Some(Block::Freeze));
        stream.shutdown().await.unwrap();
        assert_eq!(hear(&mut stream).await, None);
        block(&links, BACK, None);
        assert_eq!(hear(&mut stream).await.as_deref(), Some(""));
    }
}
