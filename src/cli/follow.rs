//! How commands follow a watch: until Ctrl-C, and saying so when no node answers.

use tokio::signal::unix::{SignalKind, signal};
use tokio::time::sleep;

use super::{Context, Error, output};
use crate::client::{Watch, WatchUpdate};

/// Hands every update to `each`, until the command is told to stop.
pub async fn follow(
    context: &Context,
    mut watch: Watch,
    mut each: impl FnMut(WatchUpdate) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|e| Error::io("signals", e))?;
    let mut terminate = signal(SignalKind::terminate()).map_err(|e| Error::io("signals", e))?;
    // A watch waits for nodes as long as it takes; a person should know what it waits for.
    let patience = sleep(context.options.timeout);
    tokio::pin!(patience);
    let mut heard = false;
    loop {
        let update = tokio::select! {
            biased;
            _ = interrupt.recv() => return Ok(()),
            _ = terminate.recv() => return Ok(()),
            update = watch.next() => update,
            () = &mut patience, if !heard => {
                let endpoints = context.options.endpoints.join(", ");
                output::note(&format!("no node has answered yet; trying on: {endpoints}"));
                heard = true;
                continue;
            }
        };
        heard = true;
        let Some(update) = update else { return Ok(()) };
        each(update?)?;
    }
}
