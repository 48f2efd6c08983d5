//! `quorate dev`: a cluster on this machine, one child process per node. Here: which nodes, at which
//! ports, with which command lines, and what is told about them; `children` starts, watches and
//! stops them.

mod children;

use std::ffi::OsString;
use std::io::{self, Read as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use clap::{Args as _, FromArgMatches as _};
use serde::{Deserialize, Serialize};

use super::output::{Printer, Table};
use super::{Context, Error};
use crate::limits;
use crate::options::{self, exit};

/// Ports of one node, from its base port on.
const PORTS: u16 = 3;
/// File in the data directory that says for which cluster it is.
const PLAN_FILE: &str = "dev.json";
/// What is tried out runs on this machine: unless it is said otherwise health checks may go there.
const HEALTH_CHECK_ALLOW: &str = "--health-check-allow";
const LOOPBACK: &str = "127.0.0.0/8,::1";

#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// How many nodes
    #[arg(
        long, env = "QUORATE_DEV_NODES", value_name = "N", default_value = "3",
        value_parser = ["1", "3", "5"]
    )]
    nodes: String,
    /// Client port of node 1; its peer and HTTP ports are the next two, and node k is 10*(k-1) above
    #[arg(
        long, env = "QUORATE_DEV_BASE_PORT", value_name = "PORT",
        default_value_t = limits::DEFAULT_BASE_PORT, value_parser = clap::value_parser!(u16).range(1..)
    )]
    base_port: u16,
    /// Where the nodes keep their data and logs
    /// [default: quorate/dev-<base-port> in $XDG_DATA_HOME or ~/.local/share]
    #[arg(long, env = "QUORATE_DEV_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Start a node that ended again, instead of telling how to
    #[arg(long, env = "QUORATE_DEV_RESTART")]
    restart: bool,
    /// Options that every node gets, for instance `-- --heartbeat-ms 50`
    #[arg(last = true, value_name = "SERVE OPTIONS")]
    serve: Vec<String>,
}

/// Everything that is decided before the first process starts.
#[derive(Debug, Clone, PartialEq)]
struct Plan {
    data_dir: PathBuf,
    nodes: Vec<Node>,
}

#[derive(Debug, Clone, PartialEq)]
struct Node {
    id: u64,
    client: SocketAddr,
    peer: SocketAddr,
    http: SocketAddr,
    data_dir: PathBuf,
    /// Where its output goes.
    log: PathBuf,
    /// Its command line from `serve` on.
    arguments: Vec<OsString>,
}

/// What `dev.json` keeps: the addresses are part of the cluster's identity.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Kept {
    nodes: usize,
    base_port: u16,
}

/// Starts the cluster and stays until it is told to stop or no node is left.
pub async fn run(args: Args, context: &Context) -> Result<(), Error> {
    let plan = Plan::new(&args)?;
    for node in &plan.nodes {
        node.check()?;
    }
    plan.check_directory(&args)?;
    plan.check_ports()?;
    children::run(&plan, args.restart, context.printer()).await
}

/// Completes when standard input ends: `serve --exit-with-parent` stops then, because `quorate dev`
/// holds the other end of that pipe and its end, even by SIGKILL, closes it.
pub async fn parent_gone() {
    let (gone, wait) = tokio::sync::oneshot::channel();
    let watch = move || {
        let mut buffer = [0; 64];
        loop {
            match io::stdin().read(&mut buffer) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        // Nobody waits any more when the node stops for another reason.
        let _ = gone.send(());
    };
    let thread = std::thread::Builder::new().name("parent".into()).spawn(watch);
    thread.expect("a process that starts can start a thread");
    let _ = wait.await;
}

impl Plan {
    fn new(args: &Args) -> Result<Plan, Error> {
        let count: u16 = args.nodes.parse().expect("one of the possible values");
        let last =
            u32::from(args.base_port) + u32::from(limits::DEV_PORT_STEP * (count - 1) + PORTS - 1);
        if last > u32::from(u16::MAX) {
            return Err(Error::usage(format!(
                "--base-port {} does not go with --nodes {count}: the last port would be {last}",
                args.base_port
            )));
        }
        let data_dir = match &args.data_dir {
            Some(given) => given.clone(),
            None => default_directory(args.base_port)?,
        };
        let data_dir =
            std::path::absolute(&data_dir).map_err(|error| Error::io(data_dir.display(), error))?;
        let base = |id: u16| args.base_port + limits::DEV_PORT_STEP * (id - 1);
        let address = |port: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let members: Vec<(u64, String)> =
            (1..=count).map(|id| (u64::from(id), address(base(id) + 1).to_string())).collect();
        let members = options::members_text(&members);
        let node = |id: u16| {
            let (client, peer, http) =
                (address(base(id)), address(base(id) + 1), address(base(id) + 2));
            let own = data_dir.join(format!("node-{id}"));
            let mut arguments: Vec<OsString> = ["serve", "--id"].map(OsString::from).into();
            arguments.push(id.to_string().into());
            arguments.push("--data-dir".into());
            arguments.push(own.clone().into());
            for (option, value) in [
                ("--listen-client", client.to_string()),
                ("--listen-peer", peer.to_string()),
                ("--listen-http", http.to_string()),
                ("--initial-cluster", members.clone()),
            ] {
                arguments.extend([option.into(), value.into()]);
            }
            arguments.extend(args.serve.iter().map(OsString::from));
            let said = args.serve.iter().any(|word| word.starts_with(HEALTH_CHECK_ALLOW));
            if !said && std::env::var_os("QUORATE_HEALTH_CHECK_ALLOW").is_none() {
                arguments.extend([HEALTH_CHECK_ALLOW, LOOPBACK].map(OsString::from));
            }
            let log = data_dir.join(format!("node-{id}.log"));
            Node { id: id.into(), client, peer, http, data_dir: own, log, arguments }
        };
        Ok(Plan { nodes: (1..=count).map(node).collect(), data_dir: data_dir.clone() })
    }

    /// Makes the directory; refuses one that was made for another cluster, because the nodes in it
    /// know each other by the addresses of that one.
    fn check_directory(&self, args: &Args) -> Result<(), Error> {
        let failed = |path: &Path| {
            let path = path.display().to_string();
            move |error: io::Error| Error::io(path, error)
        };
        std::fs::create_dir_all(&self.data_dir).map_err(failed(&self.data_dir))?;
        let path = self.data_dir.join(PLAN_FILE);
        let ours = Kept { nodes: self.nodes.len(), base_port: args.base_port };
        match std::fs::read(&path) {
            Ok(bytes) => match serde_json::from_slice::<Kept>(&bytes) {
                Ok(kept) if kept == ours => Ok(()),
                Ok(kept) => Err(Error::refused(
                    exit::DATA_DIRECTORY,
                    format!(
                        "{} holds a cluster of {} nodes at base port {}; use --nodes {} --base-port {}, \
                         or another --data-dir",
                        self.data_dir.display(),
                        kept.nodes,
                        kept.base_port,
                        kept.nodes,
                        kept.base_port
                    ),
                )),
                Err(error) => Err(Error::refused(
                    exit::DATA_DIRECTORY,
                    format!("{} is not understood: {error}", path.display()),
                )),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let text = serde_json::to_vec(&ours)
                    .map_err(|error| Error::io(PLAN_FILE, error.into()))?;
                std::fs::write(&path, text).map_err(failed(&path))
            }
            Err(error) => Err(failed(&path)(error)),
        }
    }

    /// Binds every port once, so that a taken one is named before anything starts.
    fn check_ports(&self) -> Result<(), Error> {
        for node in &self.nodes {
            let ports = [("clients", node.client), ("peers", node.peer), ("HTTP", node.http)];
            for (what, address) in ports {
                if let Err(error) = TcpListener::bind(address) {
                    let taken = error.kind() == io::ErrorKind::AddrInUse;
                    let code = if taken { exit::ADDRESS_IN_USE } else { exit::ERROR };
                    let why =
                        if taken { "is in use".to_owned() } else { format!("fails: {error}") };
                    return Err(Error::refused(
                        code,
                        format!(
                            "port {} of {} ({what} of node {}) {why}; is another `quorate dev` \
                             running? Stop it, or choose another --base-port",
                            address.port(),
                            address.ip(),
                            node.id
                        ),
                    ));
                }
            }
        }
        Ok(())
    }

    fn endpoints(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.client.to_string()).collect()
    }

    /// Two commands to try next.
    fn next_commands(&self, program: &str) -> [String; 2] {
        let endpoints = self.endpoints().join(",");
        let endpoints = match endpoints == limits::DEFAULT_ENDPOINTS {
            true => String::new(),
            false => format!(" --endpoints {endpoints}"),
        };
        [
            format!(
                "{program}{endpoints} service register web --id web-1 --address 127.0.0.1:8080"
            ),
            format!("{program}{endpoints} endpoint status -w table"),
        ]
    }

    /// What is printed while the nodes start. `pids` are in the order of the nodes.
    fn text(&self, pids: &[u32], printer: Printer) -> String {
        let mut table = Table::new(&["id", "pid", "clients", "peers", "http", "log"]);
        for (node, pid) in self.nodes.iter().zip(pids) {
            let addresses = [node.client, node.peer, node.http].map(|address| address.to_string());
            let log = node.log.display().to_string();
            table.row(
                [node.id.to_string(), pid.to_string()].into_iter().chain(addresses).chain([log]),
            );
        }
        let [first, second] = self.next_commands(&program());
        format!("{}\ntry next:\n  {first}\n  {second}\n", printer.render(&table))
    }

    /// The one line of `-w json`, printed when all nodes that live are ready. A node that ended has
    /// no pid.
    fn json(&self, pids: &[Option<u32>]) -> serde_json::Value {
        let nodes: Vec<serde_json::Value> = self
            .nodes
            .iter()
            .zip(pids)
            .map(|(node, pid)| {
                serde_json::json!({
                    "id": node.id,
                    "pid": pid,
                    "client": node.client,
                    "peer": node.peer,
                    "http": node.http,
                    "data_dir": node.data_dir,
                    "log": node.log,
                })
            })
            .collect();
        serde_json::json!({
            "ready": true,
            "data_dir": self.data_dir,
            "endpoints": self.endpoints(),
            "nodes": nodes,
        })
    }
}

impl Node {
    /// The node's own check of its options, before it is started. The environment does not count:
    /// children do not get it.
    fn check(&self) -> Result<(), Error> {
        let mut command = options::Serve::augment_args(clap::Command::new("quorate dev"))
            .mut_args(|argument| argument.env(clap::builder::Resettable::Reset));
        let matches =
            command.try_get_matches_from_mut(&self.arguments).map_err(Error::CommandLine)?;
        let raw = options::Serve::from_arg_matches(&matches).map_err(Error::CommandLine)?;
        options::Config::check(raw, &options::File::default())?;
        Ok(())
    }

    /// The command that starts the node by hand, for a shell.
    fn command_line(&self) -> String {
        let words = self.arguments.iter().map(|word| quoted(&word.to_string_lossy()));
        std::iter::once(quoted(&program())).chain(words).collect::<Vec<_>>().join(" ")
    }

    /// The end of its log.
    fn last_lines(&self, count: usize) -> String {
        const READ: u64 = 16 * 1024;
        let tail = || -> io::Result<String> {
            use std::io::Seek as _;
            let mut file = std::fs::File::open(&self.log)?;
            let length = file.metadata()?.len();
            file.seek(io::SeekFrom::Start(length.saturating_sub(READ)))?;
            let mut bytes = Vec::new();
            file.take(READ).read_to_end(&mut bytes)?;
            let text = String::from_utf8_lossy(&bytes);
            let lines: Vec<&str> = text.lines().collect();
            Ok(lines[lines.len().saturating_sub(count)..].join("\n"))
        };
        tail().unwrap_or_else(|error| format!("{}: {error}", self.log.display()))
    }
}

fn default_directory(base_port: u16) -> Result<PathBuf, Error> {
    let given = |variable: &str| {
        std::env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from)
    };
    given("XDG_DATA_HOME")
        .filter(|path| path.is_absolute())
        .or_else(|| given("HOME").map(|home| home.join(".local/share")))
        .map(|data| data.join("quorate").join(format!("dev-{base_port}")))
        .ok_or_else(|| {
            Error::usage("--data-dir is missing; neither XDG_DATA_HOME nor HOME is set".to_owned())
        })
}

/// How the user called this program: by name through PATH, else the path of the file.
fn program() -> String {
    let called = std::env::args_os().next().unwrap_or_default();
    let by_name = Path::new(&called).components().count() == 1;
    match std::env::current_exe() {
        Ok(path) if !by_name => path.display().to_string(),
        Ok(_) | Err(_) => called.to_string_lossy().into_owned(),
    }
}

/// A word for a POSIX shell.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use clap::Parser as _;

    use super::*;
    use crate::options::Output;

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        dev: Args,
    }

    fn args(line: &[&str]) -> Args {
        Line::try_parse_from(std::iter::once(&"dev").chain(line)).unwrap().dev
    }

    fn ports(plan: &Plan) -> Vec<(u16, u16, u16)> {
        plan.nodes.iter().map(|n| (n.client.port(), n.peer.port(), n.http.port())).collect()
    }

    #[test]
    fn each_node_has_three_ports_from_its_base_on() {
        let plan = Plan::new(&args(&["--data-dir", "/d"])).unwrap();
        assert_eq!(ports(&plan), [(7650, 7651, 7652), (7660, 7661, 7662), (7670, 7671, 7672)]);
        assert_eq!(plan.endpoints().join(","), limits::DEFAULT_ENDPOINTS);
        let plan = Plan::new(&args(&["--data-dir", "/d", "--nodes", "1", "--base-port", "65533"]))
            .unwrap();
        assert_eq!(ports(&plan), [(65533, 65534, 65535)]);
        let last = args(&["--data-dir", "/d", "--nodes", "5", "--base-port", "65494"]);
        let error = Plan::new(&last).unwrap_err();
        assert_eq!(error.code(), exit::USAGE);
        assert!(error.to_string().contains("the last port would be 65536"), "{error}");
        assert!(Line::try_parse_from(["dev", "--nodes", "2"]).is_err());
        assert!(Line::try_parse_from(["dev", "--base-port", "0"]).is_err());
    }

    #[test]
    fn nodes_get_command_lines_that_they_accept() {
        let plan = Plan::new(&args(&["--data-dir", "/with space", "--", "--heartbeat-ms", "50"]));
        let plan = plan.unwrap();
        let line = plan.nodes[1].command_line();
        let expected = "serve --id 2 --data-dir '/with space/node-2' --listen-client 127.0.0.1:7660 \
                        --listen-peer 127.0.0.1:7661 --listen-http 127.0.0.1:7662 --initial-cluster \
                        1=127.0.0.1:7651,2=127.0.0.1:7661,3=127.0.0.1:7671 --heartbeat-ms 50 \
                        --health-check-allow 127.0.0.0/8,::1";
        assert!(line.ends_with(expected), "{line}");
        for node in &plan.nodes {
            node.check().unwrap();
        }
        let said = ["--data-dir", "/d", "--", "--health-check-allow=10.0.0.0/8"];
        let line = Plan::new(&args(&said)).unwrap().nodes[0].command_line();
        assert_eq!(line.matches("--health-check-allow").count(), 1, "{line}");
        let wrong = Plan::new(&args(&["--data-dir", "/d", "--", "--heartbeat-ms", "500"])).unwrap();
        let error = wrong.nodes[0].check().unwrap_err();
        assert!(error.to_string().contains("--heartbeat-ms 500"), "{error}");
        assert_eq!(error.code(), exit::USAGE);
        let unknown = Plan::new(&args(&["--data-dir", "/d", "--", "--no-such"])).unwrap();
        assert_eq!(unknown.nodes[0].check().unwrap_err().code(), exit::USAGE);
    }

    #[test]
    fn a_taken_port_is_named() {
        // The port below it may be somebody else's, who is named first then.
        let (port, error) = (0..100)
            .find_map(|_| {
                let taken = TcpListener::bind("127.0.0.1:0").unwrap();
                let port = taken.local_addr().unwrap().port();
                let base = (port - 1).to_string();
                let line = ["--data-dir", "/d", "--nodes", "1", "--base-port", &base];
                let error = Plan::new(&args(&line)).unwrap().check_ports().unwrap_err();
                (!error.to_string().contains("clients of node 1")).then_some((port, error))
            })
            .unwrap();
        assert_eq!(error.code(), exit::ADDRESS_IN_USE);
        let expected = format!("port {port} of 127.0.0.1 (peers of node 1) is in use");
        assert!(error.to_string().starts_with(&expected), "{error}");
    }

    #[test]
    fn a_directory_belongs_to_one_cluster() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deep/er");
        let check = |line: &[&str]| {
            let args = args(&[&["--data-dir", path.to_str().unwrap()], line].concat());
            Plan::new(&args).unwrap().check_directory(&args)
        };
        check(&[]).unwrap();
        check(&[]).unwrap();
        let error = check(&["--nodes", "5"]).unwrap_err();
        assert_eq!(error.code(), exit::DATA_DIRECTORY);
        assert!(error.to_string().contains("use --nodes 3 --base-port 7650"), "{error}");
        std::fs::write(path.join(PLAN_FILE), "{").unwrap();
        assert_eq!(check(&[]).unwrap_err().code(), exit::DATA_DIRECTORY);
    }

    #[test]
    fn what_is_told() {
        let plan = Plan::new(&args(&["--data-dir", "/d", "--nodes", "1"])).unwrap();
        let text = plan.text(&[17], Printer::new(Output::Simple));
        let expected = "\
ID   PID   CLIENTS          PEERS            HTTP             LOG
1    17    127.0.0.1:7650   127.0.0.1:7651   127.0.0.1:7652   /d/node-1.log

try next:
";
        assert!(text.starts_with(expected), "{text}");
        assert!(text.contains(" --endpoints 127.0.0.1:7650 service register web"), "{text}");
        let json = plan.json(&[Some(17)]).to_string();
        let expected = r#"{"data_dir":"/d","endpoints":["127.0.0.1:7650"],"nodes":[{"client":"127.0.0.1:7650","data_dir":"/d/node-1","http":"127.0.0.1:7652","id":1,"log":"/d/node-1.log","peer":"127.0.0.1:7651","pid":17}],"ready":true}"#;
        assert_eq!(json, expected);
        let three = Plan::new(&args(&["--data-dir", "/d"])).unwrap();
        assert_eq!(three.next_commands("quorate")[1], "quorate endpoint status -w table");
    }

    #[test]
    fn the_end_of_a_log() {
        let directory = tempfile::tempdir().unwrap();
        let line = ["--data-dir", directory.path().to_str().unwrap(), "--nodes", "1"];
        let plan = Plan::new(&args(&line)).unwrap();
        assert!(plan.nodes[0].last_lines(2).contains("node-1.log: "));
        std::fs::write(&plan.nodes[0].log, "a\nb\nc\n").unwrap();
        assert_eq!(plan.nodes[0].last_lines(2), "b\nc");
        assert_eq!(plan.nodes[0].last_lines(9), "a\nb\nc");
    }

    #[test]
    fn words_for_a_shell() {
        assert_eq!(quoted("--a=b,c:1"), "--a=b,c:1");
        assert_eq!(quoted("it's"), r"'it'\''s'");
        assert_eq!(quoted(""), "''");
    }
}
