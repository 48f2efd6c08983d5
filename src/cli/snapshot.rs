//! `quorate snapshot`: backups.

use std::fs::File;
use std::io::{self, IsTerminal as _, Write};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::output::{self, Table};
use super::{Context, Error};
use crate::client::{Client, DownloadError, SnapshotInfo};
use crate::limits::{RESTORE_REVISION_STEP, RESTORE_REVISION_STEP_RANGE};
use crate::options::{self, Config, Scalar, exit};
use crate::restore::{self, Backup, Target};

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Download a snapshot of the cluster and verify it
    Save { file: PathBuf },
    /// Verify a snapshot file and show what it holds
    Status { file: PathBuf },
    /// Make one node of a new cluster from a snapshot file
    ///
    /// Every node of the new cluster is made from the same file with the same --initial-cluster; then
    /// all are started with `quorate serve` and these options.
    Restore(Restore),
}

#[derive(Debug, clap::Args)]
pub struct Restore {
    file: PathBuf,
    /// Number of this node in the new cluster
    #[arg(long, env = "QUORATE_ID", value_name = "N")]
    id: Option<Scalar>,
    /// Directory to make; it must be absent or empty
    #[arg(long, env = "QUORATE_DATA_DIR", value_name = "DIR")]
    data_dir: Option<Scalar>,
    /// Peer addresses of all nodes of the new cluster: 1=host:port,2=host:port,3=host:port
    #[arg(long, env = "QUORATE_INITIAL_CLUSTER", value_name = "MEMBERS")]
    initial_cluster: Option<Scalar>,
    /// Tells the new cluster apart from one with the same members [default: quorate]
    #[arg(long, env = "QUORATE_CLUSTER_TOKEN", value_name = "TOKEN")]
    cluster_token: Option<Scalar>,
    /// How far its revisions are ahead of the backup's, on all nodes alike; more than the last time when a backup of
    /// the same cluster was restored before
    #[arg(
        long,
        value_name = "N",
        default_value_t = RESTORE_REVISION_STEP,
        value_parser = clap::value_parser!(u64).range(RESTORE_REVISION_STEP_RANGE)
    )]
    bump_revision: u64,
}

impl Command {
    pub async fn run(self, context: &Context) -> Result<(), Error> {
        match self {
            Command::Save { file } => save(&file, context).await,
            Command::Status { file } => {
                let backup = restore::inspect(&file)?;
                context.printer().table(&value(&file, &backup), || table(&backup))
            }
            Command::Restore(args) => args.run(context),
        }
    }
}

async fn save(path: &Path, context: &Context) -> Result<(), Error> {
    let client = context.client()?;
    let mut partial = path.as_os_str().to_owned();
    partial.push(".tmp");
    let partial = PathBuf::from(partial);
    let saved = save_as(&partial, path, &client).await;
    if saved.is_err() {
        // What is left of it is worth nothing.
        let _ = std::fs::remove_file(&partial);
    }
    let backup = saved?;
    context.printer().answer(&value(path, &backup), || {
        format!(
            "{}: {} at revision {}, verified",
            path.display(),
            output::bytes(backup.meta.bytes),
            backup.meta.revision
        )
    })
}

/// Downloads into `partial`, verifies, and gives the file its name.
async fn save_as(partial: &Path, path: &Path, client: &Client) -> Result<Backup, Error> {
    let failed = |error| Error::io(partial.display(), error);
    let mut file = File::create(partial).map_err(failed)?;
    let info = download(&mut file, client).await?;
    file.sync_all().map_err(failed)?;
    let backup = restore::inspect(partial)?;
    if backup.meta.point.index != info.applied_index {
        let why = format!(
            "{}: the file ends at index {}, the node announced {}",
            partial.display(),
            backup.meta.point.index,
            info.applied_index
        );
        return Err(Error::refused(exit::ERROR, why));
    }
    std::fs::rename(partial, path).map_err(|error| Error::io(path.display(), error))?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.unwrap_or(Path::new("."));
    let synced = File::open(parent).and_then(|directory| directory.sync_all());
    synced.map_err(|error| Error::io(parent.display(), error))?;
    Ok(backup)
}

async fn download(file: &mut File, client: &Client) -> Result<SnapshotInfo, Error> {
    let mut progress = Progress { file, received: 0, shown: 0 };
    match client.snapshot_to(&mut progress).await {
        Ok(info) => {
            progress.end();
            Ok(info)
        }
        Err(DownloadError::Call(error)) => Err(error.into()),
        Err(error @ (DownloadError::Write(_) | DownloadError::Cut { .. })) => {
            Err(Error::refused(exit::ERROR, error.to_string()))
        }
    }
}

/// Tells on a terminal how much has arrived.
struct Progress<'a> {
    file: &'a mut File,
    received: u64,
    shown: u64,
}

impl Progress<'_> {
    /// Bytes between two lines.
    const STEP: u64 = 16 * 1024 * 1024;

    fn end(&self) {
        if self.shown > 0 {
            output::note("");
        }
    }
}

impl Write for Progress<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.received += written as u64;
        if self.received >= self.shown + Self::STEP && io::stderr().is_terminal() {
            self.shown = self.received;
            // Nothing is lost when it cannot be shown.
            let _ = write!(io::stderr(), "\rreceived {}  ", output::bytes(self.received));
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

fn value(path: &Path, backup: &Backup) -> Value {
    let members: Vec<Value> = backup
        .members
        .iter()
        .map(|(id, peer_address)| json!({"id": id, "peer_address": peer_address}))
        .collect();
    json!({
        "file": path,
        "bytes": backup.meta.bytes,
        "cluster_id": backup.meta.cluster_id,
        "term": backup.term,
        "applied_index": backup.meta.point.index,
        "revision": backup.meta.revision,
        "clock_ms": backup.meta.now_ms,
        "records": backup.meta.records,
        "digest": format!("{:016x}", backup.meta.digest),
        "members": members,
    })
}

fn table(backup: &Backup) -> Table {
    Table::record([
        ("size", output::bytes(backup.meta.bytes)),
        ("cluster id", backup.meta.cluster_id.clone()),
        ("term", backup.term.to_string()),
        ("applied index", backup.meta.point.index.to_string()),
        ("revision", backup.meta.revision.to_string()),
        ("last change at", output::timestamp(backup.meta.now_ms)),
        ("records", backup.meta.records.to_string()),
        ("digest", format!("{:016x}", backup.meta.digest)),
        ("members", options::members_text(&backup.members)),
    ])
}

impl Restore {
    fn run(self, context: &Context) -> Result<(), Error> {
        let Restore { file, id, data_dir, initial_cluster, cluster_token, bump_revision } = self;
        // The node's own check, so that what is restored here starts with the same options there.
        let raw = options::Serve {
            id,
            data_dir,
            initial_cluster,
            cluster_token,
            ..options::Serve::default()
        };
        let config = Config::check(raw, &context.file)?;
        let Some(cluster_id) = &config.cluster_id else {
            let why =
                "--initial-cluster is missing: a restored node begins a cluster, it joins none";
            return Err(Error::usage(why.to_owned()));
        };
        let target = Target {
            data_dir: &config.data_dir,
            cluster_id,
            node_id: config.id,
            members: &config.initial_members,
            revision_step: bump_revision,
            now_ms: output::now_ms(),
        };
        let meta = restore::restore(&file, &target)?;
        let value = json!({
            "data_dir": config.data_dir,
            "id": config.id,
            "cluster_id": cluster_id,
            "applied_index": meta.point.index,
            "revision": meta.revision,
            "records": meta.records,
        });
        context.printer().answer(&value, || {
            format!(
                "node {} of cluster {cluster_id} is in {}: {} records at revision {}\nwhen every \
                 node of {} is restored from this file, start them all",
                config.id,
                config.data_dir.display(),
                meta.records,
                meta.revision,
                options::members_text(&config.initial_members),
            )
        })
    }
}

impl From<restore::Error> for Error {
    fn from(error: restore::Error) -> Error {
        let code = match &error {
            restore::Error::DataDir(_) | restore::Error::NotEmpty { .. } => exit::DATA_DIRECTORY,
            restore::Error::Snapshot { .. }
            | restore::Error::Log(_)
            | restore::Error::Io { .. } => exit::ERROR,
        };
        Error::refused(code, error.to_string())
    }
}
