//! The TARS application: the mesh put together, and the commands around it.

#![deny(missing_docs)]

pub mod app;
pub mod commands;
pub mod rest;
