//! Hyperparameter search: samplers and pruners.
