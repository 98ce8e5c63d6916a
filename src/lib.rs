//! The TARS application: the mesh put together, and the commands around it.

pub mod app;
pub mod commands;
pub mod rest;
