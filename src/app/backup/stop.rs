//! A request to stop, which the work on files checks at each block that it reads.

use super::BackupError;
use std::io::{self, Read};
use tokio_util::sync::CancellationToken;

/// Whether a backup or a restore is to stop early. Clones share one request.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stop(CancellationToken);

impl Stop {
    /// Asks the work to stop, to remove what it made, and to return [`BackupError::Interrupted`].
    pub(crate) fn request(&self) {
        self.0.cancel();
    }

    pub(crate) fn check(&self) -> Result<(), BackupError> {
        match self.0.is_cancelled() {
            true => Err(BackupError::Interrupted),
            false => Ok(()),
        }
    }

    /// The result of work that is dropped when a stop is requested.
    pub(super) async fn or<T>(
        &self,
        work: impl Future<Output = Result<T, BackupError>>,
    ) -> Result<T, BackupError> {
        self.0
            .run_until_cancelled(work)
            .await
            .unwrap_or(Err(BackupError::Interrupted))
    }

    /// What a failure is: that of a read which was stopped is the interruption.
    pub(super) fn explain(&self, error: BackupError) -> BackupError {
        match self.0.is_cancelled() {
            true => BackupError::Interrupted,
            false => error,
        }
    }

    /// A reader that fails once a stop is requested.
    pub(super) fn reader<R>(&self, inner: R) -> Stoppable<'_, R> {
        Stoppable { inner, stop: self }
    }
}

/// See [`Stop::reader`].
pub(super) struct Stoppable<'a, R> {
    inner: R,
    stop: &'a Stop,
}

impl<R: Read> Read for Stoppable<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stop.check().map_err(io::Error::other)?;
        self.inner.read(buffer)
    }
}
