//! Whether a data directory is one to start on.
//!
//! A start makes what is not there: databases, an authority, an administrator. On a directory whose mesh
//! has its databases on the other engine, or that a restore has filled in part, that would be an empty
//! mesh in the place of the one that was meant. Such a directory is refused.

use super::{DataDirError, Service, StartError, backup, migrations};
use std::{
    fs, io,
    path::{Path, PathBuf},
};
use tars_runtime::{config::Config, lease};

/// Refuses a data directory in which these services would not find their state.
///
/// # Errors
///
/// [`StartError::DataDir`] with what is to be done.
pub(crate) fn check(config: &Config, services: &[Service]) -> Result<(), StartError> {
    let dir = &config.data.dir;
    if let Some(partial) = unfinished(dir)? {
        return Err(DataDirError::Unfinished(partial).into());
    }
    let with_database = |service: &&Service| migrations(**service).is_some();
    for service in services.iter().filter(with_database) {
        check_engine(dir, *service, config.database.is_server())?;
    }
    Ok(())
}

fn unfinished(dir: &Path) -> Result<Option<PathBuf>, StartError> {
    let failed = |e| StartError::file(dir, e);
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed(e)),
    };
    for entry in entries {
        let entry = entry.map_err(failed)?;
        if backup::is_of_restore(&entry.file_name()) {
            return Ok(Some(entry.path()));
        }
    }
    Ok(None)
}

fn check_engine(dir: &Path, service: Service, on_server: bool) -> Result<(), DataDirError> {
    let part = dir.join(service.as_str());
    let file = part.join(format!("{}.db", service.as_str()));
    let has_file = file.is_file();
    if on_server && has_file {
        let dir = dir.to_owned();
        return Err(DataDirError::OnFiles { dir, file });
    }
    // What `tars up --replicas` has made in a directory is below its first replica's.
    let first = super::replicas::data_dir(dir, 1).join(service.as_str());
    let was_shared = lease::was_shared(&part) || lease::was_shared(&first);
    if !on_server && !has_file && was_shared {
        return Err(DataDirError::OnServer(dir.to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tars_runtime::config::Data;

    fn config(dir: &Path, url: Option<&str>) -> Config {
        let mut config = Config {
            data: Data {
                dir: dir.to_owned(),
            },
            ..Config::default()
        };
        config.database.url = url.map(str::to_owned);
        config
    }

    /// What a start on a directory with these files says, with a server and without one.
    fn starts(files: &[&str]) -> [Result<(), String>; 2] {
        let dir = tempfile::tempdir().unwrap();
        for file in files {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        [Some("postgresql://tars@localhost/mesh?host=/run/pg"), None].map(|url| {
            check(&config(dir.path(), url), Service::ALL).map_err(|refused| refused.to_string())
        })
    }

    #[test]
    fn a_directory_without_state_can_be_started_on() {
        for files in [
            &[][..],
            &["lock", "lost+found/x", "auth/seal.key", "ca/ca.json"],
        ] {
            assert_eq!(starts(files), [Ok(()), Ok(())], "{files:?}");
        }
    }

    #[test]
    fn databases_in_files_are_not_left_behind_for_an_empty_server() {
        for name in ["auth/auth.db", "hypersync/hypersync.db"] {
            let [on_server, on_files] = starts(&["lock", name]);
            let refused = on_server.unwrap_err();
            for expected in [name, "database.url", "tars db backup", "tars db restore"] {
                assert!(refused.contains(expected), "{expected} in {refused}");
            }
            assert_eq!(on_files, Ok(()));
        }
    }

    #[test]
    fn a_mesh_on_a_server_is_not_started_in_new_files() {
        for name in ["auth/replica", "automl/replica", "replicas/1/auth/replica"] {
            let [on_server, on_files] = starts(&[name]);
            assert_eq!(on_server, Ok(()));
            let refused = on_files.unwrap_err();
            assert!(refused.contains("TARS__DATABASE__URL"), "{refused}");
        }
    }

    #[test]
    fn part_of_a_restore_is_not_started_on() {
        for refused in starts(&["auth/auth.db", ".tars-restore-partial-x/ca/ca.json"]) {
            let refused = refused.unwrap_err();
            assert!(refused.contains(".tars-restore-partial-x"), "{refused}");
            assert!(refused.contains("tars db restore"), "{refused}");
        }
    }
}
