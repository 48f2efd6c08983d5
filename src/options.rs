//! Raw options become a checked value before any socket or file opens. Every option is a flag, an
//! environment variable `QUORATE_...` and a key of the TOML file named by `--config`, with the same
//! name everywhere; a flag beats the environment, which beats the file, which beats the default. An
//! empty value counts as not given.

mod node;
mod value;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Deserializer};

pub use node::{
    Config, Durability, Listen, Log, LogFormat, Timing, cluster_id, initial_cluster, members_text,
};
pub use value::{duration, host_port, name, split_host_port};
use value::{invalid, text};

use crate::limits;

/// What the process answers to its caller.
pub mod exit {
    pub const OK: u8 = 0;
    pub const ERROR: u8 = 1;
    /// A command line, environment variable or file that is not understood.
    pub const USAGE: u8 = 2;
    /// The data directory is another node's, in use, or of a newer release.
    pub const DATA_DIRECTORY: u8 = 3;
    /// The log is damaged elsewhere than at its torn tail.
    pub const LOG_DAMAGED: u8 = 4;
    /// An address to listen on is taken.
    pub const ADDRESS_IN_USE: u8 = 5;
    /// The node must start anew to fetch its state, and could not do that by itself.
    pub const REBUILD: u8 = 6;
}

/// Why options are refused. Names the option, what it was and what is allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("--{option}: {value:?} is not allowed; allowed: {allowed}")]
    Invalid { option: String, value: String, allowed: String },
    #[error("--{option} is missing; needed: {needed}")]
    Missing { option: String, needed: String },
    #[error("--{option} {value} does not go with --{other} {other_value}: {why}")]
    Relation { option: String, value: String, other: String, other_value: String, why: String },
    #[error("{path}: {why}", path = path.display())]
    File { path: PathBuf, why: String },
}

/// A value as it was written: text on the command line and in the environment, text, number or
/// truth value in the file. Checking it is [`Config::check`]'s and [`Client::check`]'s work, so that
/// a wrong value gets the same error wherever it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scalar(String);

impl From<&str> for Scalar {
    fn from(text: &str) -> Scalar {
        Scalar(text.to_owned())
    }
}

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Scalar;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text, a whole number, true or false")
            }
            fn visit_str<E>(self, value: &str) -> Result<Scalar, E> {
                Ok(Scalar(value.to_owned()))
            }
            fn visit_i64<E>(self, value: i64) -> Result<Scalar, E> {
                Ok(Scalar(value.to_string()))
            }
            fn visit_u64<E>(self, value: u64) -> Result<Scalar, E> {
                Ok(Scalar(value.to_string()))
            }
            fn visit_bool<E>(self, value: bool) -> Result<Scalar, E> {
                Ok(Scalar(value.to_string()))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// Declares a struct of optional raw options that clap and the file fill, and its merge.
macro_rules! raw_options {
    ($(#[$about:meta])* $name:ident { $($(#[$meta:meta])* $field:ident,)* }) => {
        $(#[$about])*
        #[derive(Debug, Clone, Default, PartialEq, Eq, clap::Args, Deserialize)]
        #[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
        pub struct $name { $($(#[$meta])* pub $field: Option<Scalar>,)* }

        impl $name {
            /// These values, and those of `lower` where none is given here.
            fn over(self, lower: $name) -> $name {
                let given = |scalar: &Scalar| !scalar.0.is_empty();
                $name { $($field: self.$field.filter(given).or(lower.$field.filter(given)),)* }
            }
        }
    };
}

raw_options! {
    /// Options of `quorate serve`.
    Serve {
        /// Number of this node, 1..=2^63-1; unique in the cluster and never used again
        #[arg(long, env = "QUORATE_ID", value_name = "N")]
        id,
        /// Directory of this node's log, image and snapshots; made when absent
        #[arg(long, env = "QUORATE_DATA_DIR", value_name = "DIR")]
        data_dir,
        /// Where clients connect [default: 127.0.0.1:7650]
        #[arg(long, env = "QUORATE_LISTEN_CLIENT", value_name = "IP:PORT")]
        listen_client,
        /// Where other nodes connect [default: 127.0.0.1:7651]
        #[arg(long, env = "QUORATE_LISTEN_PEER", value_name = "IP:PORT")]
        listen_peer,
        /// Where /livez, /readyz, /metrics and /version are served [default: 127.0.0.1:7652]
        #[arg(long, env = "QUORATE_LISTEN_HTTP", value_name = "IP:PORT")]
        listen_http,
        /// The address that clients are told [default: --listen-client]
        #[arg(long, env = "QUORATE_ADVERTISE_CLIENT", value_name = "HOST:PORT")]
        advertise_client,
        /// The address that other nodes are told [default: this node's entry in
        /// --initial-cluster, else --listen-peer]
        #[arg(long, env = "QUORATE_ADVERTISE_PEER", value_name = "HOST:PORT")]
        advertise_peer,
        /// Peer addresses of the members that the cluster begins with, the same on every node:
        /// 1=host:port,2=host:port,3=host:port
        #[arg(long, env = "QUORATE_INITIAL_CLUSTER", value_name = "MEMBERS")]
        initial_cluster,
        /// Tells apart clusters that begin with the same members [default: quorate]
        #[arg(long, env = "QUORATE_CLUSTER_TOKEN", value_name = "TOKEN")]
        cluster_token,
        /// Peer address of a member of the running cluster that this new node joins; it then waits
        /// for `quorate member add`
        #[arg(long, env = "QUORATE_JOIN", value_name = "HOST:PORT")]
        join,
        /// How often the leader says that it lives, in ms [default: 100]
        #[arg(long, env = "QUORATE_HEARTBEAT_MS", value_name = "MS")]
        heartbeat_ms,
        /// How long at least a voter waits when the lease of a silent leader is over, in ms, before it asks
        /// for the lead; of one whose machine refuses connections it does not wait [default: 250]
        #[arg(long, env = "QUORATE_ELECTION_MIN_MS", value_name = "MS")]
        election_min_ms,
        /// The leader's lease, in ms: for so long after it was heard no voter elects another; and how
        /// long at most one waits then [default: 400]
        #[arg(long, env = "QUORATE_ELECTION_MAX_MS", value_name = "MS")]
        election_max_ms,
        /// Log entries after which a snapshot is made [default: 100000]
        #[arg(long, env = "QUORATE_SNAPSHOT_ENTRIES", value_name = "N")]
        snapshot_entries,
        /// Log entries after which the nodes compare their states; the same on all nodes
        /// [default: 10000]
        #[arg(long, env = "QUORATE_DIGEST_ENTRIES", value_name = "N")]
        digest_entries,
        /// How URLs begin to which alarms may be posted, separated by commas, for instance
        /// https://hooks.example.com/; the same on all nodes [default: none]
        #[arg(long, env = "QUORATE_WEBHOOK_ALLOW", value_name = "URL,...")]
        webhook_allow,
        /// How URLs begin to which branches of global transactions may be posted, separated by commas; the
        /// same on all nodes. Services of the registry are always allowed [default: none]
        #[arg(long, env = "QUORATE_PARTICIPANT_ALLOW", value_name = "URL,...")]
        participant_allow,
        /// Where this node may connect to for health checks: networks, addresses, names of hosts and,
        /// with a dot before them, all names below, separated by commas, for instance
        /// 10.0.0.0/8,.example.com; the same on all nodes [default: nowhere]
        #[arg(long, env = "QUORATE_HEALTH_CHECK_ALLOW", value_name = "NETWORK|NAME,...")]
        health_check_allow,
        /// Threads that serve requests [default: 1]
        #[arg(long, env = "QUORATE_WORKER_THREADS", value_name = "N")]
        worker_threads,
        /// error, warn, info, debug, trace, or directives such as info,openraft=debug
        /// [default: info]
        #[arg(long, env = "QUORATE_LOG_LEVEL", value_name = "LEVEL")]
        log_level,
        /// text or json [default: text]
        #[arg(long, env = "QUORATE_LOG_FORMAT", value_name = "FORMAT")]
        log_format,
        /// Never wait for the disk: a power cut loses acknowledged writes. For benchmarks only
        #[arg(
            long, env = "QUORATE_UNSAFE_NO_FSYNC", value_name = "BOOL",
            num_args = 0..=1, require_equals = true, default_missing_value = "true"
        )]
        unsafe_no_fsync,
        /// Stop when standard input ends; `quorate dev` holds the other end
        #[arg(
            long, hide = true, value_name = "BOOL",
            num_args = 0..=1, require_equals = true, default_missing_value = "true"
        )]
        exit_with_parent,
    }
}

raw_options! {
    /// Options of every command that calls a cluster.
    Global {
        /// Client addresses of the cluster, any of them, separated by commas
        /// [default: 127.0.0.1:7650,127.0.0.1:7660,127.0.0.1:7670]
        #[arg(long, global = true, env = "QUORATE_ENDPOINTS", value_name = "HOST:PORT,...")]
        endpoints,
        /// simple, table or json [default: simple]
        #[arg(short = 'w', long, global = true, env = "QUORATE_WRITE_OUT", value_name = "FORMAT")]
        write_out,
        /// How long one call may take, for instance 500ms, 5s or 1m [default: 5s]
        #[arg(long, global = true, env = "QUORATE_COMMAND_TIMEOUT", value_name = "DURATION")]
        command_timeout,
        /// Namespace of services [default: default]
        #[arg(short = 'n', long, global = true, env = "QUORATE_NAMESPACE", value_name = "NAME")]
        namespace,
    }
}

/// How the answers of a command are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// Aligned columns, or one line.
    Simple,
    /// A table with lines around its cells.
    Table,
    Json,
}

/// Checked options of a command that calls a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Client {
    /// `host:port` each; at least one, no two the same.
    pub endpoints: Vec<String>,
    pub output: Output,
    pub timeout: Duration,
    pub namespace: String,
}

/// What the file of `--config` holds: options of both kinds in one flat list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct File {
    serve: Serve,
    global: Global,
}

impl File {
    /// Reads and parses the file; no file is an empty one.
    pub fn read(path: Option<&Path>) -> Result<File, Error> {
        let Some(path) = path else { return Ok(File::default()) };
        let wrong = |why: String| Error::File { path: path.to_owned(), why };
        let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
        File::parse(&text).map_err(wrong)
    }

    fn parse(text: &str) -> Result<File, String> {
        let tell = |error: toml::de::Error| error.to_string().trim_end().to_owned();
        let mut table: toml::Table = toml::from_str(text).map_err(tell)?;
        let (serve, global) = (keys::<Serve>(), keys::<Global>());
        let unknown = |key: &&String| !serve.contains(*key) && !global.contains(*key);
        if let Some(key) = table.keys().find(unknown) {
            let all: Vec<String> = [serve, global].concat();
            return Err(format!("{key:?} is not an option; allowed: {}", all.join(", ")));
        }
        let rest: toml::Table = global.iter().filter_map(|key| table.remove_entry(key)).collect();
        Ok(File { serve: table.try_into().map_err(tell)?, global: rest.try_into().map_err(tell)? })
    }
}

/// Names of the options that may stand in the file: every visible one.
fn keys<A: clap::Args>() -> Vec<String> {
    A::augment_args(clap::Command::new("keys"))
        .get_arguments()
        .filter(|argument| !argument.is_hide_set())
        .filter_map(|argument| argument.get_long().map(str::to_owned))
        .collect()
}

impl Client {
    /// Merges and checks.
    pub fn check(raw: Global, file: &File) -> Result<Client, Error> {
        let raw = raw.over(file.global.clone());
        let endpoints = text(&raw.endpoints).unwrap_or(limits::DEFAULT_ENDPOINTS);
        let mut unique = Vec::new();
        for endpoint in endpoints.split(',').map(str::trim) {
            let endpoint = host_port("endpoints", endpoint)?;
            if !unique.contains(&endpoint) {
                unique.push(endpoint);
            }
        }
        let output = match text(&raw.write_out).unwrap_or("simple") {
            "simple" => Output::Simple,
            "table" => Output::Table,
            "json" => Output::Json,
            other => return Err(invalid("write-out", other, "simple, table, json")),
        };
        let timeout = match text(&raw.command_timeout) {
            None => limits::DEFAULT_CALL_TIMEOUT,
            Some(given) => duration(
                "command-timeout",
                given,
                Duration::from_millis(1)..=limits::MAX_CALL_TIMEOUT,
            )?,
        };
        let namespace = text(&raw.namespace).unwrap_or(limits::DEFAULT_NAMESPACE);
        Ok(Client {
            endpoints: unique,
            output,
            timeout,
            namespace: name("namespace", namespace)?.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests;
