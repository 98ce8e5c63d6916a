//! The TARS application.
