//! The whole of it, as its README runs it, but for a shorter time.

use std::path::Path;
use std::process::Command;

#[test]
fn no_money_is_made_or_lost_whatever_is_killed() {
    let transfer = Path::new(env!("CARGO_BIN_EXE_transfer"));
    let quorate = transfer.with_file_name("quorate");
    assert!(quorate.exists(), "run it with `cargo test --workspace`, which builds {quorate:?} too");
    let told = Command::new(transfer).args(["--seconds", "12", "--every", "800"]).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&told.stdout), String::from_utf8_lossy(&told.stderr));
    assert!(told.status.success(), "{out}\n{err}");
    for line in ["all of it agrees", "kill -9 of bank-north", "which leads", "kill -9 of client"] {
        assert!(out.contains(line), "{line:?} is missing:\n{out}\n{err}");
    }
}
