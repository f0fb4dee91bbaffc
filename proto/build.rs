//! Compiles the `.proto` files with protox, so that no `protoc` is needed.

use std::fmt::Write;
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?);
    let files = ["log", "peer", "client", "admin", "catalog", "balance", "system"]
        .map(|name| format!("shardhost/v1/{name}.proto"));
    for file in &files {
        println!("cargo:rerun-if-changed={}", root.join(file).display());
    }
    let descriptors = protox::compile(&files, [&root])?;
    let mut methods = String::from("&[\n");
    for file in &descriptors.file {
        for service in &file.service {
            for method in &service.method {
                writeln!(
                    methods,
                    "    \"/{}.{}/{}\",",
                    file.package(),
                    service.name(),
                    method.name()
                )?;
            }
        }
    }
    methods.push_str("]\n");
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("methods.rs"), methods)?;
    tonic_prost_build::configure()
        .build_client(cfg!(feature = "client"))
        .build_server(cfg!(feature = "server"))
        .bytes(".")
        // Written by hand, without digests of secrets: `redacted.rs`.
        .skip_debug([".shardhost.catalog.v1.Token", ".shardhost.catalog.v1.PutToken"])
        // Rare, and large beside the messages of every write.
        .boxed(".shardhost.peer.v1.GroupMessage.recovery")
        .compile_fds(descriptors)?;
    Ok(())
}
