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

/// What Rust prints, and how the node logs it.
fn tells(line: &str) -> bool {
    line.contains("panicked at") || line.contains("panic;")
}
