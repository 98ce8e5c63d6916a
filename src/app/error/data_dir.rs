//! Data directories on which no process starts.

use std::path::PathBuf;

/// Why no process starts on a data directory.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// It holds databases, and the configuration names a server.
    #[error(
        "{} is a SQLite database, and database.url names a server, on which nothing reads it; to move the \
         mesh there: unset database.url, `tars db backup FILE --data-dir {}`, set it again, `tars db restore \
         FILE` with a new --data-dir; to begin another mesh, name a new --data-dir",
        .file.display(),
        .dir.display()
    )]
    OnFiles {
        /// The data directory.
        dir: PathBuf,
        /// A database in it.
        file: PathBuf,
    },
    /// Its mesh has the databases on a server, and the configuration names none.
    #[error(
        "the data directory {} is of a mesh whose databases are on a server, and database.url is not set: \
         set it (TARS__DATABASE__URL), or name another --data-dir",
        .0.display()
    )]
    OnServer(PathBuf),
    /// A restore into it did not come to its end.
    #[error(
        "{} is of a restore that did not finish: empty its directory, and run `tars db restore` again",
        .0.display()
    )]
    Unfinished(PathBuf),
}
