//! `tars descriptors`: the contract as a `FileDescriptorSet`, for clients that do not reflect.

use super::CommandError;
use clap::Args;
use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};
use tars_proto::DESCRIPTOR_SET;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tars descriptors --out tars.binpb\n  grpcurl -protoset tars.binpb list\n  tars descriptors --out - | buf convert --type google.protobuf.FileDescriptorSet"
)]
pub(crate) struct Descriptors {
    /// Where to write it; `-` is standard output.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

impl Descriptors {
    pub(crate) fn run(&self) -> Result<ExitCode, CommandError> {
        if self.out == Path::new("-") {
            let mut out = io::stdout().lock();
            out.write_all(DESCRIPTOR_SET)
                .and_then(|()| out.flush())
                .map_err(|e| CommandError::file(&self.out, e))?;
        } else {
            std::fs::write(&self.out, DESCRIPTOR_SET)
                .map_err(|e| CommandError::file(&self.out, e))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
