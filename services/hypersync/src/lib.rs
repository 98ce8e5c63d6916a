//! Proposals: approve, apply, verify, roll back.
