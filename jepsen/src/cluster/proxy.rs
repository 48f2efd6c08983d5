//! What stands before a node for those who know it by an address: its peers, and programs that use the client
//! library. Every connection of theirs goes through here, and obeys the rules of the links between the two.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::callers::Callers;
use super::links::{Links, Party};
use super::pipe::Way;

/// How often, and how long after one another, it is looked up who connects.
const LOOKS: usize = 5;
const LOOK: Duration = Duration::from_millis(5);

/// Where a node listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    pub party: Party,
    pub address: SocketAddr,
}

/// Who connects to a proxy.
#[derive(Debug, Clone)]
pub enum Visitors {
    /// Nodes, each of which is looked up.
    Peers(Callers),
    Clients,
}

#[derive(Debug)]
pub struct Proxy {
    pub address: SocketAddr,
    task: JoinHandle<()>,
}

impl Proxy {
    /// Listens on a free port, which stays its own. A connection goes where the target is when it begins.
    pub async fn start(
        visitors: Visitors,
        target: watch::Receiver<Target>,
        links: Links,
    ) -> io::Result<Proxy> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let task = tokio::spawn(accept(listener, visitors, target, links));
        Ok(Proxy { address, task })
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(
    listener: TcpListener,
    visitors: Visitors,
    target: watch::Receiver<Target>,
    links: Links,
) {
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
        let party = match &visitors {
            Visitors::Peers(callers) => who(callers, caller, &listener).await,
            Visitors::Clients => Some(Party::Clients),
        };
        let Some(party) = party else {
            // Dropped: it may try again. Told at the end of the run, as it is no fault that was asked for.
            links.count_stranger();
            continue;
        };
        let way = Way::new(party, *target.borrow(), links.clone());
        connections.spawn(async move {
            if let Ok(far) = way.connect().await
                && stream.set_nodelay(true).is_ok()
            {
                way.join(stream, far).await;
            }
        });
        while connections.try_join_next().is_some() {}
    }
}

/// The kernel's table is no snapshot: on a busy machine an entry may be missed.
async fn who(callers: &Callers, caller: SocketAddr, listener: &TcpListener) -> Option<Party> {
    let to = listener.local_addr().ok();
    for _ in 0..LOOKS {
        if let Some(party) = callers.who(caller, to) {
            return Some(party);
        }
        sleep(LOOK).await;
    }
    None
}
