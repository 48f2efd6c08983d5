//! Calls of participants in global transactions: methods of services in the registry, over the same balancing
//! channel that clients use, and URLs.
//!
//! The channel's client is one of this very node: discovery, policies, retries and TLS are then what they are
//! for everybody, and what the node knows is there first.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr as _;
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use bytes::{Buf as _, BufMut as _, Bytes};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use http::header::{CONTENT_TYPE, RETRY_AFTER, USER_AGENT};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use prost::Message as _;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::metadata::{BinaryMetadataKey, MetadataMap, MetadataValue};
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;

use crate::client::{Channel, ChannelOptions, Client, HashKey, Options};
use crate::error::{DOMAIN, Error};
use crate::limits::{
    PARTICIPANT_ANSWER_BYTES, PARTICIPANT_CHANNELS, PARTICIPANT_IDLE, SAGA_RESULT_BYTES,
};
use crate::node::{Call, Participants, shortened};
use crate::proto::v1::SagaResults;
use crate::runtime::Instant;
use crate::state::{Blob, CallAnswer, Target};
use crate::webhook::{https_connector, with_cause};

type Https = HttpClient<hyper_rustls::HttpsConnector<HttpConnector>, Full<Bytes>>;

/// See the module's head. Clones share connections.
#[derive(Debug, Clone)]
pub struct RemoteParticipants {
    client: Client,
    channels: Arc<Mutex<Channels>>,
    http: Https,
}

/// Channels by namespace and service, with the time of their last call.
type Channels = BTreeMap<(String, String), (Channel, Instant)>;

impl RemoteParticipants {
    /// `own` is where this node listens for clients.
    pub fn new(own: SocketAddr) -> Result<Self, Error> {
        let ip = match own.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            ip => ip,
        };
        let own = SocketAddr::new(ip, own.port()).to_string();
        Ok(RemoteParticipants {
            client: Client::connect(Options::new([own]))?,
            channels: Arc::default(),
            http: HttpClient::builder(TokioExecutor::new()).build(https_connector()),
        })
    }
}

impl Participants for RemoteParticipants {
    fn call(&self, call: Call) -> BoxFuture<'static, CallAnswer> {
        let this = self.clone();
        async move {
            // Nothing of it can be sent, now or later.
            if let Err(error) = call.results() {
                return CallAnswer::Failed { error };
            }
            let answer = match Target::parse(call.target()) {
                Ok(Target::Service { service, path }) => this.grpc(service, path, &call).await,
                Ok(Target::Url(url)) => this.http(url, &call).await,
                Ok(Target::Counter(_)) => {
                    Err("a counter is no participant to be called".to_owned())
                }
                Err(allowed) => Err(format!("the target is not {allowed}")),
            };
            answer.unwrap_or_else(unknown)
        }
        .boxed()
    }
}

/// It may have been done or not.
fn unknown(error: String) -> CallAnswer {
    CallAnswer::Unknown { error: shortened(error) }
}

/// What is passed on to those that come after. A longer answer is a success all the same, of which nothing
/// is kept.
fn done(result: &[u8]) -> CallAnswer {
    let result = match result.len() {
        0..=SAGA_RESULT_BYTES => Blob::from(result),
        _ => Blob::default(),
    };
    CallAnswer::Succeeded { result }
}

/// What every call says of itself, besides what went before.
fn about(call: &Call) -> [(&'static str, String); 6] {
    [
        ("quorate-namespace", call.namespace().to_owned()),
        ("quorate-gid", call.gid().to_owned()),
        ("quorate-branch", call.branch().to_owned()),
        ("quorate-op", call.op().to_owned()),
        ("quorate-attempt", call.attempt.to_string()),
        ("quorate-epoch", call.epoch.to_string()),
    ]
}

/// What earlier actions answered, encoded; None = nothing.
fn results(call: &Call) -> Result<Option<Vec<u8>>, String> {
    let results = call.results()?;
    let results =
        results.into_iter().map(|(id, result)| (id.to_owned(), result.as_bytes().to_vec()));
    let results = SagaResults { results: results.collect() };
    Ok((!results.results.is_empty()).then(|| results.encode_to_vec()))
}

// ---- services ----

impl RemoteParticipants {
    async fn grpc(&self, service: &str, path: &str, call: &Call) -> Result<CallAnswer, String> {
        let method = PathAndQuery::from_str(path).map_err(|error| format!("{path}: {error}"))?;
        let channel = self.channel(call.namespace(), service).await?;
        let mut request = Request::new(call.payload());
        request.set_timeout(call.timeout);
        // Where the service hashes, all calls of a transaction go to one instance.
        request.extensions_mut().insert(HashKey::of(call.gid()));
        metadata(request.metadata_mut(), call)?;
        let mut grpc =
            tonic::client::Grpc::new(channel).max_decoding_message_size(PARTICIPANT_ANSWER_BYTES);
        match grpc.unary(request, method, Raw).await {
            Ok(answer) => Ok(done(&answer.into_inner())),
            Err(status) => Ok(refused(&status)),
        }
    }

    async fn channel(&self, namespace: &str, service: &str) -> Result<Channel, String> {
        let key = (namespace.to_owned(), service.to_owned());
        let now = Instant::now();
        if let Some((channel, used)) = self.channels().get_mut(&key) {
            *used = now;
            return Ok(channel.clone());
        }
        let options = ChannelOptions { namespace: key.0.clone(), ..ChannelOptions::new(service) };
        let channel = self.client.channel_with(options).await.map_err(|error| error.to_string())?;
        let mut channels = self.channels();
        channels.retain(|_, (_, used)| now.saturating_duration_since(*used) < PARTICIPANT_IDLE);
        if channels.len() >= PARTICIPANT_CHANNELS {
            let oldest = channels.iter().min_by_key(|(_, (_, used))| *used);
            if let Some(oldest) = oldest.map(|(key, _)| key.clone()) {
                channels.remove(&oldest);
            }
        }
        // Whoever came first meanwhile has its calls under way.
        let (channel, _) = channels.entry(key).or_insert((channel, now));
        Ok(channel.clone())
    }

    fn channels(&self) -> std::sync::MutexGuard<'_, Channels> {
        self.channels.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn metadata(metadata: &mut MetadataMap, call: &Call) -> Result<(), String> {
    for (name, value) in about(call) {
        let value = MetadataValue::try_from(value).map_err(|error| error.to_string())?;
        metadata.insert(name, value);
    }
    if let Some(results) = results(call)? {
        let key = BinaryMetadataKey::from_static("quorate-results-bin");
        metadata.insert_bin(key, MetadataValue::from_bytes(&results));
    }
    Ok(())
}

/// What a status means, as in DTM. An error of this very cluster that a participant passes on is no word of
/// its own: a conflict, for instance, has the code of a refusal.
fn refused(status: &Status) -> CallAnswer {
    if status.get_details_error_info().is_some_and(|info| info.domain == DOMAIN) {
        return unknown(format!("{:?}: {}", status.code(), status.message()));
    }
    match status.code() {
        Code::Aborted => CallAnswer::Failed { error: shortened(status.message().to_owned()) },
        Code::FailedPrecondition => {
            let delay = status.get_details_retry_info().and_then(|info| info.retry_delay);
            let pause_ms = delay.map_or(0, |delay| delay.as_millis());
            CallAnswer::Ongoing { pause_ms: u64::try_from(pause_ms).unwrap_or(u64::MAX) }
        }
        code => unknown(format!("{code:?}: {}", status.message())),
    }
}

/// Messages as their bytes.
#[derive(Debug, Clone, Copy)]
struct Raw;

impl Codec for Raw {
    type Encode = Blob;
    type Decode = Bytes;
    type Encoder = Raw;
    type Decoder = Raw;

    fn encoder(&mut self) -> Raw {
        Raw
    }

    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Raw {
    type Item = Blob;
    type Error = Status;

    fn encode(&mut self, item: Blob, buf: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buf.put_slice(item.as_bytes());
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buf: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buf.copy_to_bytes(buf.remaining())))
    }
}

// ---- URLs ----

impl RemoteParticipants {
    async fn http(&self, url: &str, call: &Call) -> Result<CallAnswer, String> {
        let payload = call.payload();
        let json = serde_json::from_slice::<serde::de::IgnoredAny>(payload.as_bytes()).is_ok();
        let kind = if json { "application/json" } else { "application/octet-stream" };
        let mut request = http::Request::post(url)
            .header(CONTENT_TYPE, kind)
            .header(USER_AGENT, concat!("quorate/", env!("CARGO_PKG_VERSION")))
            .body(Full::new(Bytes::copy_from_slice(payload.as_bytes())))
            .map_err(|error| error.to_string())?;
        let headers = request.headers_mut();
        for (name, value) in about(call) {
            let value = HeaderValue::from_str(&value).map_err(|error| error.to_string())?;
            headers.insert(HeaderName::from_static(name), value);
        }
        if let Some(results) = results(call)? {
            let value = HeaderValue::from_str(&STANDARD_NO_PAD.encode(results));
            let value = value.map_err(|error| error.to_string())?;
            headers.insert(HeaderName::from_static("quorate-results-bin"), value);
        }
        let response = self.http.request(request).await.map_err(|error| with_cause(&error))?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, PARTICIPANT_ANSWER_BYTES).collect().await;
        // What was done is done, however much is said about it.
        let body = body.map(|body| body.to_bytes()).unwrap_or_default();
        Ok(match head.status {
            status if status.is_success() => done(&body),
            StatusCode::CONFLICT => {
                CallAnswer::Failed { error: shortened(String::from_utf8_lossy(&body).into_owned()) }
            }
            StatusCode::TOO_EARLY => CallAnswer::Ongoing { pause_ms: retry_after(&head.headers) },
            status => unknown(format!("answered {status}")),
        })
    }
}

/// In ms; 0 = not said, or said as a date.
fn retry_after(headers: &HeaderMap) -> u64 {
    let seconds = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    seconds.map_or(0, |seconds: u64| seconds.saturating_mul(1_000))
}
