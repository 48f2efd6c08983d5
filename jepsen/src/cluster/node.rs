//! One process of `quorate serve`, running or not.

use std::fs::{self, OpenOptions};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process};

/// What a node is started with.
#[derive(Debug, Clone)]
pub struct Setup {
    pub id: u64,
    /// Where it listens.
    pub client: SocketAddr,
    pub peer: SocketAddr,
    pub http: SocketAddr,
    /// Where its peers find it: its proxy.
    pub advertised: SocketAddr,
    pub data: PathBuf,
    pub log: PathBuf,
    /// Options besides these.
    pub options: Vec<String>,
}

#[derive(Debug)]
pub struct Node {
    pub setup: Setup,
    child: Option<Child>,
}

impl Node {
    pub fn new(setup: Setup) -> Node {
        Node { setup, child: None }
    }

    pub fn id(&self) -> u64 {
        self.setup.id
    }

    /// None when it does not run.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Starts the process; its log goes on where it was.
    pub fn spawn(&mut self, binary: &Path) -> io::Result<u32> {
        if let Some(pid) = self.pid() {
            return Ok(pid);
        }
        let Setup { id, client, peer, http, advertised, data, log, options } = &self.setup;
        let log = OpenOptions::new().create(true).append(true).open(log)?;
        let mut command = Command::new(binary);
        for (variable, _) in std::env::vars_os() {
            if variable.to_string_lossy().starts_with("QUORATE_") {
                command.env_remove(variable);
            }
        }
        command.args(["serve", "--exit-with-parent", "--id"]).arg(id.to_string());
        command.arg("--data-dir").arg(data);
        for (option, address) in [
            ("--listen-client", client),
            ("--listen-peer", peer),
            ("--listen-http", http),
            ("--advertise-peer", advertised),
        ] {
            command.arg(option).arg(address.to_string());
        }
        command.args(options);
        // Only a binary with the feature `failpoints` looks at them.
        command.env("QUORATE_FAULT_CLOCK", self.clock_file());
        command.env("QUORATE_FAILPOINTS", self.failpoint_file());
        // The end of this pipe stops the node should the harness be killed.
        command.stdin(Stdio::piped()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn()?;
        let pid = child.id();
        self.child = Some(child);
        Ok(pid)
    }

    /// Where a binary with the feature `failpoints` reads by how much its wall clock is moved.
    fn clock_file(&self) -> PathBuf {
        self.setup.log.with_extension("clock")
    }

    /// Moves the node's wall clock, also after a start.
    pub fn move_clock(&self, ms: i64) -> io::Result<()> {
        replace(&self.clock_file(), &ms.to_string())
    }

    /// How often the node's log tells of such a jump.
    pub fn clock_notices(&self, ms: i64) -> io::Result<usize> {
        self.told(&format!("the wall clock is moved by {ms} ms"))
    }

    /// Where a binary with the feature `failpoints` reads what is to happen at which place.
    fn failpoint_file(&self) -> PathBuf {
        self.setup.log.with_extension("failpoints")
    }

    /// Says what is to happen from now on, also after a start; nothing: nothing.
    pub fn set_failpoint(&self, text: &str) -> io::Result<()> {
        replace(&self.failpoint_file(), text)
    }

    /// How often the node's log tells that the point was hit.
    pub fn failpoint_hits(&self, point: &str) -> io::Result<usize> {
        self.told(&format!("failpoint {point} is hit"))
    }

    /// How often the node's log says this.
    fn told(&self, notice: &str) -> io::Result<usize> {
        let log = fs::read(&self.setup.log)?;
        Ok(String::from_utf8_lossy(&log).matches(notice).count())
    }

    /// SIGKILL, and the process is gone; how it ended, or None if it did not run.
    pub fn kill(&mut self) -> io::Result<Option<ExitStatus>> {
        let Some(mut child) = self.child.take() else { return Ok(None) };
        child.kill()?;
        child.wait().map(Some)
    }

    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        let pid = self.pid().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        match pid {
            Some(pid) => Ok(kill_process(pid, signal)?),
            None => Err(io::Error::other(format!("node {} does not run", self.id()))),
        }
    }

    /// How the process ended by itself, if it did.
    pub fn exited(&mut self) -> io::Result<Option<ExitStatus>> {
        let Some(child) = &mut self.child else { return Ok(None) };
        let status = child.try_wait()?;
        if status.is_some() {
            self.child = None;
        }
        Ok(status)
    }

    /// The kernel's letter for what the process does: `T` = stopped by a signal.
    pub fn state(&self) -> Option<char> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid()?)).ok()?;
        // The name before it may hold anything but ends with the last bracket.
        stat.rsplit_once(')')?.1.trim_start().chars().next()
    }
}

/// Writes a file of which nobody reads a half.
fn replace(file: &Path, text: &str) -> io::Result<()> {
    let half = file.with_extension("new");
    fs::write(&half, text)?;
    fs::rename(half, file)
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}
