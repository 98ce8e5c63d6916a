//! Where keys and bundles are written: never over existing files without `--force`.

use crate::commands::CommandError;
use clap::Args;
use std::path::Path;
use tars_certs::IdentityFiles;

#[derive(Debug, Args, Default, Clone, Copy)]
pub(super) struct Force {
    /// Replace files that exist.
    #[arg(long)]
    force: bool,
}

impl Force {
    /// Refuses a file that exists, before anything is issued for its place.
    pub(super) fn allows(self, path: &Path) -> Result<(), CommandError> {
        // Also a link that leads nowhere.
        if self.force || path.symlink_metadata().is_err() {
            return Ok(());
        }
        Err(CommandError::Failed(format!(
            "{} exists, and would be lost: name another place with --out, or replace it with --force",
            path.display()
        )))
    }

    pub(super) fn allows_identity(self, files: &IdentityFiles) -> Result<(), CommandError> {
        let mut all = [&files.key, &files.cert, &files.ca].into_iter();
        all.try_for_each(|path| self.allows(path))
    }

    pub(super) fn allows_out(self, out: Option<&Path>) -> Result<(), CommandError> {
        out.map_or(Ok(()), |path| self.allows(path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn existing_files_are_replaced_by_force_only() {
        let dir = tempfile::tempdir().unwrap();
        let files = IdentityFiles::in_dir(dir.path());
        let (gentle, force) = (Force::default(), Force { force: true });
        assert!(gentle.allows_identity(&files).is_ok() && gentle.allows_out(None).is_ok());
        for path in [&files.ca, &files.key] {
            std::fs::write(path, "x").unwrap();
            let said = gentle.allows_identity(&files).unwrap_err().to_string();
            assert!(said.contains(&path.display().to_string()), "{said}");
            assert!(said.contains("--force"), "{said}");
            assert!(gentle.allows_out(Some(path)).is_err());
            assert!(force.allows_identity(&files).is_ok());
            std::fs::remove_file(path).unwrap();
        }
        std::os::unix::fs::symlink("nowhere", &files.key).unwrap();
        assert!(gentle.allows_identity(&files).is_err());
    }
}
