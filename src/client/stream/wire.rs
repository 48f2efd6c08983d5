//! Bytes of the session stream. Each call is encoded once, when it is made; a frame is put together
//! from these bytes, so that sending a call again costs a copy of them and nothing else.

use std::sync::{Arc, Mutex};

use bytes::BufMut;
use prost::encoding::{encode_varint, encoded_len_varint};
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, EncodeBuf, Encoder};

use super::super::remote::lock;
use super::super::request::{Request, decoder};
use crate::error::Error;
use crate::limits;
use crate::proto::codec::Decoder;
use crate::proto::v1::stream_answer::Answer;
use crate::proto::v1::stream_call::Call;
use crate::proto::v1::{self, StreamResponse};

/// Field 1 of StreamRequest (`calls`), length-delimited, and field 1 of StreamCall (`id`), varint.
const CALLS: u8 = (1 << 3) | 2;
const ID: u8 = 1 << 3;

/// Path of the stream, which has no request type of its own in [`Request`].
pub const PATH: &str = "/quorate.v1.Sessions/Stream";

/// A call as it is kept until it is answered.
#[derive(Debug)]
pub struct Encoded {
    /// The `call` field of a StreamCall.
    pub payload: Vec<u8>,
    pub repeatable: bool,
    pub read: bool,
}

impl Encoded {
    pub fn new(call: &Call) -> Result<Encoded, Error> {
        let length = call.encoded_len();
        if length > limits::CLIENT_MESSAGE_BYTES - 64 {
            let allowed = format!("up to {} bytes", limits::CLIENT_MESSAGE_BYTES - 64);
            return Err(Error::invalid("call", format!("{length} bytes"), allowed));
        }
        let mut payload = Vec::with_capacity(length);
        call.encode(&mut payload);
        let (repeatable, read) = nature(call);
        Ok(Encoded { payload, repeatable, read })
    }
}

/// Appends one call to a frame.
pub fn push_call(frame: &mut Vec<u8>, id: u64, payload: &[u8]) {
    frame.put_u8(CALLS);
    encode_varint((1 + encoded_len_varint(id) + payload.len()) as u64, frame);
    frame.put_u8(ID);
    encode_varint(id, frame);
    frame.put_slice(payload);
}

macro_rules! kinds {
    ($($variant:ident: $request:ident;)*) => {
        /// Whether a call may be sent twice, and whether it changes nothing.
        fn nature(call: &Call) -> (bool, bool) {
            match call {
                $(Call::$variant(request) => (request.is_repeatable(), request.is_read()),)*
            }
        }

        $(
            impl From<v1::$request> for Call {
                fn from(request: v1::$request) -> Call {
                    Call::$variant(request)
                }
            }

            impl Sealed for v1::$request {
                type Answer = <v1::$request as Request>::Response;
                fn id(&mut self) -> Option<&mut Option<v1::RequestId>> {
                    self.request_id()
                }
                fn has_id(&self) -> bool {
                    self.is_repeatable()
                }
                fn response(answer: Answer) -> Option<Self::Answer> {
                    match answer {
                        Answer::$variant(response) => Some(response),
                        _ => None,
                    }
                }
            }

            impl Pipelined for v1::$request {}
        )*
    };
}

kinds! {
    Register: RegisterRequest;
    Deregister: DeregisterRequest;
    UpdateInstance: UpdateInstanceRequest;
    GetInstance: GetInstanceRequest;
    ListInstances: ListInstancesRequest;
    PutService: PutServiceRequest;
    DeleteService: DeleteServiceRequest;
    GetService: GetServiceRequest;
    KeepAlive: KeepAliveRequest;
    OpenSession: OpenSessionRequest;
    CloseSession: CloseSessionRequest;
    PublishConfig: PublishConfigRequest;
    GetConfig: GetConfigRequest;
    DeleteConfig: DeleteConfigRequest;
    RollbackConfig: RollbackConfigRequest;
    ReportConfig: ReportConfigRequest;
    AddCounter: AddCounterRequest;
    SetCounter: SetCounterRequest;
    GetCounter: GetCounterRequest;
    AcquireLock: AcquireLockRequest;
    ReleaseLock: ReleaseLockRequest;
    UpdateLock: UpdateLockRequest;
    Txn: TxnRequest;
}

/// A request that the session stream carries.
pub trait Pipelined: Sealed + Into<Call> + Send {}

mod sealed {
    use crate::proto::v1;
    use crate::proto::v1::stream_answer::Answer;

    pub trait Sealed {
        type Answer;
        fn id(&mut self) -> Option<&mut Option<v1::RequestId>>;
        fn has_id(&self) -> bool;
        fn response(answer: Answer) -> Option<Self::Answer>;
    }
}
pub use sealed::Sealed;

/// A frame that is ready to be sent, and where its buffer goes afterwards.
pub struct Frame {
    pub bytes: Vec<u8>,
    pub spare: Arc<Mutex<Vec<u8>>>,
}

/// Frames out, answers in.
pub struct StreamCodec;

pub struct FrameEncoder;

impl Codec for StreamCodec {
    type Encode = Frame;
    type Decode = StreamResponse;
    type Encoder = FrameEncoder;
    type Decoder = Decoder<StreamResponse>;

    fn encoder(&mut self) -> FrameEncoder {
        FrameEncoder
    }

    fn decoder(&mut self) -> Self::Decoder {
        decoder()
    }
}

impl Encoder for FrameEncoder {
    type Item = Frame;
    type Error = Status;

    fn encode(&mut self, frame: Frame, buf: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buf.put_slice(&frame.bytes);
        let mut bytes = frame.bytes;
        if bytes.capacity() <= 2 * limits::STREAM_FRAME_BYTES {
            bytes.clear();
            *lock(&frame.spare) = bytes;
        }
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(16 * 1024, 32 * 1024)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use prost::Message as _;

    use super::*;
    use crate::proto::v1::{StreamCall, StreamRequest};

    #[test]
    fn a_frame_is_what_prost_would_have_written() {
        let calls: Vec<StreamCall> = [1u64, 127, 128, 70_000, 1 << 40]
            .into_iter()
            .map(|id| StreamCall {
                id,
                call: Some(Call::GetInstance(v1::GetInstanceRequest {
                    service: "s".repeat(id as usize % 300),
                    id: id.to_string(),
                    ..Default::default()
                })),
            })
            .collect();
        let mut frame = Vec::new();
        for call in &calls {
            let encoded = Encoded::new(call.call.as_ref().unwrap()).unwrap();
            assert!(encoded.repeatable && encoded.read);
            push_call(&mut frame, call.id, &encoded.payload);
        }
        assert_eq!(frame, StreamRequest { calls }.encode_to_vec());
    }

    #[test]
    fn a_write_is_repeatable_with_an_id_only() {
        let bare = Encoded::new(&Call::Register(v1::RegisterRequest::default())).unwrap();
        assert!(!bare.repeatable && !bare.read);
        let id = v1::RequestId { session: 1, sequence: 1, lowest_unacknowledged: 1 };
        let request = v1::RegisterRequest { request_id: Some(id), ..Default::default() };
        let tagged = Encoded::new(&Call::Register(request)).unwrap();
        assert!(tagged.repeatable && !tagged.read);
    }

    #[test]
    fn a_call_that_no_message_holds_is_refused_at_once() {
        let reason = "x".repeat(limits::CLIENT_MESSAGE_BYTES);
        let request = v1::UpdateInstanceRequest { reason, ..Default::default() };
        let error = Encoded::new(&Call::UpdateInstance(request)).unwrap_err();
        assert!(matches!(error, Error::Invalid { .. }), "{error}");
    }
}
