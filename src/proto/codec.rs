//! How messages are read: from a slice of all their bytes. prost's own codec reads through the connection's
//! buffer, which counts what is left of it at every byte.

use std::marker::PhantomData;

use bytes::Buf as _;
use prost::Message;
use tonic::Status;
use tonic::codec::{self, BufferSettings, DecodeBuf};
use tonic_prost::ProstEncoder;

/// The codec of the generated clients and services.
#[derive(Debug)]
pub struct Codec<T, U>(PhantomData<fn(T, U)>);

impl<T, U> Default for Codec<T, U> {
    fn default() -> Self {
        Codec(PhantomData)
    }
}

impl<T, U> codec::Codec for Codec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = Decoder<U>;

    fn encoder(&mut self) -> ProstEncoder<T> {
        ProstEncoder::default()
    }

    fn decoder(&mut self) -> Decoder<U> {
        Decoder::default()
    }
}

/// Reads messages.
#[derive(Debug)]
pub struct Decoder<M> {
    settings: BufferSettings,
    message: PhantomData<fn() -> M>,
}

impl<M> Decoder<M> {
    pub fn new(settings: BufferSettings) -> Self {
        Decoder { settings, message: PhantomData }
    }
}

impl<M> Default for Decoder<M> {
    fn default() -> Self {
        Decoder::new(BufferSettings::default())
    }
}

impl<M: Message + Default> codec::Decoder for Decoder<M> {
    type Item = M;
    type Error = Status;

    fn decode(&mut self, buf: &mut DecodeBuf<'_>) -> Result<Option<M>, Status> {
        let bytes = buf.copy_to_bytes(buf.remaining());
        M::decode(&bytes[..]).map(Some).map_err(|error| Status::internal(error.to_string()))
    }

    fn buffer_settings(&self) -> BufferSettings {
        self.settings
    }
}
