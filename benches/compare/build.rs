//! Compiles the calls of etcd that are compared.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=etcd.proto");
    let calls = protox::compile(["etcd.proto"], ["."])?;
    tonic_prost_build::configure().build_server(false).compile_fds(calls)?;
    Ok(())
}
