//! What size costs: memory and restart, and the price of a write with more keys, watchers and connections.

use std::path::Path;
use std::time::Duration;

use quorate::limits;
use serde::Serialize;
use tokio::time::{Instant, sleep};

use crate::etcd::{Etcd, connect};
use crate::load::{Figures, THREADS};
use crate::ours::Ours;
use crate::{memory, said};

/// One cluster that holds so many instances or keys.
#[derive(Debug, Clone, Serialize)]
pub struct Size {
    pub keys: u64,
    /// Of the largest node, in bytes, without what an empty one takes.
    pub bytes_per_key: f64,
    pub rss_mb: f64,
    /// From the start of all three processes until each serves linearizable reads.
    pub restart_seconds: f64,
}

/// Until allocators have given back what was in use for a while only.
const DECAY: Duration = Duration::from_secs(30);

/// Until the images of all nodes have what was filled in: what comes later is no part of the filling, and the memory
/// that the image takes counts.
async fn settle(cluster: &Ours) -> Result<(), String> {
    cluster.write_images().await?;
    sleep(DECAY).await;
    Ok(())
}

/// Resident memory of the largest process.
fn rss(pids: &[u32]) -> u64 {
    let of = |pid: &u32| memory::kib(&format!("/proc/{pid}/status"), "VmRSS");
    pids.iter().map(of).max().unwrap_or(0) * 1024
}

pub async fn size_of_ours(binary: &Path, dir: &Path, keys: u64) -> Result<Size, String> {
    let mut cluster = Ours::start(binary, dir).await?;
    let empty = rss(&cluster.pids());
    let count = keys.to_string();
    // Three pairs of metadata and an endpoint each.
    cluster
        .bench(&[
            "register",
            "--keys",
            &count,
            "--pairs",
            "3",
            "--size",
            "16",
            "--seconds",
            "1",
            "--warm-up",
            "0",
            "--keep",
        ])
        .await?;
    settle(&cluster).await?;
    let full = rss(&cluster.pids());
    for node in 0..3 {
        cluster.kill(node)?;
    }
    let begun = Instant::now();
    for node in 0..3 {
        cluster.spawn(node)?;
    }
    cluster.ready().await?;
    Ok(size(keys, empty, full, begun.elapsed()))
}

pub async fn size_of_etcd(binary: &Path, dir: &Path, keys: u64) -> Result<Size, String> {
    let mut cluster = Etcd::start(binary, dir).await?;
    let empty = rss(&cluster.pids());
    // What an instance's record takes, about.
    cluster.fill(keys, 150).await?;
    let full = rss(&cluster.pids());
    for node in 0..3 {
        cluster.kill(node).map_err(said)?;
    }
    let begun = Instant::now();
    for node in 0..3 {
        cluster.spawn(node).map_err(said)?;
    }
    cluster.ready().await?;
    Ok(size(keys, empty, full, begun.elapsed()))
}

fn size(keys: u64, empty: u64, full: u64, restart: Duration) -> Size {
    Size {
        keys,
        bytes_per_key: full.saturating_sub(empty) as f64 / keys as f64,
        rss_mb: full as f64 / 1e6,
        restart_seconds: restart.as_secs_f64(),
    }
}

/// The price of one more: writes beside so many of something that only is there.
#[derive(Debug, Clone, Serialize)]
pub struct Point {
    pub count: u64,
    pub put: Figures,
    /// Over session streams; etcd has no such thing.
    pub stream: Option<Figures>,
}

/// Keys that are written beside watches and connections.
const KEYS: u64 = 10_000;

/// Unary writes of 64 clients; makes them first unless `more` says otherwise.
async fn unary(
    cluster: &Ours,
    keys: u64,
    time: Duration,
    more: &[&str],
) -> Result<Figures, String> {
    let (keys, seconds) = (keys.to_string(), time.as_secs().max(1).to_string());
    let threads = THREADS.to_string();
    let who = ["register", "--clients", "64", "--threads", &threads];
    let how = ["--keys", &keys, "--seconds", &seconds, "--keep"];
    cluster.figures("register", &[&who, &how, more].concat()).await
}

/// Writes over session streams to what is there.
async fn streamed(cluster: &Ours, keys: u64, time: Duration) -> Result<Figures, String> {
    let (keys, seconds) = (keys.to_string(), time.as_secs().max(1).to_string());
    let how = ["stream-register", "--keys", &keys, "--seconds", &seconds, "--no-fill", "--keep"];
    cluster.figures("register", &how).await
}

/// Less than a write takes in the log.
const LOG_BYTES_OF_A_WRITE: f64 = 250.0;

/// Time in which at so many writes a second a checkpoint and a snapshot are due, which cost more with more keys.
fn cycle(per_second: f64) -> Duration {
    let bytes = limits::CHECKPOINT_LOG_BYTES.max(limits::SNAPSHOT_LOG_BYTES);
    Duration::from_secs_f64(bytes as f64 / LOG_BYTES_OF_A_WRITE / per_second.max(1.0))
}

/// Writes with so many keys in the cluster.
pub async fn keys_of_ours(cluster: &Ours, keys: u64, time: Duration) -> Result<Point, String> {
    let filled = unary(cluster, keys, Duration::from_secs(1), &[]).await?;
    settle(cluster).await?;
    let time = time.max(cycle(filled.per_second));
    let put = unary(cluster, keys, time, &["--no-fill"]).await?;
    Ok(Point { count: keys, put, stream: Some(streamed(cluster, keys, time).await?) })
}

pub async fn keys_of_etcd(cluster: &Etcd, keys: u64, time: Duration) -> Result<Point, String> {
    cluster.fill(keys, 256).await?;
    Ok(Point { count: keys, put: cluster.put(64, keys, 256, time).await?, stream: None })
}

/// Writes beside watches of a service in which nothing happens.
pub async fn watches_of_ours(
    cluster: &Ours,
    watches: u64,
    time: Duration,
) -> Result<Point, String> {
    use quorate::client::WatchRange;
    let mut tasks = tokio::task::JoinSet::new();
    let (told, mut heard) = tokio::sync::mpsc::channel::<()>(watches.max(1) as usize);
    let mut client = cluster.client()?;
    for number in 0..watches {
        if number % 100 == 0 {
            client = cluster.client()?;
        }
        let range = WatchRange::Service { namespace: "default".into(), service: "idle".into() };
        let (mut watch, told) = (client.watch(range), told.clone());
        tasks.spawn(async move {
            let _ = watch.next().await;
            let _ = told.send(()).await;
            while let Some(Ok(_)) = watch.next().await {}
        });
    }
    for _ in 0..watches {
        heard.recv().await.ok_or("a watch has ended")?;
    }
    let put = unary(cluster, KEYS, time, &[]).await?;
    Ok(Point { count: watches, put, stream: Some(streamed(cluster, KEYS, time).await?) })
}

/// Writes beside connections over which one call was made.
pub async fn connections_of_ours(
    cluster: &Ours,
    count: u64,
    time: Duration,
) -> Result<Point, String> {
    let mut clients = Vec::new();
    for _ in 0..count {
        let client = cluster.client()?;
        client.status().await.map_err(said)?;
        clients.push(client);
    }
    let put = unary(cluster, KEYS, time, &[]).await?;
    drop(clients);
    Ok(Point { count, put, stream: None })
}

pub async fn connections_of_etcd(
    cluster: &Etcd,
    count: u64,
    time: Duration,
) -> Result<Point, String> {
    let mut connections = Vec::new();
    for number in 0..count {
        connections.push(connect(&Etcd::endpoint(number as usize % 3)).await?);
    }
    let put = cluster.put(64, KEYS, 256, time).await?;
    drop(connections);
    Ok(Point { count, put, stream: None })
}
