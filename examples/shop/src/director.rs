//! Starts the services as processes, changes them under load, and tells what came of it.

use std::collections::BTreeMap;
use std::process::{ExitCode, Stdio};
use std::sync::atomic::Ordering;
use std::time::Duration;

use quorate::client::balance::hash;
use quorate::client::{Channel, Client, DiscoveryOptions};
use quorate::proto::v1;
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

use crate::Failed;
use crate::load::{Load, Seen, locked};

/// How long something may take that should take a second or two.
const PATIENCE: Duration = Duration::from_secs(30);
/// Keys of which it is told where they go.
const KEYS: u64 = 10_000;

#[derive(Debug, clap::Args)]
pub struct Plan {
    /// How long the load runs between two changes, in seconds
    #[arg(long, default_value_t = 3)]
    pause: u64,
    /// Users who shop at the same time
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=1_000))]
    users: u64,
}

/// The processes that run, by instance.
struct Shop {
    client: Client,
    endpoints: String,
    running: BTreeMap<&'static str, Child>,
}

pub async fn run(client: Client, endpoints: String, plan: Plan) -> Result<ExitCode, Failed> {
    let mut shop = Shop { client, endpoints, running: BTreeMap::new() };
    shop.configure().await?;
    let before = shop.counted().await?;
    let started =
        ["cart-1", "cart-2", "cart-3", "catalogue-1", "catalogue-2", "order-1", "order-2"];
    for id in started {
        shop.start(id)?;
    }
    for id in started {
        shop.appears(id).await?;
    }
    println!("{} instances are registered; {} users shop", started.len(), plan.users);
    let load = Load::start(&shop.client, plan.users).await?;
    let pause = Duration::from_secs(plan.pause);
    shop.watch(&load, pause).await;

    println!("\n> another cart: cart-4");
    let keys = mapping(&load.carts);
    shop.start("cart-4")?;
    shop.appears("cart-4").await?;
    settled(&load.carts, 4).await?;
    tell_moves(&keys, &mapping(&load.carts));
    shop.watch(&load, pause).await;

    println!("\n> kill -9 of cart-2: its users' calls go on to the next cart at once");
    let keys = mapping(&load.carts);
    shop.kill("cart-2").await?;
    shop.watch(&load, pause).await;
    settled(&load.carts, 3).await?;
    tell_moves(&keys, &mapping(&load.carts));

    println!("\n> order-1 is told to stop (SIGTERM), order-3 takes its place");
    shop.start("order-3")?;
    shop.appears("order-3").await?;
    shop.stop("order-1").await?;
    shop.watch(&load, pause).await;

    println!("\n> the discount is 10 % from now on");
    let published = Instant::now();
    shop.publish(10).await?;
    shop.discounted(&load, 10, published).await?;
    shop.watch(&load, pause).await;

    println!("\n> the catalogue is balanced round robin from now on");
    shop.balance("shop-catalogue", "round_robin").await?;
    shop.watch(&load, pause).await;

    let seen = load.stop().await;
    for id in shop.running.keys().copied().collect::<Vec<_>>() {
        shop.stop(id).await?;
    }
    let after = shop.counted().await?;
    Ok(report(&seen, &before, &after))
}

impl Shop {
    /// Settings of the services and of the shop.
    async fn configure(&self) -> Result<(), Failed> {
        self.balance("shop-cart", "ring_hash").await?;
        self.balance("shop-catalogue", "least_request").await?;
        self.balance("shop-order", "least_request").await?;
        self.publish(0).await
    }

    async fn balance(&self, service: &str, policy: &str) -> Result<(), Failed> {
        let service = v1::Service {
            name: service.to_owned(),
            policy: policy.to_owned(),
            // An instance that died is gone when its session has been for so long.
            deregister_after_ms: Some(1_000),
            ..Default::default()
        };
        self.client.put_service(service, None).await?;
        Ok(())
    }

    async fn publish(&self, discount: u32) -> Result<(), Failed> {
        let request = v1::PublishConfigRequest {
            group: "shop".to_owned(),
            key: "shop.json".to_owned(),
            format: v1::ConfigFormat::Json.into(),
            content: format!("{{\"discount_percent\": {discount}}}").into(),
            author: "shop".to_owned(),
            ..Default::default()
        };
        self.client.publish_config(request, None).await?;
        Ok(())
    }

    /// An instance as a process of its own.
    fn start(&mut self, id: &'static str) -> Result<(), Failed> {
        let child = Command::new(std::env::current_exe()?)
            .args([service_of(id), "--id", id, "--endpoints", &self.endpoints])
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        self.running.insert(id, child);
        Ok(())
    }

    /// Waits until an instance is registered.
    async fn appears(&self, id: &str) -> Result<(), Failed> {
        let service = format!("shop-{}", service_of(id));
        let discovery = self.client.discovery(DiscoveryOptions::new(service)).await?;
        let mut states = discovery.subscribe();
        let registered = async {
            while let Some(state) = states.next().await {
                if state.usable().any(|instance| instance.id == id) {
                    break;
                }
            }
        };
        timeout(PATIENCE, registered).await.map_err(|_| format!("{id} does not register"))?;
        Ok(())
    }

    /// Without a warning.
    async fn kill(&mut self, id: &str) -> Result<(), Failed> {
        let mut child = self.running.remove(id).ok_or("no such instance")?;
        child.kill().await?;
        Ok(())
    }

    async fn stop(&mut self, id: &str) -> Result<(), Failed> {
        let mut child = self.running.remove(id).ok_or("no such instance")?;
        if let Some(pid) = child.id().and_then(|pid| Pid::from_raw(pid as i32)) {
            kill_process(pid, Signal::TERM)?;
        }
        let status =
            timeout(PATIENCE, child.wait()).await.map_err(|_| format!("{id} goes on"))??;
        if !status.success() {
            return Err(format!("{id} ended with {status}").into());
        }
        Ok(())
    }

    /// Lets the load run, with a line of progress each second.
    async fn watch(&self, load: &Load, pause: Duration) {
        let until = Instant::now() + pause;
        let mut last = load.seen.orders.load(Ordering::Relaxed);
        while Instant::now() < until {
            sleep(Duration::from_secs(1)).await;
            let orders = load.seen.orders.load(Ordering::Relaxed);
            let failed = load.seen.failed.load(Ordering::Relaxed);
            println!("  {} orders/s, {orders} in all, {failed} failed", orders - last);
            last = orders;
        }
    }

    /// Waits until orders get a discount, and tells how long after its publication the last one did not.
    async fn discounted(&self, load: &Load, percent: u32, since: Instant) -> Result<(), Failed> {
        while !locked(&load.seen.discounts).contains_key(&percent) {
            if since.elapsed() > PATIENCE {
                return Err("the discount does not arrive".into());
            }
            sleep(Duration::from_millis(1)).await;
        }
        let took = since.elapsed().as_millis();
        println!("  the first order has it {took} ms after the beginning of its publication");
        Ok(())
    }

    /// What the instances have counted in the cluster.
    async fn counted(&self) -> Result<BTreeMap<String, i64>, Failed> {
        let request = v1::ListCountersRequest {
            prefix: "shop_requests_total".to_owned(),
            limit: 10_000,
            ..Default::default()
        };
        let counters = self.client.list_counters(request).await?.counters;
        let label = |it: &v1::Counter| it.labels.get("instance").cloned().unwrap_or_default();
        Ok(counters.iter().map(|counter| (label(counter), counter.value)).collect())
    }
}

/// "cart-1" is one of the carts.
fn service_of(id: &str) -> &str {
    id.split('-').next().unwrap_or(id)
}

/// Waits until the channel balances over so many instances.
async fn settled(channel: &Channel, instances: usize) -> Result<(), Failed> {
    let since = Instant::now();
    while channel.snapshot().chosen().len() != instances {
        if since.elapsed() > PATIENCE {
            return Err(format!("there are not {instances} instances").into());
        }
        sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

/// Whose each key is.
fn mapping(channel: &Channel) -> Vec<String> {
    let snapshot = channel.snapshot();
    let owner = |i: u64| {
        let hash = hash(format!("user-{i}").as_bytes());
        let pick = snapshot.pick(Some(hash), Duration::ZERO, i);
        pick.map_or_else(|_| String::new(), |pick| pick.endpoint().id.clone())
    };
    (0..KEYS).map(owner).collect()
}

fn tell_moves(before: &[String], after: &[String]) {
    let mut moves: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for (from, to) in before.iter().zip(after).filter(|(from, to)| from != to) {
        *moves.entry((from, to)).or_default() += 1;
    }
    let moved: u64 = moves.values().sum();
    println!("  {moved} of {KEYS} keys moved");
    for ((from, to), count) in moves {
        println!("    {count:>5} from {from} to {to}");
    }
}

fn report(seen: &Seen, before: &BTreeMap<String, i64>, after: &BTreeMap<String, i64>) -> ExitCode {
    let of = |count: &std::sync::atomic::AtomicU64| count.load(Ordering::Relaxed);
    println!("\n{:<14} {:>16} {:>22}", "INSTANCE", "ANSWERS TO USERS", "COUNTED IN THE CLUSTER");
    let served = locked(&seen.served);
    for (id, total) in after {
        let counted = total - before.get(id).copied().unwrap_or_default();
        if counted > 0 {
            let answers: u64 =
                served.iter().filter(|((_, it), _)| it == id).map(|(_, count)| count).sum();
            println!("{id:<14} {answers:>16} {counted:>22}");
        }
    }
    println!("\norders placed                        {}", of(&seen.orders));
    for (percent, count) in locked(&seen.discounts).iter() {
        println!("  with a discount of {percent:>2} %            {count}");
    }
    println!("calls that another instance took     {}", of(&seen.moved_on));
    println!("carts gone with their instance       {}", of(&seen.carts_lost));
    println!("calls in an instance when it died    {}", of(&seen.uncertain));
    println!("calls that should not have failed    {}", of(&seen.failed));
    match locked(&seen.example).as_ref() {
        Some(status) => {
            eprintln!("error: for instance: {:?}: {}", status.code(), status.message());
            ExitCode::FAILURE
        }
        None => ExitCode::SUCCESS,
    }
}
