//! kill -9 of the leader under load: for how long nothing is acknowledged.

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use quorate::client::Client;
use quorate::client::Options;
use quorate::proto::v1;
use serde::Serialize;
use tokio::task::{LocalSet, yield_now};
use tokio::time::{Instant, sleep, timeout};

use crate::etcd::{Etcd, KvClient, PutRequest, connect};
use crate::load::quantile;
use crate::ours::Ours;

const WRITERS: usize = 16;
/// How long one attempt of etcd's writers may take before they ask the next node, which is how an application
/// that must not stand still sets its deadlines.
const ATTEMPT: Duration = Duration::from_millis(300);
/// Load before a kill, and at most after it.
const BEFORE: Duration = Duration::from_secs(2);
const AFTER: Duration = Duration::from_secs(15);
/// It is over when acknowledgements come again for so long.
const CALM: Duration = Duration::from_secs(2);

/// Gaps in milliseconds, each the longest around one kill.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Gaps {
    pub ms: Vec<f64>,
}

impl Gaps {
    pub fn quantile(&self, share: f64) -> f64 {
        quantile(&self.ms, share).unwrap_or(f64::NAN)
    }
}

/// When something was acknowledged last, and the longest time without since `reset`.
#[derive(Debug)]
struct Acknowledged {
    last: Instant,
    longest: Duration,
    stopping: bool,
}

type Shared = Rc<RefCell<Acknowledged>>;

fn acknowledge(shared: &Shared) {
    let mut shared = shared.borrow_mut();
    let now = Instant::now();
    shared.longest = shared.longest.max(now - shared.last);
    shared.last = now;
}

/// Lets writers write, kills, and says how long the gap was.
async fn gap<W>(
    writer: impl Fn(usize, Shared) -> W,
    kill: impl AsyncFnOnce() -> Result<(), String>,
) -> Result<f64, String>
where
    W: Future<Output = ()> + 'static,
{
    let now = Instant::now();
    let shared =
        Rc::new(RefCell::new(Acknowledged { last: now, longest: Duration::ZERO, stopping: false }));
    let tasks = LocalSet::new();
    for number in 0..WRITERS {
        tasks.spawn_local(writer(number, shared.clone()));
    }
    let watch = async {
        sleep(BEFORE).await;
        if shared.borrow().last == now {
            shared.borrow_mut().stopping = true;
            return Err(format!("nothing was acknowledged in {BEFORE:?} of peace"));
        }
        shared.borrow_mut().longest = Duration::ZERO;
        kill().await?;
        let killed = Instant::now();
        let mut calm_since = killed;
        while calm_since.elapsed() < CALM && killed.elapsed() < AFTER {
            let last = shared.borrow().last;
            if last.elapsed() > Duration::from_millis(100) {
                calm_since = Instant::now();
            }
            sleep(Duration::from_millis(10)).await;
        }
        let mut shared = shared.borrow_mut();
        shared.stopping = true;
        if killed.elapsed() >= AFTER {
            return Err(format!("nothing steady within {AFTER:?} after the kill"));
        }
        Ok(shared.longest.as_secs_f64() * 1e3)
    };
    let gap = tasks.run_until(watch).await;
    tasks.await;
    gap
}

pub async fn ours(binary: &Path, dir: &Path, kills: u32) -> Result<Gaps, String> {
    let mut cluster = Ours::start(binary, dir).await?;
    let mut gaps = Gaps::default();
    for number in 0..kills {
        let leader = cluster.leader().await?;
        let options = Options::new(cluster.endpoints());
        let client = Client::connect(options).map_err(|error| error.to_string())?;
        let writer = |writer: usize, shared: Shared| {
            let client = client.clone();
            async move {
                for change in 0u64.. {
                    if shared.borrow().stopping {
                        return;
                    }
                    let instance = v1::Instance {
                        service: "failover".to_owned(),
                        id: format!("i{writer}"),
                        endpoints: vec![v1::Endpoint {
                            name: String::new(),
                            host: "192.0.2.1".to_owned(),
                            port: 8080,
                        }],
                        metadata: [("value".to_owned(), format!("{number}-{change}"))].into(),
                        ..Default::default()
                    };
                    if client.register(instance, None).await.is_ok() {
                        acknowledge(&shared);
                    }
                    yield_now().await;
                }
            }
        };
        gaps.ms.push(gap(writer, async || cluster.kill(leader)).await?);
        cluster.spawn(leader)?;
        cluster.ready().await?;
    }
    Ok(gaps)
}

pub async fn etcd(binary: &Path, dir: &Path, kills: u32) -> Result<Gaps, String> {
    let mut cluster = Etcd::start(binary, dir).await?;
    let mut gaps = Gaps::default();
    for number in 0..kills {
        let leader = cluster.leader().await?;
        let writer = |writer: usize, shared: Shared| async move {
            let (mut node, mut connection) = (leader, None);
            for change in 0u64.. {
                if shared.borrow().stopping {
                    return;
                }
                let put = PutRequest {
                    key: format!("failover/{writer}").into_bytes(),
                    value: format!("{number}-{change}").into_bytes(),
                };
                let attempt = async {
                    let kv = match connection.take() {
                        Some(kv) => kv,
                        None => KvClient::new(connect(&Etcd::endpoint(node)).await.ok()?),
                    };
                    kv.clone().put(put).await.ok()?;
                    Some(kv)
                };
                connection = timeout(ATTEMPT, attempt).await.ok().flatten();
                match connection {
                    Some(_) => acknowledge(&shared),
                    None => {
                        node = (node + 1) % 3;
                        sleep(Duration::from_millis(10)).await;
                    }
                }
                yield_now().await;
            }
        };
        gaps.ms.push(gap(writer, async || cluster.kill(leader).map_err(|e| e.to_string())).await?);
        cluster.spawn(leader).map_err(|error| error.to_string())?;
        cluster.ready().await?;
    }
    Ok(gaps)
}
