//! `quorate completion` and `quorate version`: what the program knows about itself.

use clap::CommandFactory as _;
use clap_complete::Shell;
use serde_json::json;

use super::{Context, Error, Line, output};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[arg(value_parser = ["bash", "zsh", "fish"])]
    shell: String,
}

impl Args {
    pub fn run(self) -> Result<(), Error> {
        let shell = match self.shell.as_str() {
            "bash" => Shell::Bash,
            "zsh" => Shell::Zsh,
            _ => Shell::Fish,
        };
        output::line(&script(shell))
    }
}

fn script(shell: Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Line::command(), "quorate", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

pub fn version(context: &Context) -> Result<(), Error> {
    const VERSION: &str = env!("CARGO_PKG_VERSION");
    let value = json!({"version": VERSION, "api": "quorate.v1"});
    context.printer().answer(&value, || format!("quorate {VERSION}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_know_the_commands() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let script = script(shell);
            for word in ["move-leader", "deregister", "restore", "initial-cluster"] {
                assert!(script.contains(word), "{shell}: {word}");
            }
        }
    }
}
