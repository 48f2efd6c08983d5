//! The checked options of one node, and how those of its cluster give the cluster its identity.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::value::{flag, host_port, invalid, missing, name, number, number_or, text};
use super::{Error, File, Scalar, Serve};
use crate::allow::AllowList;
use crate::limits;

/// A checked option set of one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// 1..=2^63-1.
    pub id: u64,
    pub data_dir: PathBuf,
    /// 32 hexadecimal digits, see [`cluster_id`]. None only when the node joins a cluster whose
    /// beginning it was not told: the peer that it joins names it.
    pub cluster_id: Option<String>,
    /// Number and peer address of the members that the cluster begins with, by number. Contains
    /// this node unless `join` is set; empty when it joins without being told.
    pub initial_members: Vec<(u64, String)>,
    /// Peer address of a member of the cluster that this node waits to be added to.
    pub join: Option<String>,
    pub listen: Listen,
    /// `host:port` at which clients reach this node; never a wildcard address.
    pub advertise_client: String,
    /// `host:port` at which peers reach this node; its own entry in `initial_members`.
    pub advertise_peer: String,
    pub timing: Timing,
    /// Log entries after which a snapshot is made.
    pub snapshot_entries: u64,
    /// Entries kept behind a snapshot, for followers that lag a little. Below `snapshot_entries`.
    pub snapshot_keep_entries: u64,
    /// Log entries after which the replicas compare their states; the same on all nodes.
    pub digest_entries: u64,
    /// How URLs of webhooks may begin.
    pub webhook_allow: Vec<String>,
    /// How URLs of participants in global transactions may begin.
    pub participant_allow: Vec<String>,
    /// Where health checks may connect to.
    pub health_check_allow: AllowList,
    /// 1 = everything on the main thread.
    pub worker_threads: usize,
    pub log: Log,
    pub durability: Durability,
    /// Stop when standard input ends, see `cli::dev::parent_gone`.
    pub exit_with_parent: bool,
}

/// The three listeners; no two on the same port of the same address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listen {
    pub client: SocketAddr,
    pub peer: SocketAddr,
    pub http: SocketAddr,
}

/// Invariant: 2 * heartbeat <= election_min < election_max.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    pub heartbeat_ms: u64,
    pub election_min_ms: u64,
    pub election_max_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// Directives of tracing-subscriber's `EnvFilter`; they parse.
    pub filter: String,
    pub format: LogFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

/// How a write is made durable before it is acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    Fdatasync,
    /// Not at all; asked for by `--unsafe-no-fsync`.
    None,
}

impl Durability {
    /// As `StatusResponse.durability` says it.
    pub fn as_str(self) -> &'static str {
        match self {
            Durability::Fdatasync => "fdatasync",
            Durability::None => "none",
        }
    }
}

/// How URLs may begin, separated by commas.
fn urls(option: &str, given: &str) -> Result<Vec<String>, Error> {
    let all: Vec<String> =
        given.split(',').map(str::trim).filter(|url| !url.is_empty()).map(str::to_owned).collect();
    let is_url = |url: &String| {
        let host = ["http://", "https://"].iter().find_map(|scheme| url.strip_prefix(scheme));
        url.len() <= limits::WEBHOOK_BYTES && host.is_some_and(|host| !host.is_empty())
    };
    match all.iter().find(|url| !is_url(url)) {
        Some(wrong) => Err(invalid(option, wrong, "URLs with http:// or https://")),
        None if all.len() > limits::WEBHOOKS_ALLOWED => {
            let allowed = format!("at most {} URLs", limits::WEBHOOKS_ALLOWED);
            Err(invalid(option, &format!("{} URLs", all.len()), &allowed))
        }
        None => Ok(all),
    }
}

fn health_check_allow(given: &str) -> Result<AllowList, Error> {
    AllowList::parse(given)
        .map_err(|wrong| invalid("health-check-allow", &wrong.value, &wrong.allowed))
}

impl Config {
    /// Merges and checks.
    pub fn check(raw: Serve, file: &File) -> Result<Config, Error> {
        let raw = raw.over(file.serve.clone());
        let id = text(&raw.id).ok_or_else(|| {
            missing("id", "the number of this node, from 1, of its own and never used again")
        })?;
        let id = number("id", id, limits::NODE_IDS)?;
        let data_dir = text(&raw.data_dir).ok_or_else(|| missing("data-dir", "a directory"))?;
        let listen = Listen::check(&raw)?;
        let token = name("cluster-token", text(&raw.cluster_token).unwrap_or("quorate"))?;
        let join = text(&raw.join).map(|peer| host_port("join", peer)).transpose()?;
        let initial_members = match text(&raw.initial_cluster) {
            Some(members) => initial_cluster(members)?,
            None if join.is_some() => Vec::new(),
            None => {
                return Err(missing(
                    "initial-cluster",
                    "1=host:port,2=host:port,... with this node in it, or --join of a running cluster",
                ));
            }
        };
        let own = initial_members.iter().find(|(member, _)| *member == id);
        match (&join, own) {
            (None, None) => {
                return Err(Error::Relation {
                    option: "initial-cluster".into(),
                    value: members_text(&initial_members),
                    other: "id".into(),
                    other_value: id.to_string(),
                    why:
                        "the node itself must be in it, unless it joins a running cluster (--join)"
                            .into(),
                });
            }
            (Some(join), Some(_)) => {
                return Err(Error::Relation {
                    option: "join".into(),
                    value: join.clone(),
                    other: "initial-cluster".into(),
                    other_value: members_text(&initial_members),
                    why: format!(
                        "node {id} is in the cluster from its beginning and joins nothing"
                    ),
                });
            }
            (None, Some(_)) | (Some(_), None) => {}
        }
        let advertise_client = advertised(
            "advertise-client",
            &raw.advertise_client,
            None,
            "listen-client",
            listen.client,
        )?;
        let own = own.map(|(_, address)| address.as_str());
        let advertise_peer =
            advertised("advertise-peer", &raw.advertise_peer, own, "listen-peer", listen.peer)?;
        if let Some(own) = own
            && own != advertise_peer
        {
            return Err(Error::Relation {
                option: "advertise-peer".into(),
                value: advertise_peer,
                other: "initial-cluster".into(),
                other_value: members_text(&initial_members),
                why: format!("there node {id} is at {own}"),
            });
        }
        let snapshot_entries = number_or(
            "snapshot-entries",
            &raw.snapshot_entries,
            limits::SNAPSHOT_ENTRIES,
            limits::SNAPSHOT_ENTRIES_RANGE,
        )?;
        let digest_entries = number_or(
            "digest-entries",
            &raw.digest_entries,
            limits::DIGEST_ENTRIES,
            limits::DIGEST_ENTRIES_RANGE,
        )?;
        let worker_threads =
            number_or("worker-threads", &raw.worker_threads, 1, limits::WORKER_THREADS)?;
        Ok(Config {
            id,
            data_dir: PathBuf::from(data_dir),
            cluster_id: (!initial_members.is_empty()).then(|| cluster_id(&initial_members, token)),
            initial_members,
            join,
            listen,
            advertise_client,
            advertise_peer,
            timing: Timing::check(&raw)?,
            snapshot_entries,
            snapshot_keep_entries: limits::SNAPSHOT_KEEP_ENTRIES.min(snapshot_entries / 5),
            digest_entries,
            webhook_allow: urls("webhook-allow", text(&raw.webhook_allow).unwrap_or_default())?,
            participant_allow: urls(
                "participant-allow",
                text(&raw.participant_allow).unwrap_or_default(),
            )?,
            health_check_allow: health_check_allow(
                text(&raw.health_check_allow).unwrap_or_default(),
            )?,
            worker_threads: usize::try_from(worker_threads).expect("checked to be small"),
            log: Log::check(&raw)?,
            durability: match flag("unsafe-no-fsync", &raw.unsafe_no_fsync)? {
                true => Durability::None,
                false => Durability::Fdatasync,
            },
            exit_with_parent: flag("exit-with-parent", &raw.exit_with_parent)?,
        })
    }
}

impl Listen {
    fn check(raw: &Serve) -> Result<Listen, Error> {
        let address = |option: &str, given: &Option<Scalar>, offset: u16| {
            let default = SocketAddr::from(([127, 0, 0, 1], limits::DEFAULT_BASE_PORT + offset));
            let Some(given) = text(given) else { return Ok(default) };
            match given.parse::<SocketAddr>() {
                Ok(address) if address.port() > 0 => Ok(address),
                Ok(_) | Err(_) => Err(invalid(
                    option,
                    given,
                    "IP:port, for instance 127.0.0.1:7650 or 0.0.0.0:7650",
                )),
            }
        };
        let client = address("listen-client", &raw.listen_client, 0)?;
        let peer = address("listen-peer", &raw.listen_peer, 1)?;
        let http = address("listen-http", &raw.listen_http, 2)?;
        let all = [("listen-client", client), ("listen-peer", peer), ("listen-http", http)];
        for (at, (option, one)) in all.iter().enumerate() {
            for (other, two) in &all[at + 1..] {
                let same_host =
                    one.ip() == two.ip() || one.ip().is_unspecified() || two.ip().is_unspecified();
                if one.port() == two.port() && same_host {
                    return Err(Error::Relation {
                        option: (*option).into(),
                        value: one.to_string(),
                        other: (*other).into(),
                        other_value: two.to_string(),
                        why: "each listener needs a port of its own".into(),
                    });
                }
            }
        }
        Ok(Listen { client, peer, http })
    }
}

impl Timing {
    fn check(raw: &Serve) -> Result<Timing, Error> {
        let timing = Timing {
            heartbeat_ms: number_or(
                "heartbeat-ms",
                &raw.heartbeat_ms,
                limits::HEARTBEAT_MS,
                limits::HEARTBEAT_MS_RANGE,
            )?,
            election_min_ms: number_or(
                "election-min-ms",
                &raw.election_min_ms,
                limits::ELECTION_MIN_MS,
                limits::ELECTION_MS_RANGE,
            )?,
            election_max_ms: number_or(
                "election-max-ms",
                &raw.election_max_ms,
                limits::ELECTION_MAX_MS,
                limits::ELECTION_MS_RANGE,
            )?,
        };
        if timing.election_min_ms < 2 * timing.heartbeat_ms {
            return Err(Error::Relation {
                option: "election-min-ms".into(),
                value: timing.election_min_ms.to_string(),
                other: "heartbeat-ms".into(),
                other_value: timing.heartbeat_ms.to_string(),
                why: "one lost heartbeat must not start an election: at least twice as long".into(),
            });
        }
        if timing.election_max_ms <= timing.election_min_ms {
            return Err(Error::Relation {
                option: "election-max-ms".into(),
                value: timing.election_max_ms.to_string(),
                other: "election-min-ms".into(),
                other_value: timing.election_min_ms.to_string(),
                why: "nodes draw their timeout between the two, so it must be greater".into(),
            });
        }
        Ok(timing)
    }
}

impl Log {
    fn check(raw: &Serve) -> Result<Log, Error> {
        let level = text(&raw.log_level).unwrap_or("info");
        // What libraries say is told one level more quietly than what the node says.
        let filter = match level {
            // openraft warns at every heartbeat that a dead peer does not answer; the node says it once.
            "error" => "error".to_owned(),
            "warn" => "error,quorate=warn".to_owned(),
            "info" => "warn,openraft=error,quorate=info".to_owned(),
            "debug" => "info,openraft=warn,quorate=debug".to_owned(),
            "trace" => "debug,quorate=trace".to_owned(),
            directives => {
                tracing_subscriber::EnvFilter::try_new(directives).map_err(|_| {
                    invalid(
                        "log-level",
                        directives,
                        "error, warn, info, debug, trace, or directives such as info,openraft=debug",
                    )
                })?;
                directives.to_owned()
            }
        };
        let format = match text(&raw.log_format).unwrap_or("text") {
            "text" => LogFormat::Text,
            "json" => LogFormat::Json,
            other => return Err(invalid("log-format", other, "text, json")),
        };
        Ok(Log { filter, format })
    }
}

/// The address that others are told: the given one, else the one that `--initial-cluster` gives this
/// node, else the one it listens on if that names a host.
fn advertised(
    option: &str,
    given: &Option<Scalar>,
    own: Option<&str>,
    listen_option: &str,
    listen: SocketAddr,
) -> Result<String, Error> {
    let address = match (text(given), own) {
        (Some(given), _) => host_port(option, given)?,
        (None, Some(own)) => own.to_owned(),
        (None, None) => listen.to_string(),
    };
    let host = address.rsplit_once(':').map_or("", |(host, _)| host).trim_matches(['[', ']']);
    if host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_unspecified()) {
        return Err(missing(
            option,
            &format!(
                "host:port at which others reach this node, because --{listen_option} {listen} does not say it"
            ),
        ));
    }
    Ok(address)
}

/// Identity of a cluster: xxh3_128 over its first members, by number, and its token. Every node of
/// a cluster computes the same one from the same `--initial-cluster` and `--cluster-token`.
pub fn cluster_id(initial_members: &[(u64, String)], token: &str) -> String {
    let mut sorted = initial_members.to_vec();
    sorted.sort();
    let bytes = format!("{}\n{token}", members_text(&sorted));
    format!("{:032x}", xxhash_rust::xxh3::xxh3_128(bytes.as_bytes()))
}

/// Parses `1=host:port,2=host:port`; the result is sorted by number.
pub fn initial_cluster(given: &str) -> Result<Vec<(u64, String)>, Error> {
    const OPTION: &str = "initial-cluster";
    let wrong = |allowed: &str| invalid(OPTION, given, allowed);
    let mut members: Vec<(u64, String)> = Vec::new();
    for part in given.split(',').map(str::trim) {
        let Some((id, address)) = part.split_once('=') else {
            return Err(invalid(OPTION, part, "N=host:port, separated by commas"));
        };
        let id = number(OPTION, id.trim(), limits::NODE_IDS)?;
        let address = host_port(OPTION, address.trim())?;
        if members.iter().any(|(other, _)| *other == id) {
            return Err(wrong(&format!("each number once; {id} is there twice")));
        }
        if members.iter().any(|(_, other)| *other == address) {
            return Err(wrong(&format!("each address once; {address} is there twice")));
        }
        members.push((id, address));
    }
    if members.len() > limits::INITIAL_MEMBERS {
        return Err(wrong(&format!("at most {} members", limits::INITIAL_MEMBERS)));
    }
    members.sort();
    Ok(members)
}

/// The inverse of [`initial_cluster`].
pub fn members_text(members: &[(u64, String)]) -> String {
    let parts: Vec<String> =
        members.iter().map(|(id, address)| format!("{id}={address}")).collect();
    parts.join(",")
}
