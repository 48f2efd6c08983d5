//! Compiles `proto/` with protox, a protobuf compiler in Rust: a fresh machine needs no protoc.

use std::path::PathBuf;

use prost::Message as _;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    let public = protox::compile(
        [
            "quorate/v1/common.proto",
            "quorate/v1/records.proto",
            "quorate/v1/watch.proto",
            "quorate/v1/registry.proto",
            "quorate/v1/config.proto",
            "quorate/v1/counter.proto",
            "quorate/v1/lock.proto",
            "quorate/v1/alarm.proto",
            "quorate/v1/saga.proto",
            "quorate/v1/txn.proto",
            "quorate/v1/session.proto",
            "quorate/v1/cluster.proto",
        ],
        ["proto"],
    )?;
    std::fs::write(out.join("quorate_v1.bin"), public.encode_to_vec())?;
    tonic_prost_build::configure()
        .btree_map(".")
        .codec_path("crate::proto::codec::Codec")
        .bytes(".quorate.v1.SnapshotResponse")
        // Every call and answer of the stream takes the space of the greatest.
        .boxed(".quorate.v1.PublishConfigRequest.gray")
        .boxed(".quorate.v1.GetConfigResponse.item")
        .boxed(".quorate.v1.Service.health_check")
        .compile_fds(public)?;
    if std::env::var_os("CARGO_FEATURE_SERVER").is_some() {
        let peer = protox::compile(["quorate/peer/v1/peer.proto"], ["proto"])?;
        tonic_prost_build::configure().btree_map(".").bytes(".").compile_fds(peer)?;
    }
    Ok(())
}
