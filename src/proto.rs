//! Code generated from `proto/` by build.rs.

pub mod codec;

/// The public API.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod v1 {
    tonic::include_proto!("quorate.v1");
}

impl v1::TxnRequest {
    /// True when it writes nothing, whichever way it goes: nodes answer it as a read, and clients send it as
    /// one.
    pub fn only_reads(&self) -> bool {
        if self.barrier.is_some() {
            return false;
        }
        use v1::txn_step::Step;
        let mut steps = self.then.iter().chain(&self.or_else);
        steps.all(|step| matches!(step.step, Some(Step::Get(_) | Step::Range(_)) | None))
    }
}

/// Host and port of an endpoint as text: an IPv6 address, which a record holds without brackets, gets them.
pub(crate) fn host_port(host: &str, port: impl Into<u32>) -> String {
    let port = port.into();
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// What peers say to each other, on a port of their own.
#[cfg(feature = "server")]
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod peer {
    tonic::include_proto!("quorate.peer.v1");
}

/// The descriptors of the public API, for server reflection.
#[cfg(feature = "server")]
pub const DESCRIPTORS: &[u8] = tonic::include_file_descriptor_set!("quorate_v1");
