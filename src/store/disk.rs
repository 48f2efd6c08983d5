//! The seam between the store and a file system: everything that the log and the snapshots do to a
//! disk goes through [`Disk`], so that tests and the simulation can lose, tear and damage bytes.
//! Paths are names relative to one directory. All calls block.

use std::fmt::Debug;
use std::io;
use std::sync::Arc;

/// One flat directory of files.
pub trait Disk: Send + Sync + Debug + 'static {
    /// Names of the files in the directory, sorted.
    fn list(&self) -> io::Result<Vec<String>>;
    /// Opens an existing file for reading and writing.
    fn open(&self, name: &str) -> io::Result<Arc<dyn File>>;
    /// Creates an empty file; fails when it exists. Durable only after [`File::sync`] and [`Disk::sync_dir`].
    fn create(&self, name: &str) -> io::Result<Arc<dyn File>>;
    /// Replaces `to` atomically. Durable after [`Disk::sync_dir`].
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Durable after [`Disk::sync_dir`].
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes creations, renames and removals durable.
    fn sync_dir(&self) -> io::Result<()>;
    /// Free bytes that this process may use.
    fn free_bytes(&self) -> io::Result<u64>;
}

/// One open file. Positional, so it may be shared between a writer and readers.
pub trait File: Send + Sync + Debug {
    fn len(&self) -> io::Result<u64>;
    /// Reads exactly `buf.len()` bytes at `offset`; `UnexpectedEof` when the file ends before.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;
    /// Writes all of `buf` at `offset`, extending the file when needed. Volatile until [`File::sync`].
    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()>;
    /// Sets the length; new bytes read as zero.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Makes the bytes and the length durable (fdatasync).
    fn sync(&self) -> io::Result<()>;
}
