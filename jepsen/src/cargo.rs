//! Compiles what is tested: here, or elsewhere with a target directory of its own.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

#[derive(Debug, Clone, Default)]
pub struct Cargo {
    /// Root of the sources and target directory, when they are not those of the environment.
    place: Option<(PathBuf, PathBuf)>,
}

impl Cargo {
    /// In the working directory.
    pub fn here() -> Cargo {
        Cargo::default()
    }

    pub fn at(tree: &Path, target: &Path) -> Cargo {
        Cargo { place: Some((tree.to_owned(), target.to_owned())) }
    }

    /// Compiles one target of tests and says where its binary is.
    pub fn test_binary(&self, target: &[&str], profile: &str) -> Result<PathBuf, String> {
        let mut command = self.command();
        command.args(["test", "--no-run", "--profile", profile]).args(target);
        executable(&self.build(command)?, true).ok_or_else(|| format!("{target:?} has no binary"))
    }

    /// Compiles the binary of the node and says where it is.
    pub fn node_binary(&self) -> Result<PathBuf, String> {
        let mut command = self.command();
        command.args(["build", "--bin", "quorate"]);
        executable(&self.build(command)?, false).ok_or_else(|| "no binary of a node".to_owned())
    }

    fn command(&self) -> Command {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
        let mut command = Command::new(cargo);
        // What `cargo run` says of this package would have others built anew whose build scripts look at it.
        let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
        let of_package = |name: &String| {
            ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|prefix| name.starts_with(prefix))
        };
        for name in names.filter(of_package) {
            command.env_remove(name);
        }
        if let Some((tree, target)) = &self.place {
            command.current_dir(tree).env("CARGO_TARGET_DIR", target);
            // Nobody debugs it, and it is compiled again and again.
            command.env("CARGO_PROFILE_DEV_DEBUG", "false");
        }
        command
    }

    /// What cargo says of what it has built.
    fn build(&self, mut command: Command) -> Result<String, String> {
        let built = command
            .args(["--package", "quorate", "--locked"])
            .arg("--message-format=json-render-diagnostics")
            .stderr(Stdio::inherit())
            .output()
            .map_err(|error| format!("cargo: {error}"))?;
        if !built.status.success() {
            return Err(format!("it does not compile: {}", built.status));
        }
        Ok(String::from_utf8_lossy(&built.stdout).into_owned())
    }
}

/// The binary that cargo's messages name: the one of tests, or the other.
fn executable(messages: &str, of_tests: bool) -> Option<PathBuf> {
    messages.lines().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let wanted = message["profile"]["test"] == of_tests;
        message["executable"].as_str().filter(|_| wanted).map(PathBuf::from)
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn binaries_are_found_among_cargos_messages() {
        let artifact = |test: bool, executable: Option<&str>| {
            serde_json::json!({
                "reason": "compiler-artifact",
                "profile": { "test": test },
                "executable": executable,
            })
            .to_string()
        };
        let messages = [
            artifact(false, None),
            artifact(false, Some("/a")),
            "no JSON".to_owned(),
            artifact(true, Some("/b")),
        ];
        assert_eq!(executable(&messages.join("\n"), true), Some(PathBuf::from("/b")));
        assert_eq!(executable(&messages.join("\n"), false), Some(PathBuf::from("/a")));
        assert_eq!(executable(&messages[..3].join("\n"), true), None);
    }
}
