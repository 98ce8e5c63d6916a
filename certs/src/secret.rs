//! Files that hold secrets: written for their owner alone, and read only when nobody else can read
//! them.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

/// Creates a directory and its parents with mode 0700.
pub fn create_dir(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
}

/// Replaces a file atomically and durably, with mode 0600: readers see the old content or the new,
/// and both the file and its directory are synced before this returns.
pub fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    write_mode(path, content, 0o600)
}

/// Like [`write()`], but readable by everybody (mode 0644).
pub fn write_public(path: &Path, content: &[u8]) -> io::Result<()> {
    write_mode(path, content, 0o644)
}

/// Creates a file durably, with mode 0600, unless it exists: `false` then, and nothing is written. Of
/// several processes that create one file, also on different machines, one succeeds, and the others
/// find all of its content.
///
/// # Errors
///
/// The error of the operating system.
pub fn create(path: &Path, content: &[u8]) -> io::Result<bool> {
    let staged = stage(path, content, 0o600)?;
    // Unlike a rename, a link does not replace.
    let linked = fs::hard_link(&staged, path);
    fs::remove_file(&staged)?;
    match linked {
        Ok(()) => File::open(parent(path))?.sync_all().map(|()| true),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(e) => Err(e),
    }
}

fn write_mode(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let staged = stage(path, content, mode)?;
    fs::rename(&staged, path)?;
    File::open(parent(path))?.sync_all()
}

/// The parent of a bare name is empty.
fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Writes a file beside the one that it becomes, under a name that no other writer uses.
fn stage(path: &Path, content: &[u8], mode: u32) -> io::Result<PathBuf> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let unique = rand::random::<u64>();
    let staged = parent(path).join(format!(".{name}.{unique:016x}.tmp"));
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&staged)?;
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.write_all(content)?;
    file.sync_all()?;
    Ok(staged)
}

/// Reads a secret, and rejects a file that anybody but its owner and a group of this process may
/// read, or that anybody but its owner may change.
///
/// A group of this process may read it, because Kubernetes offers nothing stricter to a process
/// that is not root: with `fsGroup`, mounted files belong to root and the pod's group with mode
/// 0440, whatever `defaultMode` is set to. A symlink is judged by its target, and the file that was
/// checked is the one that is read. Pipes and terminals have no permission bits worth checking.
///
/// # Errors
///
/// `PermissionDenied`, with the mode and what to do about it, when the permissions are too wide;
/// the error of the operating system otherwise.
pub fn read(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let about = file.metadata()?;
    let (mode, group) = (about.permissions().mode(), about.gid());
    if about.is_file()
        && let Some(objection) = objection(mode, is_own_group(group)?)
    {
        let message = format!("{} {objection}", path.display());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, message));
    }
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    Ok(text)
}

fn is_own_group(group: u32) -> io::Result<bool> {
    use rustix::process::{getegid, getgroups};
    Ok(getegid().as_raw() == group || getgroups()?.iter().any(|g| g.as_raw() == group))
}

/// Why a file with this mode must not hold a secret, and how to fix it.
fn objection(mode: u32, own_group: bool) -> Option<String> {
    let bits = mode & 0o777;
    let (problem, remedy) = match bits {
        b if b & 0o002 != 0 => ("is writable by everybody", "chmod 600 it"),
        b if b & 0o004 != 0 => (
            "is readable by everybody",
            "chmod 600 it; in Kubernetes, set fsGroup and a defaultMode of 0440 or less",
        ),
        b if b & 0o020 != 0 => ("is writable by its group", "chmod g-w it"),
        b if b & 0o040 != 0 && !own_group => (
            "is readable by a group that this process does not belong to",
            "chmod 600 it, or give it to a group of this process",
        ),
        _ => return None,
    };
    Some(format!("{problem} (mode {bits:04o}): {remedy}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_private_and_replaced_atomically() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        write(&path, b"one").unwrap();
        write(&path, b"two").unwrap();
        assert_eq!(read(&path).unwrap(), "two");
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn of_many_creators_of_one_file_one_succeeds() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let created = std::thread::scope(|scope| {
            let create = |n: u8| (n, create(&path, &[b'0' + n]).unwrap());
            let creators: Vec<_> = (0..8).map(|n| scope.spawn(move || create(n))).collect();
            let created = creators.into_iter().map(|creator| creator.join().unwrap());
            created.collect::<Vec<_>>()
        });
        let winners: Vec<u8> = created.iter().filter(|c| c.1).map(|c| c.0).collect();
        assert_eq!(winners.len(), 1, "{created:?}");
        assert_eq!(read(&path).unwrap().as_bytes(), [b'0' + winners[0]]);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn permissions_decide_whether_a_secret_is_accepted() {
        for mode in [0o600, 0o400, 0o700, 0o440, 0o640, 0o500] {
            assert_eq!(objection(mode | 0o100_000, true), None, "{mode:o}");
        }
        for (mode, own_group, why) in [
            (0o440, false, "not belong"),
            (0o640, false, "not belong"),
            (0o644, true, "by everybody"),
            (0o444, true, "by everybody"),
            (0o604, true, "by everybody"),
            (0o606, true, "writable by everybody"),
            (0o602, true, "writable by everybody"),
            (0o660, true, "writable by its group"),
            (0o620, true, "writable by its group"),
            (0o666, false, "writable by everybody"),
            (0o777, true, "writable by everybody"),
        ] {
            let objection = objection(mode | 0o100_000, own_group).unwrap_or_default();
            assert!(objection.contains(why), "{mode:o}: {objection:?}");
            assert!(objection.contains(&format!("{mode:04o}")), "{objection}");
            assert!(
                objection.contains("chmod"),
                "it names a remedy: {objection}"
            );
        }
    }

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_kubernetes_mount_is_judged_by_the_target_of_its_symlinks() {
        let dir = tempfile::tempdir().unwrap();
        let version = dir.path().join("..2026_01_01");
        fs::create_dir(&version).unwrap();
        fs::write(version.join("tls.key"), "key").unwrap();
        std::os::unix::fs::symlink("..2026_01_01", dir.path().join("..data")).unwrap();
        let path = dir.path().join("tls.key");
        std::os::unix::fs::symlink("..data/tls.key", &path).unwrap();
        // The links themselves have mode 0777.
        set_mode(&version.join("tls.key"), 0o440);
        assert_eq!(read(&path).unwrap(), "key");
        set_mode(&version.join("tls.key"), 0o644);
        let refused = read(&path).unwrap_err().to_string();
        assert!(refused.contains("everybody"), "{refused}");
        assert!(refused.contains("fsGroup"), "{refused}");
    }

    #[test]
    fn a_readable_group_must_be_one_of_this_process() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        write(&path, b"x").unwrap();
        let own = rustix::process::getegid().as_raw();
        assert!(is_own_group(own).unwrap());
        // Only root can give a file away.
        if std::os::unix::fs::chown(&path, None, Some(own + 54_321)).is_ok() {
            set_mode(&path, 0o440);
            let refused = read(&path).unwrap_err().to_string();
            assert!(refused.contains("not belong"), "{refused}");
            set_mode(&path, 0o400);
            assert!(read(&path).is_ok());
        }
    }

    #[test]
    fn a_secret_that_others_may_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        write_public(&path, b"x").unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("chmod 600"));
    }
}
