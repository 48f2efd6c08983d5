//! What nodes say in their logs that no node should say.

use std::fs;
use std::io;
use std::path::Path;

use crate::check::health::Lines;

/// Lines that are kept of each log.
const LINES: usize = 20;

/// Logs that tell of a panic, each with the lines that do.
pub fn panics(dir: &Path) -> io::Result<Vec<(String, Lines)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if !name.starts_with("node-") || !name.ends_with(".log") {
            continue;
        }
        let text = String::from_utf8_lossy(&fs::read(dir.join(&name))?).into_owned();
        let lines: Lines = text.lines().filter(|line| tells(line)).map(str::to_owned).collect();
        if !lines.is_empty() {
            found.push((name, lines.into_iter().take(LINES).collect()));
        }
    }
    found.sort();
    Ok(found)
}

/// What Rust prints, and how the node logs it. Who was asked to panic may.
fn tells(line: &str) -> bool {
    let panics = line.contains("panicked at") || line.contains("panic;");
    panics && !line.contains("failpoint ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_asked_to_panic_may() {
        assert!(tells("thread 'main' panicked at src/main.rs:1:1:"));
        assert!(tells("ERROR panic; the process aborts panic=\"index 3\" at=\"src/a.rs:1\""));
        assert!(!tells("ERROR panic; the process aborts panic=\"failpoint apply\" at=\"x\""));
        assert!(!tells("WARN failpoint apply is hit: Panic"));
    }
}
