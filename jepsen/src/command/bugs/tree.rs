//! The copy of the sources that bugs are planted into: the files that git knows, as they are now.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use quorate_jepsen::bugs::Bug;

#[derive(Debug)]
pub struct Tree {
    root: PathBuf,
}

/// A bug that is planted; it goes when this is dropped.
#[derive(Debug)]
pub struct Planted {
    originals: BTreeMap<PathBuf, String>,
}

impl Tree {
    /// Brings the copy up to date. What has not changed stays untouched, or all would be compiled again.
    pub fn copy(root: &Path) -> Result<Tree, String> {
        let failed = |what: &Path, error: io::Error| format!("{}: {error}", what.display());
        let listed = Command::new("git")
            .args(["ls-files", "-z"])
            .output()
            .map_err(|error| format!("git: {error}"))?;
        if !listed.status.success() {
            return Err(format!("git ls-files: {}", String::from_utf8_lossy(&listed.stderr)));
        }
        let names = String::from_utf8_lossy(&listed.stdout).into_owned();
        for name in names.split('\0').filter(|name| !name.is_empty()) {
            let (from, to) = (Path::new(name), root.join(name));
            let bytes = match fs::read(from) {
                Ok(bytes) => bytes,
                // It was removed, and git was not told yet.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    let _ = fs::remove_file(&to);
                    continue;
                }
                Err(error) => return Err(failed(from, error)),
            };
            if fs::read(&to).is_ok_and(|there| there == bytes) {
                continue;
            }
            let parent = to.parent().unwrap_or(root);
            fs::create_dir_all(parent).map_err(|error| failed(parent, error))?;
            fs::write(&to, bytes).map_err(|error| failed(&to, error))?;
        }
        let root = root.canonicalize().map_err(|error| failed(root, error))?;
        Ok(Tree { root })
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn plant(&self, bug: &Bug) -> Result<Planted, String> {
        let mut planted = Planted { originals: BTreeMap::new() };
        for file in &bug.files {
            let path = self.root.join(&file.path);
            let failed = |error: io::Error| format!("{}: {error}", path.display());
            let original = fs::read_to_string(&path).map_err(failed)?;
            let text = file.apply(&original).map_err(|error| error.to_string())?;
            fs::write(&path, text).map_err(failed)?;
            planted.originals.insert(path, original);
        }
        Ok(planted)
    }
}

impl Drop for Planted {
    fn drop(&mut self) {
        for (path, original) in &self.originals {
            if let Err(error) = fs::write(path, original) {
                eprintln!("{} keeps its bug: {error}", path.display());
            }
        }
    }
}
