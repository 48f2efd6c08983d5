//! The processes of `quorate dev`: started with a pipe on their standard input (its end tells them
//! that dev is gone), watched, and stopped by SIGTERM. One event at a time changes what is known of
//! them.

use std::fs::OpenOptions;
use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::super::Error;
use super::super::output::{self, Printer};
use super::{Node, Plan};
use crate::limits;
use crate::options::exit;

/// How often a node is asked whether it is ready, and how long it may take to answer.
const READY_INTERVAL: Duration = Duration::from_millis(100);
const READY_TIMEOUT: Duration = Duration::from_secs(2);
/// How long `--restart` waits before it starts a node again: doubled each time it ends before it was
/// ready.
const RESTART_DELAY: Duration = Duration::from_millis(500);
const RESTART_DELAY_MAX: Duration = Duration::from_secs(30);
/// Lines shown of the log of a node that ended.
const LAST_LINES: usize = 8;

/// What happens to the node at an index of the plan.
enum Event {
    Ended(usize, io::Result<ExitStatus>),
    Ready(usize),
    Restart(usize),
}

/// What is known of one node.
struct Running {
    /// None once it ended: its number may be another process's by then.
    pid: Option<u32>,
    ready: bool,
    restart_delay: Duration,
}

struct Children<'a> {
    plan: &'a Plan,
    restart: bool,
    printer: Printer,
    running: Vec<Running>,
    events: JoinSet<Event>,
    announced: bool,
}

/// Starts every node of the plan, says when they are ready, and returns after all were stopped.
pub async fn run(plan: &Plan, restart: bool, printer: Printer) -> Result<(), Error> {
    let mut terminate = signal(SignalKind::terminate()).map_err(|e| Error::io("signals", e))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|e| Error::io("signals", e))?;
    let mut hang_up = signal(SignalKind::hangup()).map_err(|e| Error::io("signals", e))?;
    let mut children = Children {
        plan,
        restart,
        printer,
        running: Vec::new(),
        events: JoinSet::new(),
        announced: false,
    };
    for index in 0..plan.nodes.len() {
        children.running.push(Running { pid: None, ready: false, restart_delay: RESTART_DELAY });
        children.start(index)?;
    }
    if !printer.is_json() {
        let pids: Vec<u32> = children.running.iter().filter_map(|running| running.pid).collect();
        children.tell(output::line(&plan.text(&pids, printer)))?;
    }
    loop {
        tokio::select! {
            biased;
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hang_up.recv() => break,
            event = children.event() => children.apply(event)?,
        }
    }
    let again = async {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
    };
    children.stop(again).await;
    Ok(())
}

impl Children<'_> {
    async fn event(&mut self) -> Event {
        match self.events.join_next().await {
            Some(Ok(event)) => event,
            // Tasks are only aborted together with dev, and do not panic.
            Some(Err(_)) | None => pending().await,
        }
    }

    fn apply(&mut self, event: Event) -> Result<(), Error> {
        match event {
            Event::Ready(index) => {
                let running = &mut self.running[index];
                running.restart_delay = RESTART_DELAY;
                running.ready = true;
                let id = self.plan.nodes[index].id;
                match running.pid {
                    Some(_) if self.announced => output::note(&format!("node {id} is ready again")),
                    Some(_) => {}
                    None => output::note(&format!(
                        "node {id} answers again; it was started by hand and is yours to stop"
                    )),
                }
            }
            Event::Ended(index, status) => self.ended(index, status)?,
            Event::Restart(index) => self.start(index)?,
        }
        self.announce()
    }

    /// Says `ready` once, when every node that lives is.
    fn announce(&mut self) -> Result<(), Error> {
        let mut living = self.running.iter().filter(|running| running.pid.is_some()).peekable();
        if self.announced || living.peek().is_none() || !living.all(|running| running.ready) {
            return Ok(());
        }
        self.announced = true;
        let pids: Vec<Option<u32>> = self.running.iter().map(|running| running.pid).collect();
        self.tell(match self.printer.is_json() {
            true => self.printer.json(&self.plan.json(&pids)),
            false => output::line("ready"),
        })
    }

    /// The nodes go on when nobody reads what is told about them.
    fn tell(&self, written: Result<(), Error>) -> Result<(), Error> {
        match written {
            Err(Error::Closed) => Ok(()),
            other => other,
        }
    }

    fn start(&mut self, index: usize) -> Result<(), Error> {
        let node = &self.plan.nodes[index];
        let mut child = spawn(node)?;
        let running = &mut self.running[index];
        running.pid = child.id();
        running.ready = false;
        self.events.spawn(async move {
            // Held until the process ends: closing it would end the process.
            let _stdin = child.stdin.take();
            Event::Ended(index, child.wait().await)
        });
        self.watch_ready(index);
        Ok(())
    }

    fn watch_ready(&mut self, index: usize) {
        let http = self.plan.nodes[index].http;
        self.events.spawn(async move {
            until_ready(http).await;
            Event::Ready(index)
        });
    }

    fn ended(&mut self, index: usize, status: io::Result<ExitStatus>) -> Result<(), Error> {
        let node = &self.plan.nodes[index];
        let running = &mut self.running[index];
        let pid = running.pid.take().unwrap_or_default();
        let was_ready = std::mem::take(&mut running.ready);
        let how = status.map_or_else(|error| error.to_string(), |status| status.to_string());
        let lines = node.last_lines(LAST_LINES).replace('\n', "\n  ");
        let mut told = format!(
            "node {} (pid {pid}) ended: {how}; the end of {}:\n  {lines}",
            node.id,
            node.log.display()
        );
        if self.restart {
            let delay = running.restart_delay;
            running.restart_delay = (delay * 2).min(RESTART_DELAY_MAX);
            self.events.spawn(async move {
                sleep(delay).await;
                Event::Restart(index)
            });
            told += &format!("\nit is started again in {}", output::duration(delay));
            output::note(&told);
            return Ok(());
        }
        if self.running.iter().all(|running| running.pid.is_none()) {
            output::note(&told);
            return Err(Error::refused(
                exit::ERROR,
                "no node is left; the data is kept: `quorate dev` starts them again".to_owned(),
            ));
        }
        told += &format!("\nthe others go on; to start it again:\n  {}", node.command_line());
        output::note(&told);
        // One watch is enough; that of a node that ended before it was ready still runs.
        if was_ready {
            self.watch_ready(index);
        }
        Ok(())
    }

    /// SIGTERM to all, SIGKILL to those that stay, at once when it is asked for again.
    async fn stop(mut self, again: impl Future<Output = ()>) {
        output::note("stopping");
        self.signal(Signal::TERM);
        let patience = async {
            tokio::select! { () = sleep(limits::DEV_STOP) => {}, () = again => {} }
        };
        tokio::pin!(patience);
        let mut killed = false;
        while self.running.iter().any(|running| running.pid.is_some()) {
            tokio::select! {
                biased;
                event = self.event() => if let Event::Ended(index, _) = event {
                    self.running[index].pid = None;
                },
                () = &mut patience, if !killed => {
                    killed = true;
                    output::note("some nodes did not stop in time and are killed");
                    self.signal(Signal::KILL);
                }
            }
        }
    }

    fn signal(&self, signal: Signal) {
        for running in &self.running {
            let pid = running.pid.and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
            if let Some(pid) = pid {
                // It has just ended by itself when this fails; its event is under way.
                let _ = kill_process(pid, signal);
            }
        }
    }
}

fn spawn(node: &Node) -> Result<Child, Error> {
    let failed = |error| Error::io(node.log.display(), error);
    let log = OpenOptions::new().create(true).append(true).open(&node.log).map_err(failed)?;
    let program = std::env::current_exe().map_err(|error| Error::io("own program", error))?;
    let mut command = Command::new(program);
    command
        .args(&node.arguments)
        .arg("--exit-with-parent")
        .stdin(Stdio::piped())
        .stdout(log.try_clone().map_err(failed)?)
        .stderr(log)
        // Ctrl-C in the terminal reaches dev alone, which stops the nodes in its own way.
        .process_group(0);
    // Options of the surroundings are dev's, not those of each node.
    for (variable, _) in std::env::vars_os() {
        if variable.to_string_lossy().starts_with("QUORATE_") {
            command.env_remove(variable);
        }
    }
    command.spawn().map_err(|error| Error::io(format!("node {}", node.id), error))
}

/// Asks until `/readyz` says yes.
async fn until_ready(http: SocketAddr) {
    while !matches!(timeout(READY_TIMEOUT, is_ready(http)).await, Ok(Ok(true))) {
        sleep(READY_INTERVAL).await;
    }
}

/// HTTP/1.1 by hand: the answer's first line is all that counts.
async fn is_ready(http: SocketAddr) -> io::Result<bool> {
    let mut stream = TcpStream::connect(http).await?;
    let request = format!("GET /readyz HTTP/1.1\r\nHost: {http}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut status = [0; "HTTP/1.1 200".len()];
    stream.read_exact(&mut status).await?;
    Ok(status.starts_with(b"HTTP/1.") && status.ends_with(b" 200"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[tokio::test]
    async fn ready_is_an_answer_of_200() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = async move {
            for answer in
                ["HTTP/1.1 503 Service Unavailable\r\n\r\n", "", "HTTP/1.1 200 OK\r\n\r\n"]
            {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = [0; 256];
                let read = stream.read(&mut request).await.unwrap();
                assert!(request[..read].starts_with(b"GET /readyz HTTP/1.1\r\nHost: 127.0.0.1:"));
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
            drop(listener);
        };
        let client = async {
            assert!(!is_ready(address).await.unwrap());
            assert!(is_ready(address).await.is_err());
            until_ready(address).await;
        };
        tokio::join!(server, client);
        assert!(is_ready(address).await.is_err(), "nobody listens any more");
    }
}
