//! The order of a node's indexes: what is purged is in a snapshot, that was applied, what was applied is
//! committed, and what is committed is in the log.

use quorate::node::Status;

use super::Oracle;

impl Oracle {
    pub fn indexes_are_in_order(&mut self, status: &Status) {
        let Status { purged_index, snapshot_index, applied_index, .. } = *status;
        let Status { committed_index, last_log_index, .. } = *status;
        let chain = [purged_index, snapshot_index, applied_index, committed_index, last_log_index];
        if !chain.is_sorted() {
            self.violated(format!(
                "node {}: purged, snapshot, applied, committed and last are {chain:?}",
                status.id
            ));
        }
    }
}
