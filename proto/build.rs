//! Compiles the protos without protoc and writes the validation that their field options declare.

use std::{env, error::Error, fs, path::PathBuf};

#[path = "build/validation.rs"]
mod validation;

const FILES: &[&str] = &[
    "tars/auth/v1/auth.proto",
    "tars/auth/v1/admin.proto",
    "tars/auth/v1/certificate.proto",
    "tars/auth/v1/credential.proto",
    "tars/orchestration/v1/game.proto",
    "tars/orchestration/v1/orchestration.proto",
    "tars/orchestration/v1/training.proto",
    "tars/automl/v1/automl.proto",
    "tars/hypersync/v1/hypersync.proto",
    "google/rpc/error_details.proto",
    "google/rpc/status.proto",
    "grpc/health/v1/health.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=tars");
    println!("cargo:rerun-if-changed=google");
    println!("cargo:rerun-if-changed=grpc");
    println!("cargo:rerun-if-changed=build");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let mut compiler = protox::Compiler::new(["."])?;
    compiler
        .include_imports(true)
        .include_source_info(true)
        .open_files(FILES)?;
    // The prost form of the set drops custom options, so protox's own encoding is what is kept.
    fs::write(
        out.join("descriptor.bin"),
        compiler.encode_file_descriptor_set(),
    )?;
    fs::write(
        out.join("validation.rs"),
        validation::generate(&compiler.descriptor_pool())?,
    )?;
    tonic_prost_build::configure()
        .build_transport(false)
        .btree_map(".")
        .codec_path("crate::codec::ValidatingCodec")
        .compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}
