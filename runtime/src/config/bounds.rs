//! The largest values that the configuration and the files which it names have in common.

/// Maximum number of calls in a window.
pub const RATE: u32 = 1_000_000_000;
/// The same of a limit that is counted exactly: Redis keeps the time of every call, in eight bytes.
pub const EXACT_CALLS: u32 = 100_000;
/// Maximum amount of a month, far below what a sum of two could not hold.
pub const QUOTA: u64 = 1_000_000_000_000;
