//! The data directory: whose it is, and that only one process uses it.
//!
//! ```text
//! identity     JSON: format version, cluster id, node id, store id, when it was made
//! lock         held exclusively while a node runs
//! peers        store ids of the other members, see `peers`
//! log/         the log
//! image/       the image (sled); image.damaged-<n>/ what was set aside
//! snapshots/   snapshot files
//! rebuild      only while the state must come from another member, see `rebuild`
//! ```
//!
//! A directory that is not certainly this node's is refused. A node that started with somebody else's
//! log, or without its own, could vote twice.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::peers::{self, FilePeers};
use super::rebuild::{self, Mark};
use super::sled_image::sync_dir;
use crate::limits::CLUSTER_ID_BYTES;

/// Format version of the data directory that this release writes, and the newest one it reads.
pub const FORMAT_VERSION: u32 = 1;
const IDENTITY: &str = "identity";
const LOCK: &str = "lock";

/// 128 random bits, made with the data directory: tells a wiped node from the one it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StoreId(pub u128);

impl fmt::Display for StoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl FromStr for StoreId {
    type Err = NotAStoreId;

    fn from_str(text: &str) -> Result<StoreId, NotAStoreId> {
        let digits = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let number = digits.then(|| u128::from_str_radix(text, 16).ok()).flatten();
        number.map(StoreId).ok_or_else(|| NotAStoreId(text.to_owned()))
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a store id of 32 hexadecimal digits")]
pub struct NotAStoreId(String);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{path} belongs to cluster {found:?}, this node is to be of {expected:?}", path = path.display())]
    ForeignCluster { path: PathBuf, found: String, expected: String },
    #[error("{path} belongs to node {found}, this is to be node {expected}", path = path.display())]
    OtherNode { path: PathBuf, found: u64, expected: u64 },
    #[error(
        "{path} has format version {found}, this release reads up to {FORMAT_VERSION}: \
         start the release that wrote it",
        path = path.display()
    )]
    NewerFormat { path: PathBuf, found: u32 },
    #[error(
        "{path} holds {found:?} but no identity: it is not a data directory, or has lost its identity; \
         start with an empty directory, as a new member",
        path = path.display()
    )]
    NotOurs { path: PathBuf, found: String },
    #[error("{path} cannot be read as an identity: {why}", path = path.display())]
    BadIdentity { path: PathBuf, why: String },
    #[error("{path} is not a directory", path = path.display())]
    NotADirectory { path: PathBuf },
    #[error("{path} is in use by another process", path = path.display())]
    InUse { path: PathBuf },
    #[error("no permission for {path}: {source}", path = path.display())]
    NoPermission { path: PathBuf, source: io::Error },
    #[error("a cluster id has 1 to {CLUSTER_ID_BYTES} bytes, this one {found}")]
    BadClusterId { found: usize },
    #[error("{path}: {source}", path = path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// What the file says. Fields are only ever added.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    format_version: u32,
    cluster_id: String,
    node_id: u64,
    store_id: String,
    /// Milliseconds since the Unix epoch; for people.
    created_at_ms: u64,
    /// False until the log has been created for the first time; from then on a missing log is one
    /// that was lost.
    log_created: bool,
}

/// An open data directory. Nobody else can open it until this is dropped.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    cluster_id: String,
    node_id: u64,
    store_id: StoreId,
    identity: Identity,
    /// Held, never read: the lock goes when it is closed.
    _lock: File,
}

impl DataDir {
    /// Opens the directory of this very node, or makes an empty or missing one its own. `now_ms` is
    /// the wall clock.
    pub fn open(
        path: impl Into<PathBuf>,
        cluster_id: &str,
        node_id: u64,
        now_ms: u64,
    ) -> Result<DataDir, Error> {
        let path = path.into();
        if cluster_id.is_empty() || cluster_id.len() > CLUSTER_ID_BYTES {
            return Err(Error::BadClusterId { found: cluster_id.len() });
        }
        match fs::metadata(&path) {
            Ok(metadata) if !metadata.is_dir() => return Err(Error::NotADirectory { path }),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                create_dir(&path).map_err(failure(&path))?;
            }
            Err(error) => return Err(failure(&path)(error)),
        }
        // Before anything is written into a directory that may be somebody else's.
        let identity_path = path.join(IDENTITY);
        let found = read_identity(&identity_path)?;
        if found.is_none()
            && let Some(stranger) = stranger(&path)?
        {
            return Err(Error::NotOurs { path, found: stranger });
        }
        let lock = take_lock(&path)?;
        // Again, now that nobody else can be making one.
        let (identity, created) = match read_identity(&identity_path)? {
            Some(identity) => (identity, false),
            None => {
                let identity = Identity {
                    format_version: FORMAT_VERSION,
                    cluster_id: cluster_id.to_owned(),
                    node_id,
                    store_id: StoreId(rand::random()).to_string(),
                    created_at_ms: now_ms,
                    log_created: false,
                };
                (identity, true)
            }
        };
        if identity.cluster_id != cluster_id {
            let (found, expected) = (identity.cluster_id, cluster_id.to_owned());
            return Err(Error::ForeignCluster { path, found, expected });
        }
        if identity.node_id != node_id {
            return Err(Error::OtherNode { path, found: identity.node_id, expected: node_id });
        }
        let store_id = identity.store_id.parse().map_err(|error: NotAStoreId| {
            Error::BadIdentity { path: identity_path.clone(), why: error.to_string() }
        })?;
        for name in ["log", "snapshots"] {
            let part = path.join(name);
            if !part.is_dir() {
                // An identity is written last: a part that is missing beside it was removed.
                if !created {
                    let why = format!("{} is missing", part.display());
                    return Err(Error::BadIdentity { path: identity_path, why });
                }
                fs::create_dir(&part).map_err(failure(&part))?;
            }
        }
        if created {
            sync_dir(&path).map_err(failure(&path))?;
            write_identity(&identity_path, &identity)?;
        }
        let cluster_id = cluster_id.to_owned();
        Ok(DataDir { path, cluster_id, node_id, store_id, identity, _lock: lock })
    }

    /// Notes that the log exists. To be called once it was created, before anything is written to it.
    pub fn seal(&mut self) -> Result<(), Error> {
        if !self.identity.log_created {
            self.identity.log_created = true;
            write_identity(&self.path.join(IDENTITY), &self.identity)?;
        }
        Ok(())
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn cluster_id(&self) -> &str {
        &self.cluster_id
    }

    pub fn node_id(&self) -> u64 {
        self.node_id
    }

    pub fn store_id(&self) -> StoreId {
        self.store_id
    }

    /// True until [`DataDir::seal`]: the node is new and has no log yet, which may be created.
    pub fn is_new(&self) -> bool {
        !self.identity.log_created
    }

    pub fn log(&self) -> PathBuf {
        self.path.join("log")
    }

    pub fn snapshots(&self) -> PathBuf {
        self.path.join("snapshots")
    }

    /// The mark of a node that must take its state from another member. One that cannot be read is an
    /// error: the state may be wrong.
    pub fn rebuild(&self) -> Result<Option<Mark>, Error> {
        rebuild::read(&self.path).map_err(failure(&rebuild::path(&self.path)))
    }

    /// The store ids of the other members.
    pub fn peers(&self) -> Result<FilePeers, Error> {
        let path = peers::path(&self.path);
        FilePeers::open(&path).map_err(failure(&path))
    }
}

fn failure(path: &Path) -> impl Fn(io::Error) -> Error + '_ {
    move |source| {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::PermissionDenied => Error::NoPermission { path, source },
            io::ErrorKind::NotADirectory => Error::NotADirectory { path },
            _ => Error::Io { path, source },
        }
    }
}

/// With all that leads to it, durably.
fn create_dir(path: &Path) -> io::Result<()> {
    let missing: Vec<&Path> = path.ancestors().take_while(|path| !path.exists()).collect();
    fs::create_dir_all(path)?;
    for parent in missing.iter().filter_map(|path| path.parent()) {
        sync_dir(if parent.as_os_str().is_empty() { Path::new(".") } else { parent })?;
    }
    Ok(())
}

fn write_identity(path: &Path, identity: &Identity) -> Result<(), Error> {
    let json =
        serde_json::to_vec_pretty(identity).expect("an identity is made of texts and numbers");
    replace_file(path, &json).map_err(failure(path))
}

fn read_identity(path: &Path) -> Result<Option<Identity>, Error> {
    let bad = |why: String| Error::BadIdentity { path: path.to_owned(), why };
    let text = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        text => text.map_err(failure(path))?,
    };
    // The version first: a later release may have changed everything else.
    let value: serde_json::Value =
        serde_json::from_slice(&text).map_err(|error| bad(error.to_string()))?;
    let version = value.get("format_version").and_then(serde_json::Value::as_u64);
    let version = version.ok_or_else(|| bad("it states no format_version".to_owned()))?;
    if version > u64::from(FORMAT_VERSION) {
        let found = u32::try_from(version).unwrap_or(u32::MAX);
        return Err(Error::NewerFormat { path: path.to_owned(), found });
    }
    serde_json::from_value(value).map(Some).map_err(|error| bad(error.to_string()))
}

/// The cluster that a directory says it belongs to; None when it says nothing, or nothing that can be
/// read: [`DataDir::open`] tells why.
pub fn cluster_of(path: &Path) -> Option<String> {
    read_identity(&path.join(IDENTITY)).ok().flatten().map(|identity| identity.cluster_id)
}

/// Something in the directory that an interrupted first opening does not leave.
fn stranger(path: &Path) -> Result<Option<String>, Error> {
    for entry in fs::read_dir(path).map_err(failure(path))? {
        let entry = entry.map_err(failure(path))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let ours = match name.as_str() {
            LOCK | "identity.tmp" => true,
            // Of a file system's root.
            "lost+found" => true,
            "log" | "snapshots" => {
                let part = entry.path();
                fs::read_dir(&part).map_err(failure(&part))?.next().is_none()
            }
            _ => false,
        };
        if !ours {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

fn take_lock(path: &Path) -> Result<File, Error> {
    let lock_path = path.join(LOCK);
    let lock = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&lock_path)
        .map_err(failure(&lock_path))?;
    match rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(lock),
        Err(error) if error == rustix::io::Errno::WOULDBLOCK => {
            Err(Error::InUse { path: path.to_owned() })
        }
        Err(error) => Err(failure(&lock_path)(error.into())),
    }
}

/// Replaces a small file: after a crash it has the old content or the new one. Durable on return.
pub(super) fn replace_file(path: &Path, content: &[u8]) -> io::Result<()> {
    let tmp = path.with_extension("tmp");
    let mut file = File::create(&tmp)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&tmp, path)?;
    match path.parent() {
        Some(parent) => sync_dir(parent),
        None => Ok(()),
    }
}
