//! Why a lock needs a fencing token. Start a cluster with `quorate dev`, then
//! `cargo run --example fencing`.
//!
//! A lock that outlives its holder's process would block everybody; so it hangs on a session, which ends
//! when nobody keeps it alive. But a process that was stopped for a while (a long garbage collection, a
//! suspended virtual machine) goes on where it was, and believes that it still holds the lock. No check that
//! it makes itself closes that gap: it may be stopped right after the check. Only what the lock protects can
//! turn it away, by the token that each holder shows.

use std::error::Error;

use quorate::client::txn::{Txn, counter};
use quorate::client::{Client, Options, SessionOptions};
use quorate::limits::DEFAULT_ENDPOINTS;

/// A store outside of the cluster that remembers the greatest token it was shown.
#[derive(Default)]
struct Store {
    seen: u64,
    content: String,
}

impl Store {
    fn write(&mut self, token: u64, content: &str) -> Result<(), String> {
        if token < self.seen {
            return Err(format!("token {token} is out of date, {} was seen", self.seen));
        }
        self.seen = token;
        content.clone_into(&mut self.content);
        Ok(())
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let client = Client::connect(Options::new(DEFAULT_ENDPOINTS.split(',')))?;
    let mut store = Store::default();
    let deploys = counter("default", "fencing_example_deploys_total");

    let first = client.session(SessionOptions::default()).await?;
    let guard = client.lock("default", "fencing-example").acquire(&first).await?;
    println!("the first holder has token {}", guard.token());
    store.write(guard.token(), "from the first")?;
    // What the first holder will still believe when it wakes.
    let (condition, token) = (guard.condition(), guard.token());

    // The first holder stops for longer than its session lives. (Here somebody closes its session, so that
    // the example need not wait.)
    client.close_session(first.id()).await?;

    let second = client.session(SessionOptions::default()).await?;
    let next = client.lock("default", "fencing-example").acquire(&second).await?;
    println!("the second holder has token {}", next.token());
    store.write(next.token(), "from the second")?;

    // The first one wakes and finishes what it was about to do: it is turned away, outside...
    let refused = store.write(token, "from the past").expect_err("the token is old");
    println!("the store refuses the first holder: {refused}");
    // ... and inside of the cluster, where the token is a condition of the same transaction.
    let late = Txn::new().when(condition).then(deploys.add(1)).commit(&client, None).await?;
    println!("the transaction of the first holder took place: {}", late.succeeded);
    let own = Txn::new().when(next.condition()).then(deploys.add(1)).commit(&client, None).await?;
    println!("the transaction of the second holder took place: {}", own.succeeded);
    println!("the store has what came {}", store.content);

    next.release().await?;
    second.close().await?;
    Ok(())
}
