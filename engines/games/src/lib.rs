//! Game solvers: pure computation.
