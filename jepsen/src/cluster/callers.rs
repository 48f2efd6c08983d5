//! Which node a connection comes from.
//!
//! All nodes know each other under the same addresses, because that is what their cluster's identity is
//! made of, and all connect from 127.0.0.1. So the kernel is asked which process holds the other end.

use std::collections::BTreeMap;
use std::fs;
use std::net::{SocketAddr, SocketAddrV4};
use std::sync::{Arc, Mutex, PoisonError};

use super::links::Party;

/// The processes of the nodes; clones share them.
#[derive(Debug, Clone, Default)]
pub struct Callers {
    pids: Arc<Mutex<BTreeMap<u32, Party>>>,
}

impl Callers {
    pub fn add(&self, pid: u32, party: Party) {
        self.pids.lock().unwrap_or_else(PoisonError::into_inner).insert(pid, party);
    }

    pub fn remove(&self, pid: u32) {
        self.pids.lock().unwrap_or_else(PoisonError::into_inner).remove(&pid);
    }

    /// Whose socket has this address and is connected to `to`.
    pub(super) fn who(&self, caller: SocketAddr, to: Option<SocketAddr>) -> Option<Party> {
        let (SocketAddr::V4(caller), SocketAddr::V4(to)) = (caller, to?) else { return None };
        let table = fs::read_to_string("/proc/net/tcp").ok()?;
        let socket = format!("socket:[{}]", inode(&table, caller, to)?);
        let pids = self.pids.lock().unwrap_or_else(PoisonError::into_inner).clone();
        pids.into_iter().find(|(pid, _)| holds(*pid, &socket)).map(|(_, party)| party)
    }
}

fn holds(pid: u32, socket: &str) -> bool {
    let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    let mut links = descriptors.flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
    links.any(|link| link.as_os_str() == socket)
}

/// The inode of a socket in the text of `/proc/net/tcp`: addresses are hexadecimal, in the order of the
/// machine's bytes, and the tenth column is the inode.
fn inode(table: &str, local: SocketAddrV4, remote: SocketAddrV4) -> Option<&str> {
    let (local, remote) = (hexadecimal(local), hexadecimal(remote));
    table.lines().find_map(|line| {
        let mut columns = line.split_whitespace().skip(1);
        let is_it = columns.next()? == local && columns.next()? == remote;
        is_it.then(|| columns.nth(6)).flatten()
    })
}

fn hexadecimal(address: SocketAddrV4) -> String {
    let ip = u32::from_ne_bytes(address.ip().octets());
    format!("{ip:08X}:{:04X}", address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_found_in_the_kernels_table() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
           0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 11 1 0\n\
           1: 0100007F:C350 0100007F:1F90 01 00000000:00000000 02:000A 00000000  1000        0 22 2 0\n\
           2: 0100007F:1F90 0100007F:C350 01 00000000:00000000 02:000A 00000000  1000        0 33 2 0\n";
        let address = |port| SocketAddrV4::new([127, 0, 0, 1].into(), port);
        assert_eq!(inode(table, address(50_000), address(8_080)), Some("22"));
        assert_eq!(inode(table, address(8_080), address(50_000)), Some("33"));
        assert_eq!(inode(table, address(8_080), address(1)), None);
    }

    #[test]
    fn the_process_of_a_connection_is_known() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap();
        let stream = std::net::TcpStream::connect(to).unwrap();
        let caller = stream.local_addr().unwrap();
        let callers = Callers::default();
        assert_eq!(callers.who(caller, Some(to)), None);
        callers.add(std::process::id(), Party::Node(7));
        assert_eq!(callers.who(caller, Some(to)), Some(Party::Node(7)));
    }
}
