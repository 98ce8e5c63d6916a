//! `tars`: one binary, a role a subcommand.

use mimalloc::MiMalloc;
use std::process::ExitCode;

/// glibc's allocator keeps in each of its arenas what that had at its fullest, and each training is a thread of
/// its own, with large buffers, in any arena: a process that trains for hours would grow to many times what it
/// uses. This one is built without huge pages (`no_thp`), with which a message that a peer announces and does not
/// send would take memory all the same.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    tars::commands::run(tars::commands::parse())
}
