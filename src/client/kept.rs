//! Files that hold what a client knew last: replaced as a whole, and not believed when they are damaged.
//!
//! A file is 8 bytes of magic, the length and the checksum of what follows (8 and 16 bytes, little
//! endian), and a payload. Its name is the hash of the names of what it holds.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::xxh3_128;

const HEAD: usize = 8 + 8 + 16;

/// Where what has these names is kept. No name holds a line break.
pub fn path(directory: &Path, names: &[&str], extension: &str) -> PathBuf {
    let hash = xxh3_128(names.join("\n").as_bytes());
    directory.join(format!("{hash:032x}.{extension}"))
}

pub fn checksum(payload: &[u8]) -> u128 {
    xxh3_128(payload)
}

/// Replaces the file. It is on disk only after [`sync_directory`].
pub fn write(path: &Path, magic: &[u8; 8], payload: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
    let mut file = create(&temporary)?;
    file.write_all(magic)?;
    file.write_all(&(payload.len() as u64).to_le_bytes())?;
    file.write_all(&checksum(payload).to_le_bytes())?;
    file.write_all(payload)?;
    file.sync_all()?;
    fs::rename(&temporary, path)
}

/// The payload; an error when the file is not exactly what was written.
pub fn read(path: &Path, magic: &[u8; 8], longest: usize) -> io::Result<Vec<u8>> {
    let damaged = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
    let mut bytes = Vec::new();
    let most = (HEAD + longest) as u64;
    File::open(path)?.take(most + 1).read_to_end(&mut bytes)?;
    let Some((head, payload)) = bytes.split_at_checked(HEAD) else {
        return Err(damaged("it is too short"));
    };
    let (found, rest) = head.split_at(magic.len());
    let (length, sum) = rest.split_at(8);
    if found != magic {
        return Err(damaged("it is of another kind"));
    }
    if length != (payload.len() as u64).to_le_bytes() {
        return Err(damaged("its length is not what it says"));
    }
    if sum != checksum(payload).to_le_bytes() {
        return Err(damaged("its checksum is wrong"));
    }
    Ok(bytes.split_off(HEAD))
}

/// For nobody else to read: configuration may hold secrets.
#[cfg(unix)]
fn create(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)
}

#[cfg(not(unix))]
fn create(path: &Path) -> io::Result<File> {
    File::create(path)
}

#[cfg(unix)]
pub fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Elsewhere a directory cannot be opened, and a rename is on disk by itself.
#[cfg(not(unix))]
pub fn sync_directory(_: &Path) -> io::Result<()> {
    Ok(())
}
