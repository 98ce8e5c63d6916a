//! Compiles the protos without protoc, and generates the validation that their field options declare.

use std::{
    env,
    error::Error,
    fs, io,
    path::{Path, PathBuf},
};

#[path = "build/validation.rs"]
mod validation;

/// The directories of the protos: the contract, and what it shares with other systems.
const ROOTS: [&str; 3] = ["tars", "google", "grpc"];
/// The directory of our own.
const OURS: &str = "tars/";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=build");
    let mut files = Vec::new();
    for root in ROOTS {
        println!("cargo:rerun-if-changed={root}");
        collect(Path::new(root), &mut files)?;
    }
    files.sort();
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let mut compiler = protox::Compiler::new(["."])?;
    compiler
        .include_imports(true)
        .include_source_info(true)
        .open_files(files)?;
    // prost's form of the set drops custom options, so protox's encoding is embedded.
    fs::write(
        out.join("descriptor.bin"),
        compiler.encode_file_descriptor_set(),
    )?;
    fs::write(
        out.join("validation.rs"),
        validation::generate(&compiler.descriptor_pool())?,
    )?;
    let mut set = compiler.file_descriptor_set();
    // The comments of other systems have examples in other languages, which rustdoc would run as tests.
    for file in set.file.iter_mut().filter(|f| !f.name().starts_with(OURS)) {
        file.source_code_info = None;
    }
    tonic_prost_build::configure()
        .build_transport(false)
        .include_file("packages.rs")
        .btree_map(".")
        .codec_path("crate::codec::ValidatingCodec")
        .compile_fds(set)?;
    Ok(())
}

/// Collects every proto below a directory.
fn collect(dir: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|e| e == "proto") {
            files.push(path);
        }
    }
    Ok(())
}
