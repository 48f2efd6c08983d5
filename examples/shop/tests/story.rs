//! The whole shop, as its README runs it, on a cluster of its own.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Processes that end with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // SIGTERM: a killed `dev` would leave its nodes behind.
        if let Some(pid) = rustix::process::Pid::from_raw(self.0.id() as i32) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = self.0.wait();
    }
}

/// Three nodes take 23 ports from the first one on, which are below those of outgoing connections.
fn free_ports() -> u16 {
    let first = 20_000 + (std::process::id() % 400) as u16 * 25;
    (0u16..400)
        .map(|i| first + i * 25 % 10_000)
        .find(|base| (0..23).all(|i| TcpListener::bind(("127.0.0.1", base + i)).is_ok()))
        .expect("there are free ports")
}

#[test]
fn nobody_fails_who_could_have_been_served() {
    let shop = Path::new(env!("CARGO_BIN_EXE_shop"));
    let quorate = shop.with_file_name("quorate");
    assert!(quorate.exists(), "run it with `cargo test --workspace`, which builds {quorate:?} too");
    let data = tempfile::tempdir().unwrap();
    let base = free_ports();
    let dev = Command::new(&quorate)
        .args(["dev", "--base-port", &base.to_string(), "--data-dir"])
        .arg(data.path())
        .stdout(Stdio::null())
        .spawn();
    let _dev = Running(dev.unwrap());
    let endpoints = [0, 10, 20].map(|i| format!("127.0.0.1:{}", base + i)).join(",");
    let since = Instant::now();
    let healthy = || {
        let mut asked = Command::new(&quorate);
        asked.args(["endpoint", "health", "--endpoints", &endpoints]);
        asked.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success()
    };
    while !healthy() {
        assert!(since.elapsed() < Duration::from_secs(60), "the cluster does not start");
        std::thread::sleep(Duration::from_millis(100));
    }
    let told =
        Command::new(shop).args(["--pause", "1", "--endpoints", &endpoints]).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&told.stdout), String::from_utf8_lossy(&told.stderr));
    assert!(told.status.success(), "{out}\n{err}");
    for line in ["from cart-2 to", "to cart-4", "calls that should not have failed    0"] {
        assert!(out.contains(line), "{line:?} is missing:\n{out}\n{err}");
    }
}
