//! What the further attempt of a call says of those before it. A server believes it of workloads alone.

/// How often the call was attempted before (gRFC A6, "client retries").
pub const PREVIOUS: &str = "grpc-previous-rpc-attempts";

/// That an earlier attempt may have been charged to its caller's limits and quota, whatever became of it.
pub const CHARGED: &str = "x-tars-charged";
