//! `quorate service resolve` and `spread`: what the policy of a service makes of its instances, by the code
//! that clients balance with.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::Serialize;
use serde_json::json;

use super::super::output::Table;
use super::super::{Context, Error};
use crate::client::balance::{Admin, Algorithm, Endpoint, Origin, Policy, Snapshot, hash};
use crate::client::channel::{self, Address};
use crate::client::{DiscoveryOptions, ServiceState};
use crate::{error, limits};

/// How the service is looked at.
#[derive(Debug, clap::Args)]
struct View {
    service: String,
    /// This policy instead of the service's, with its parameters: "ring_hash?bound=1.25"
    #[arg(long, value_name = "POLICY")]
    policy: Option<Policy>,
    /// Name of the port to call [default: grpc, or else the first one]
    #[arg(long, value_name = "NAME")]
    port: Option<String>,
    /// Zone of the client, for policies with zone=prefer
    #[arg(long, value_name = "ZONE", default_value = "")]
    zone: String,
    /// Id of the client, for subsets and for where it begins
    #[arg(long, value_name = "ID", default_value = "")]
    client: String,
    /// As if this instance were gone; may be repeated
    #[arg(long, value_name = "ID")]
    without: Vec<String>,
}

#[derive(Debug, clap::Args)]
pub struct Resolve {
    #[command(flatten)]
    view: View,
    /// The key of the call
    #[arg(long, value_name = "KEY")]
    key: String,
}

#[derive(Debug, clap::Args)]
pub struct Spread {
    #[command(flatten)]
    view: View,
    /// How many keys are asked for: "key-0", "key-1" and so on
    #[arg(long, value_name = "N", default_value_t = limits::DEFAULT_SPREAD_KEYS,
        value_parser = clap::value_parser!(u64).range(limits::SPREAD_KEYS))]
    keys: u64,
}

/// A service as a client that starts now would balance it.
struct Balanced {
    state: std::sync::Arc<ServiceState>,
    policy: Policy,
    /// Who set the policy.
    from: &'static str,
    origin: Origin,
    endpoints: Vec<Endpoint<Address>>,
    without: BTreeSet<String>,
}

/// A place in the order in which a call tries the instances.
#[derive(Debug, Serialize, PartialEq)]
struct Candidate {
    order: usize,
    id: String,
    address: String,
    zone: String,
    weight: u32,
    why: &'static str,
}

/// An instance that does not get the call.
#[derive(Debug, Serialize, PartialEq)]
struct LeftOut {
    id: String,
    why: String,
}

pub async fn resolve(args: Resolve, context: &Context) -> Result<(), Error> {
    let balanced = Balanced::find(args.view, context).await?;
    let hash = hash(args.key.as_bytes());
    let candidates = balanced.candidates(hash);
    let left_out = balanced.left_out(&candidates);
    let value = json!({
        "revision": balanced.state.revision,
        "key": args.key,
        "hash": format!("{hash:016x}"),
        "policy": balanced.policy.to_string(),
        "policy_from": balanced.from,
        "protected": balanced.state.protected,
        "candidates": candidates,
        "left_out": left_out,
    });
    let printer = context.printer();
    printer.answer(&value, || {
        let fields = [
            ("key", format!("{}, hash {hash:016x}", args.key)),
            ("policy", format!("{}, {}", balanced.policy, balanced.from)),
        ];
        let mut text = printer.render(&Table::record(fields));
        if !balanced.policy.hashes() {
            text += "this policy does not look at keys: another call may go elsewhere\n";
        }
        let mut table = Table::new(&["order", "id", "address", "zone", "weight", "why"]);
        for Candidate { order, id, address, zone, weight, why } in &candidates {
            let (order, weight) = (order.to_string(), weight.to_string());
            let why = (*why).to_owned();
            table.row([order, id.clone(), address.clone(), zone.clone(), weight, why]);
        }
        for LeftOut { id, why } in &left_out {
            let none = || "-".to_owned();
            table.row([none(), id.clone(), none(), none(), none(), why.clone()]);
        }
        text + "\n" + &printer.render(&table)
    })
}

/// What an instance got of the keys.
#[derive(Debug, Serialize)]
struct Share {
    id: String,
    address: String,
    weight: u32,
    keys: u64,
    /// What its weight entitles it to.
    expected: f64,
    /// `keys` by `expected`.
    ratio: f64,
}

pub async fn spread(args: Spread, context: &Context) -> Result<(), Error> {
    let total = args.keys;
    let mut balanced = Balanced::find(args.view, context).await?;
    let without = std::mem::take(&mut balanced.without);
    let owners = balanced.owners(total);
    let after = (!without.is_empty()).then(|| {
        balanced.without = without;
        balanced.owners(total)
    });
    let shares = balanced.shares(&owners);
    let greatest = |ratios: &mut dyn Iterator<Item = f64>| ratios.fold(0.0, f64::max);
    let peak = greatest(&mut shares.iter().map(|share| share.ratio));
    let least = shares.iter().map(|share| share.ratio).fold(f64::INFINITY, f64::min);
    let moved = after.as_ref().map(|after| Moved::between(&owners, after, &balanced.without));
    let value = json!({
        "revision": balanced.state.revision,
        "keys": total,
        "policy": balanced.policy.to_string(),
        "policy_from": balanced.from,
        "peak_to_mean": peak,
        "least_to_mean": if shares.is_empty() { 0.0 } else { least },
        "instances": shares,
        "without": moved,
    });
    let printer = context.printer();
    printer.answer(&value, || {
        let mut table =
            Table::new(&["id", "address", "weight", "keys", "share", "of its part", ""]);
        let widest = greatest(&mut shares.iter().map(|share| share.keys as f64));
        for share in &shares {
            let bar = (share.keys as f64 / widest.max(1.0) * 40.0).round() as usize;
            table.row([
                share.id.clone(),
                share.address.clone(),
                share.weight.to_string(),
                share.keys.to_string(),
                format!("{:.2}%", share.keys as f64 * 100.0 / total as f64),
                format!("{:.3}", share.ratio),
                "#".repeat(bar),
            ]);
        }
        let mut text = format!("{total} keys, {}, {}\n\n", balanced.policy, balanced.from);
        if shares.is_empty() {
            return text + "no instance takes calls\n";
        }
        text += &printer.render(&table);
        text += &format!("\npeak/mean {peak:.3}, least/mean {least:.3}\n");
        if let Some(Moved { of_gone, of_others, instances }) = &moved {
            let gone = instances.join(", ");
            text += &format!(
                "without {gone}: its {of_gone} keys go elsewhere, and {of_others} keys of others do\n"
            );
        }
        text
    })
}

/// Keys that go to another instance when some are gone.
#[derive(Debug, Serialize, PartialEq)]
struct Moved {
    instances: Vec<String>,
    of_gone: u64,
    of_others: u64,
}

impl Moved {
    fn between(before: &[String], after: &[String], gone: &BTreeSet<String>) -> Moved {
        let mut moved =
            Moved { instances: gone.iter().cloned().collect(), of_gone: 0, of_others: 0 };
        for (before, after) in before.iter().zip(after) {
            if gone.contains(before) {
                moved.of_gone += 1;
            } else if before != after {
                moved.of_others += 1;
            }
        }
        moved
    }
}

impl Balanced {
    async fn find(view: View, context: &Context) -> Result<Balanced, Error> {
        let options = DiscoveryOptions::new(&view.service).namespace(context.namespace());
        let client = context.client()?;
        let discovery = client.discovery(options).await?;
        let synced = tokio::time::timeout(client.timeout(), discovery.synced()).await;
        synced.unwrap_or(Err(error::Error::Timeout { definite: true }))?;
        let state = discovery.state();
        if state.settings.is_none() && state.instances.is_empty() {
            let kind = "service".to_owned();
            return Err(error::Error::NotFound { kind, name: view.service }.into());
        }
        for id in &view.without {
            if !state.instances.contains_key(id) {
                let kind = "instance".to_owned();
                return Err(error::Error::NotFound { kind, name: id.clone() }.into());
            }
        }
        let (policy, from) = match view.policy {
            Some(policy) => (policy, "as asked for"),
            None => match channel::policy(&state)? {
                Some(policy) => (policy, "set by the service"),
                None => (Policy::default(), "the default"),
            },
        };
        Ok(Balanced {
            endpoints: channel::endpoints(&state, view.port.as_deref()),
            origin: Origin { id: view.client, zone: view.zone },
            without: view.without.into_iter().collect(),
            state,
            policy,
            from,
        })
    }

    fn snapshot(&self) -> Snapshot<Address> {
        let there = |endpoint: &&Endpoint<Address>| !self.without.contains(&endpoint.id);
        let endpoints = self.endpoints.iter().filter(there).cloned().collect();
        Snapshot::new(&self.policy, &self.origin, endpoints)
    }

    /// In which order a call of this key would try the instances.
    fn candidates(&self, hash: u64) -> Vec<Candidate> {
        let snapshot = self.snapshot();
        let mut call = snapshot.call(Some(hash), Duration::ZERO, hash);
        let mut candidates = Vec::new();
        while let Ok(pick) = call.candidate() {
            let endpoint = pick.endpoint();
            let order = candidates.len() + 1;
            candidates.push(Candidate {
                order,
                id: endpoint.id.clone(),
                address: endpoint.target.to_string(),
                zone: endpoint.zone.clone(),
                weight: endpoint.weight,
                why: why(self.policy.algorithm(), order == 1),
            });
        }
        candidates
    }

    fn left_out(&self, candidates: &[Candidate]) -> Vec<LeftOut> {
        let tried: BTreeSet<&str> = candidates.iter().map(|it| it.id.as_str()).collect();
        let snapshot = self.snapshot();
        let chosen: BTreeSet<&str> =
            snapshot.chosen().iter().map(|it| it.endpoint().id.as_str()).collect();
        let endpoints: BTreeMap<&str, &Endpoint<Address>> =
            self.endpoints.iter().map(|endpoint| (endpoint.id.as_str(), endpoint)).collect();
        let why = |id: &str| {
            let Some(endpoint) = endpoints.get(id) else { return "has no such port".to_owned() };
            match endpoint {
                _ if self.without.contains(id) => "as if it were gone".to_owned(),
                Endpoint { admin: Admin::Draining, .. } => "draining".to_owned(),
                Endpoint { admin: Admin::Disabled, .. } => "disabled".to_owned(),
                Endpoint { weight: 0, .. } => "its weight is 0".to_owned(),
                _ if !chosen.contains(id) => "not in the subset of this client".to_owned(),
                Endpoint { healthy: false, .. } => "critical".to_owned(),
                _ => format!("a call tries {} instances at most", limits::BALANCE_ATTEMPTS),
            }
        };
        let left = self.state.instances.keys().filter(|id| !tried.contains(id.as_str()));
        left.map(|id| LeftOut { id: id.clone(), why: why(id) }).collect()
    }

    /// Whose each key is.
    fn owners(&self, keys: u64) -> Vec<String> {
        let snapshot = self.snapshot();
        let owner = |i: u64| {
            let hash = hash(format!("key-{i}").as_bytes());
            let pick = snapshot.pick(Some(hash), Duration::ZERO, hash);
            pick.map_or_else(|_| String::new(), |pick| pick.endpoint().id.clone())
        };
        (0..keys).map(owner).collect()
    }

    fn shares(&self, owners: &[String]) -> Vec<Share> {
        let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
        for owner in owners {
            *counts.entry(owner).or_default() += 1;
        }
        let snapshot = Snapshot::new(&self.policy, &self.origin, self.endpoints.clone());
        let usable = |endpoint: &Endpoint<Address>| {
            endpoint.healthy || counts.contains_key(endpoint.id.as_str())
        };
        let chosen: Vec<&Endpoint<Address>> =
            snapshot.chosen().iter().map(|it| it.endpoint()).filter(|it| usable(it)).collect();
        let weight: f64 = chosen.iter().map(|endpoint| f64::from(endpoint.weight)).sum();
        let share = |endpoint: &&Endpoint<Address>| {
            let keys = counts.get(endpoint.id.as_str()).copied().unwrap_or_default();
            let expected = owners.len() as f64 * f64::from(endpoint.weight) / weight;
            Share {
                id: endpoint.id.clone(),
                address: endpoint.target.to_string(),
                weight: endpoint.weight,
                keys,
                expected,
                ratio: keys as f64 / expected,
            }
        };
        let mut shares: Vec<Share> = chosen.iter().map(share).collect();
        shares.sort_by(|a, b| b.keys.cmp(&a.keys).then_with(|| a.id.cmp(&b.id)));
        shares
    }
}

/// Why an instance stands where it does.
fn why(algorithm: Algorithm, first: bool) -> &'static str {
    match (algorithm, first) {
        (Algorithm::RingHash { .. } | Algorithm::Ketama, true) => {
            "first on the ring from the key on"
        }
        (Algorithm::RingHash { .. } | Algorithm::Ketama, false) => "next on the ring",
        (Algorithm::Maglev { .. }, true) => "holds the slot of the key",
        (Algorithm::Maglev { .. }, false) => "holds the next slot that the key leads to",
        (Algorithm::Rendezvous, true) => "highest score with the key",
        (Algorithm::Rendezvous, false) => "next highest score",
        (Algorithm::LeastRequest { .. } | Algorithm::PeakEwma { .. }, true) => {
            "a choice among equals: this command knows no load"
        }
        (Algorithm::WeightedRoundRobin | Algorithm::RoundRobin, true) => "where this client begins",
        (Algorithm::Random, true) => "a random choice",
        (Algorithm::PickFirst { .. }, true) => "the first one",
        (
            Algorithm::LeastRequest { .. }
            | Algorithm::PeakEwma { .. }
            | Algorithm::WeightedRoundRobin
            | Algorithm::RoundRobin
            | Algorithm::Random
            | Algorithm::PickFirst { .. },
            false,
        ) => "if the ones before do not answer",
    }
}
