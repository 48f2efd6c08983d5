//! Requests of clients, on the stream and unary. Input: requests, each its kind and protobuf behind its length.
//!
//! No request panics on its way into the state and back. What passes the checks is carried by the log
//! unchanged, is understood by the state, and is answered by a message that is read back.
#![no_main]

use std::fmt::Debug;

use libfuzzer_sys::fuzz_target;
use prost::Message;
use quorate::api::calls::{self, Read, Write};
use quorate::api::convert;
use quorate::error::Error;
use quorate::proto::v1::{self, Consistency, Header, StreamRequest, stream_call::Call};
use quorate::state::{Command, Entry, Refusal, State};
use quorate_fuzz::Input;

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input(bytes);
    let mut server = Server::default();
    while !input.is_empty() {
        let kind = input.byte();
        server.now_ms += 500;
        server.request(kind, input.counted());
    }
});

#[derive(Default)]
struct Server {
    state: State,
    now_ms: u64,
}

/// The number of a kind is its place in the list; those behind it are frames of the stream.
macro_rules! requests {
    (writes { $($write:ident)* } reads { $($read:ident)* }) => {
        #[allow(clippy::enum_variant_names)]
        enum Kind { $($write,)* $($read,)* Watch, WatchRanges }

        impl Server {
            fn request(&mut self, kind: u8, bytes: &[u8]) {
                match kind {
                    $(kind if kind == Kind::$write as u8 => {
                        decoded(bytes, |request: v1::$write| self.write(request))
                    })*
                    $(kind if kind == Kind::$read as u8 => {
                        decoded(bytes, |request: v1::$read| self.read(request))
                    })*
                    kind if kind == Kind::Watch as u8 => {
                        decoded(bytes, |v1::WatchRequest { namespace, service, .. }| {
                            told(convert::range(namespace, service));
                        })
                    }
                    kind if kind == Kind::WatchRanges as u8 => {
                        decoded(bytes, |v1::WatchRangesRequest { selectors, .. }| {
                            told(convert::ranges(selectors));
                        })
                    }
                    _ => decoded(bytes, |StreamRequest { calls }| {
                        for call in calls.into_iter().filter_map(|call| call.call) {
                            self.call(call);
                        }
                    }),
                }
            }
        }
    };
}

requests! {
    writes {
        AbortSagaRequest AcquireLockRequest AddCounterRequest BeginSagaRequest
        CloseSessionRequest DeleteAlarmRequest DeleteConfigRequest DeleteCounterRequest
        DeleteNamespaceRequest DeleteSchemaRequest DeleteServiceRequest DeregisterRequest
        EndGrayRequest OpenSessionRequest OrderSagaRequest PublishConfigRequest PutAlarmRequest
        PutNamespaceRequest PutSchemaRequest PutServiceRequest RegisterBranchRequest
        RegisterRequest ReleaseLockRequest ReportConfigRequest ResetCounterRequest
        RollbackConfigRequest SetCounterRequest SubmitSagaRequest TxnRequest
        UpdateInstanceRequest UpdateLockRequest
    }
    reads {
        ConfigHistoryRequest ConfigInstancesRequest DiffConfigRequest GetConfigRequest
        GetCounterRequest GetInstanceRequest GetLockRequest GetSagaRequest GetSchemaRequest
        GetServiceRequest ListAlarmsRequest ListConfigRequest ListCountersRequest
        ListInstancesRequest ListLocksRequest ListNamespacesRequest ListSagasRequest
        ListServicesRequest ListSessionsRequest
    }
}

impl Server {
    fn call(&mut self, call: Call) {
        match call {
            Call::Register(call) => self.write(call),
            Call::Deregister(call) => self.write(call),
            Call::UpdateInstance(call) => self.write(call),
            Call::PutService(call) => self.write(call),
            Call::DeleteService(call) => self.write(call),
            Call::OpenSession(call) => self.write(call),
            Call::CloseSession(call) => self.write(call),
            Call::PublishConfig(call) => self.write(call),
            Call::DeleteConfig(call) => self.write(call),
            Call::RollbackConfig(call) => self.write(call),
            Call::ReportConfig(call) => self.write(call),
            Call::AddCounter(call) => self.write(call),
            Call::SetCounter(call) => self.write(call),
            Call::AcquireLock(call) => self.write(call),
            Call::ReleaseLock(call) => self.write(call),
            Call::UpdateLock(call) => self.write(call),
            Call::Txn(call) if call.only_reads() => self.read(call),
            Call::Txn(call) => self.write(call),
            Call::GetConfig(call) => self.read(call),
            Call::GetCounter(call) => self.read(call),
            Call::GetInstance(call) => self.read(call),
            Call::ListInstances(call) => self.read(call),
            Call::GetService(call) => self.read(call),
            Call::KeepAlive(_) => {}
        }
    }

    fn write<W: Write>(&mut self, request: W)
    where
        W::Response: Answer,
    {
        let command = match request.command() {
            Ok(command) => command,
            Err(error) => return told::<()>(Err(error)),
        };
        let checked = command.check().and_then(|()| command.encode());
        let bytes = match checked {
            Ok(bytes) => bytes,
            Err(refusal) => return told::<()>(Err(refusal.into())),
        };
        assert_eq!(Command::decode(&bytes), Ok(command));
        let entry = Entry { term: 1, at_ms: self.now_ms, commands: vec![&bytes] };
        let outcome = self.state.apply(&entry).outcomes.remove(0);
        assert_ne!(outcome.result, Err(Refusal::Undecodable));
        match calls::response::<W>(1, outcome) {
            Ok(response) => response.check(),
            Err(error) => told::<()>(Err(error)),
        }
    }

    fn read<R: Read>(&mut self, request: R)
    where
        R::Response: Answer,
    {
        let found = request.query().and_then(|(_, mut query)| {
            R::stamp(&mut query, self.now_ms);
            R::find(&query, &self.state)
        });
        let header = Header {
            revision: self.state.revision(),
            consistency: Consistency::Linearizable.into(),
            node_id: 1,
            duplicate: false,
        };
        match found.and_then(|found| R::respond(header, found)) {
            Ok(response) => response.check(),
            Err(error) => told::<()>(Err(error)),
        }
    }
}

/// A response of a server.
trait Answer {
    fn check(&self);
}

impl<T: Message + Default + PartialEq + Debug> Answer for T {
    fn check(&self) {
        assert_eq!(T::decode(&*self.encode_to_vec()).as_ref(), Ok(self));
    }
}

fn decoded<T: Message + Default>(bytes: &[u8], then: impl FnOnce(T)) {
    if let Ok(message) = T::decode(bytes) {
        then(message);
    }
}

/// An error becomes a status and an answer of a stream, and a client reads what it was.
fn told<T>(result: Result<T, Error>) {
    let Err(error) = result else { return };
    convert::stream_error(&error).check();
    assert_eq!(Error::from(tonic::Status::from(error.clone())), error);
}
