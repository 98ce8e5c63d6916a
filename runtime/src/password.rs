//! Passwords in files, by which a process logs in to the servers that it uses.

use std::{fmt, path::Path};
use tars_certs::secret;
use zeroize::Zeroizing;

/// Reads the password in a file, without the line end.
///
/// # Errors
///
/// For the operator: that the file is empty, cannot be read, or can be read by others. `setting` is the
/// setting that names the file.
pub(crate) fn read(setting: &str, file: &Path) -> Result<Zeroizing<String>, String> {
    let text = check_secret(setting, file)?;
    let password = text.trim_end_matches(['\r', '\n']);
    match password.is_empty() {
        true => Err(unusable(setting, file, &"is empty")),
        false => Ok(Zeroizing::new(password.to_owned())),
    }
}

/// Reads a secret that only this process's user and group can read.
///
/// # Errors
///
/// As [`read`], but for an empty file.
pub(crate) fn check_secret(setting: &str, file: &Path) -> Result<Zeroizing<String>, String> {
    let text = secret::read(file).map_err(|e| match e.raw_os_error() {
        Some(_) => unusable(setting, file, &e),
        // Says itself which file it is about.
        None => format!("{setting}: {e}"),
    });
    text.map(Zeroizing::new)
}

/// Names a setting, its file and what is wrong with it.
pub(crate) fn unusable(setting: &str, file: &Path, problem: &dyn fmt::Display) -> String {
    format!("{setting} {}: {problem}", file.display())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, os::unix::fs::PermissionsExt};

    #[test]
    fn a_line_end_is_no_part_of_a_password() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("password");
        for text in ["a b", "a b\n", "a b\r\n"] {
            secret::write(&file, text.as_bytes()).unwrap();
            assert_eq!(read("x", &file).unwrap().as_str(), "a b");
        }
    }

    #[test]
    fn a_file_that_is_empty_absent_or_readable_by_others_is_refused_by_its_setting_and_path() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("password");
        let refused = |reason: &str| {
            let refused = read("database.password_file", &file).unwrap_err();
            for part in [
                "database.password_file",
                file.to_str().unwrap_or_default(),
                reason,
            ] {
                assert_eq!(refused.matches(part).count(), 1, "{refused}");
            }
        };
        refused("No such file");
        secret::write(&file, b"\n").unwrap();
        refused("is empty");
        secret::write(&file, b"secret").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        refused("is readable by everybody");
    }
}
