//! The command line as a user has it: a home directory, sessions, and one or more meshes.

#![allow(clippy::unwrap_used)]

#[path = "meshes/backups.rs"]
mod backups;
#[path = "meshes/certificates.rs"]
mod certificates;
#[path = "meshes/failures.rs"]
mod failures;
#[path = "meshes/governed.rs"]
mod governed;
#[path = "meshes/home.rs"]
mod home;
#[path = "meshes/naming.rs"]
mod naming;
#[path = "meshes/passwords.rs"]
mod passwords;
#[path = "meshes/promotions.rs"]
mod promotions;
#[path = "meshes/rollbacks.rs"]
mod rollbacks;
#[path = "meshes/runs.rs"]
mod runs;
#[path = "meshes/services.rs"]
mod services;
#[path = "meshes/sessions.rs"]
mod sessions;
#[path = "meshes/terminal.rs"]
mod terminal;
#[path = "meshes/usage.rs"]
mod usage;
