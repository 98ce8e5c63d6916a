//! Networks, algorithms and environments: pure computation.
