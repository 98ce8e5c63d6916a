//! The errors of the authority.

use super::{csr::CsrError, rotation::OrderError};
use std::{
    io,
    path::{Path, PathBuf},
};

/// Why the authority cannot do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// A file of the authority could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the operating system reports.
        source: io::Error,
    },
    /// A file of the authority has contents that are not usable.
    #[error("{path}: {problem}")]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A certificate could not be encoded or signed.
    #[error("cannot create a certificate: {0}")]
    Make(#[from] rcgen::Error),
    /// The directory already holds an authority, which is never overwritten.
    #[error("there is already a certificate authority in {0}")]
    Exists(PathBuf),
    /// The directory holds another authority than the one whose working copy it should be.
    #[error(
        "{0} holds another certificate authority than the database: move it away to use the one in the \
         database, or start on another database"
    )]
    Foreign(PathBuf),
    /// The authority was made for another trust domain.
    #[error(
        "the certificate authority is not one of the trust domain {configured}, its root is {root}: set \
         trust.domain to the domain that it was made for, or use another data directory or database"
    )]
    OtherDomain {
        /// The subject of a root.
        root: String,
        /// The domain in the configuration.
        configured: String,
    },
    /// The authority is a working copy of one that is kept elsewhere.
    #[error(
        "this is a working copy of the certificate authority, which is changed in the database"
    )]
    WorkingCopy,
    /// Contents that were kept elsewhere do not decode, or cannot be encoded.
    #[error("the contents of the certificate authority: {0}")]
    Encoding(String),
    /// The newest intermediate has expired, and the root key is offline.
    #[error("the intermediate has expired, and root.key is not available to sign another")]
    Expired,
    /// The private key is not available, because the certificate was issued for a key held
    /// elsewhere.
    #[error("the private key of the certificate is held elsewhere")]
    NoKey,
    /// The named certificate is revoked, so it is not renewed.
    #[error("{0} is revoked, and a revoked certificate is not renewed")]
    Revoked(String),
    /// A rotation step was requested out of order.
    #[error(transparent)]
    Order(#[from] OrderError),
    /// The signing request is not acceptable.
    #[error(transparent)]
    Csr(#[from] CsrError),
}

pub(crate) fn file(path: &Path, source: io::Error) -> CaError {
    CaError::File {
        path: path.to_owned(),
        source,
    }
}

pub(super) fn unusable(path: &Path, problem: &str) -> CaError {
    CaError::Unusable {
        path: path.to_owned(),
        problem: problem.to_owned(),
    }
}
