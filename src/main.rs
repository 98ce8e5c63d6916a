//! `tars`: one binary, a role a subcommand.

use mimalloc::MiMalloc;
use std::process::ExitCode;

/// glibc's keeps in each of its arenas what it had at its fullest, and each training is a thread of its own,
/// with large buffers, in any arena: a process that trains for hours would grow to many times what it uses.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    tars::commands::run(tars::commands::parse())
}
