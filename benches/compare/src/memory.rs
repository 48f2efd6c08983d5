//! The machine's memory. A virtual machine may give what is free back to its host, which must find each page again when
//! a program first touches it: a file that grows then costs several times what it costs on a machine that has been
//! in use for a while, where all that no program needs caches files.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::said;

/// A line of a file of the kernel's that says so many kB; 0 when it is not there.
pub fn kib(file: &str, name: &str) -> u64 {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.and_then(|value| value.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
}

/// The memory of the machine as a whole.
pub const MACHINE: &str = "/proc/meminfo";

/// The kernel keeps about so much of all memory free by itself.
const FREE_SHARE: u64 = 32;

/// Puts free memory to use as the cache of a file without blocks, from where the kernel takes it for whoever asks. The
/// file must stay: its cache goes with it.
pub fn fill(file: &Path) -> Result<(), String> {
    let total = kib(MACHINE, "MemTotal");
    let options = File::options().write(true).create(true).truncate(false).open(file);
    options.and_then(|holes| holes.set_len(total << 10)).map_err(said)?;
    let mut holes = File::open(file).map_err(said)?;
    let mut bytes = vec![0; 1 << 20];
    while kib(MACHINE, "MemFree") > total / FREE_SHARE && holes.read(&mut bytes).map_err(said)? > 0
    {
    }
    Ok(())
}
