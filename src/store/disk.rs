//! The seam between the store and a file system: everything that the log and the snapshots do to a
//! disk goes through [`Disk`], so that tests and the simulation can lose, tear and damage bytes.
//! Paths are names relative to one directory. All calls block. [`RealDisk`] is the one over files.

use std::fmt::Debug;
use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::OFlags;

/// What direct writes are multiples of, in the file and in memory.
const DIRECT_ALIGN: u64 = 4096;

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
#[allow(clippy::len_without_is_empty, reason = "nobody asks whether a file is empty")]
pub trait File: Send + Sync + Debug {
    fn len(&self) -> io::Result<u64>;
    /// Reads exactly `buf.len()` bytes at `offset`; `UnexpectedEof` when the file ends before.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;
    /// Writes all of `buf` at `offset`, extending the file when needed. Volatile until [`File::sync`].
    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()>;
    /// Writes `len` zeros at `offset`, as [`File::write_at`] would.
    fn fill(&self, offset: u64, len: u64) -> io::Result<()> {
        self.write_at(offset, &vec![0; usize::try_from(len).map_err(io::Error::other)?])
    }
    /// Sets the length; new bytes read as zero.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Makes the bytes and the length durable (fdatasync).
    fn sync(&self) -> io::Result<()>;
}

/// A directory of the file system. It knows nothing of directories below it.
#[derive(Debug)]
pub struct RealDisk {
    path: PathBuf,
    /// Held open for fsync: a directory is synced through a descriptor of itself.
    directory: fs::File,
}

impl RealDisk {
    /// Opens a directory, which is created (and made durable in its parent) when it does not exist.
    pub fn open(path: impl AsRef<Path>) -> io::Result<RealDisk> {
        let path = path.as_ref().to_path_buf();
        match fs::create_dir(&path) {
            Ok(()) => {
                let parent = match path.parent() {
                    Some(parent) if !parent.as_os_str().is_empty() => parent,
                    Some(_) | None => Path::new("."),
                };
                fs::File::open(parent)?.sync_all()?;
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
        let directory = fs::File::open(&path)?;
        if !directory.metadata()?.is_dir() {
            return Err(io::Error::new(
                io::ErrorKind::NotADirectory,
                format!("{} is not a directory", path.display()),
            ));
        }
        Ok(RealDisk { path, directory })
    }

    /// A name is one path component, so that nothing outside the directory can be reached.
    fn at(&self, name: &str) -> io::Result<PathBuf> {
        if name.is_empty() || name == "." || name == ".." || name.contains(['/', '\0']) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{name:?} is not a plain file name"),
            ));
        }
        Ok(self.path.join(name))
    }
}

impl Disk for RealDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            if !entry.file_type()?.is_file() {
                continue;
            }
            // We write no name that is not UTF-8: such a file is not ours.
            if let Ok(name) = entry.file_name().into_string() {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let file = fs::OpenOptions::new().read(true).write(true).open(self.at(name)?)?;
        Ok(Arc::new(RealFile { file }))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let path = self.at(name)?;
        let file = fs::OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
        Ok(Arc::new(RealFile { file }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.at(from)?, self.at(to)?)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.at(name)?)
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.directory.sync_all()
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let figures = rustix::fs::fstatvfs(&self.directory)?;
        Ok(figures.f_bavail.saturating_mul(figures.f_frsize))
    }
}

#[derive(Debug)]
struct RealFile {
    file: fs::File,
}

impl File for RealFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.file.write_all_at(buf, offset)
    }

    /// Past the page cache, where the file system can: nobody reads these zeros, and copying them into
    /// the cache costs more than all other work of preparing a file.
    fn fill(&self, offset: u64, len: u64) -> io::Result<()> {
        let aligned = offset.is_multiple_of(DIRECT_ALIGN) && len.is_multiple_of(DIRECT_ALIGN);
        let length = usize::try_from(len).map_err(io::Error::other)?;
        let zeros = vec![0; length + DIRECT_ALIGN as usize];
        let start = zeros.as_ptr().align_offset(DIRECT_ALIGN as usize).min(DIRECT_ALIGN as usize);
        let zeros = &zeros[start..][..length];
        let flags = rustix::fs::fcntl_getfl(&self.file)?;
        if aligned && rustix::fs::fcntl_setfl(&self.file, flags | OFlags::DIRECT).is_ok() {
            let written = self.file.write_all_at(zeros, offset);
            rustix::fs::fcntl_setfl(&self.file, flags)?;
            match written {
                // Some file systems take the flag and then no write.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {}
                written => return written,
            }
        }
        self.file.write_all_at(zeros, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_real_directory_keeps_what_was_written() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("below");
        let disk = RealDisk::open(&path).unwrap();
        let file = disk.create("a").unwrap();
        file.write_at(4, b"word").unwrap();
        file.sync().unwrap();
        assert_eq!(disk.create("a").unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        disk.rename("a", "b").unwrap();
        disk.create("c").unwrap().set_len(9).unwrap();
        disk.sync_dir().unwrap();
        drop(disk);

        let disk = RealDisk::open(&path).unwrap();
        assert_eq!(disk.list().unwrap(), ["b", "c"]);
        let mut bytes = [1; 8];
        disk.open("b").unwrap().read_at(0, &mut bytes).unwrap();
        assert_eq!(&bytes, b"\0\0\0\0word");
        let beyond = disk.open("b").unwrap().read_at(1, &mut bytes).unwrap_err();
        assert_eq!(beyond.kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(disk.open("c").unwrap().len().unwrap(), 9);
        disk.remove("b").unwrap();
        assert_eq!(disk.open("b").unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(disk.free_bytes().unwrap() > 0);
    }

    #[test]
    fn zeros_are_written_whatever_their_place() {
        let directory = tempfile::tempdir().unwrap();
        let disk = RealDisk::open(directory.path()).unwrap();
        let file = disk.create("a").unwrap();
        file.write_at(0, &[1; 20_000]).unwrap();
        file.fill(4096, 8192).unwrap();
        file.fill(12_300, 3).unwrap();
        file.write_at(4100, b"word").unwrap();
        let mut expected = vec![1; 20_000];
        expected[4096..12_288].fill(0);
        expected[12_300..12_303].fill(0);
        expected[4100..4104].copy_from_slice(b"word");
        let mut bytes = vec![0; 20_000];
        file.read_at(0, &mut bytes).unwrap();
        assert!(bytes == expected);
        assert_eq!(file.len().unwrap(), 20_000);
    }

    #[test]
    fn names_do_not_leave_the_directory() {
        let directory = tempfile::tempdir().unwrap();
        let disk = RealDisk::open(directory.path()).unwrap();
        for name in ["", ".", "..", "../x", "a/b", "/etc/passwd"] {
            let error = disk.create(name).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{name:?}");
        }
    }
}
