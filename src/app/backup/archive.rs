//! The archive: written whole, and read without trust in anything that it says.

use super::{
    BackupError, FORMAT, FilePart, Manifest, Stop, VERSION,
    databases::check_list,
    files::{self, copy_digested, hex},
};
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufReader, BufWriter, Read, Seek, Write},
    path::{Component, Path, PathBuf},
};
use tar::{Archive, Builder, Entries, Entry, EntryType, Header};
use tempfile::NamedTempFile;

const MANIFEST: &str = "manifest.json";
const DIGEST: &str = "manifest.sha256";
/// The largest manifest in bytes: some hundred thousand files.
const LARGEST_MANIFEST: u64 = 64 << 20;
/// The longest path of a file in bytes.
const LARGEST_NAME: u64 = 64 << 10;

/// Writes the files of a directory to a new archive, readable by its owner alone. The directory holds
/// the archive until it is whole, and is on the same file system.
pub(super) fn write(
    from: &Path,
    manifest: &Manifest,
    file: &Path,
    stop: &Stop,
) -> Result<(), BackupError> {
    let failed = BackupError::file(file);
    let text = serde_json::to_vec_pretty(manifest).map_err(|e| failed(e.into()))?;
    let staged = NamedTempFile::new_in(from).map_err(&failed)?;
    let mut tar = Builder::new(BufWriter::new(staged));
    let mut add = |path: &str, mode: u32, bytes: u64, content: &mut dyn Read| {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Regular);
        header.set_mode(mode);
        header.set_size(bytes);
        header.set_mtime(manifest.made_at_s);
        tar.append_data(&mut header, path, content)
    };
    add(MANIFEST, 0o600, text.len() as u64, &mut text.as_slice()).map_err(&failed)?;
    for part in &manifest.files {
        let path = from.join(&part.path);
        let failed = BackupError::file(&path);
        let mut content = stop.reader(File::open(&path).map_err(&failed)?);
        add(&part.path, part.mode, part.bytes, &mut content).map_err(&failed)?;
    }
    let digest = hex(&Sha256::digest(&text));
    let bytes = digest.len() as u64;
    add(DIGEST, 0o600, bytes, &mut digest.as_bytes()).map_err(&failed)?;
    let mut written = tar.into_inner().map_err(&failed)?;
    written.flush().map_err(&failed)?;
    let staged = written.into_inner().map_err(|e| failed(e.into_error()))?;
    staged.as_file().sync_all().map_err(&failed)?;
    stop.check()?;
    staged.persist_noclobber(file).map_err(|e| match e.error {
        e if e.kind() == io::ErrorKind::AlreadyExists => BackupError::Exists(file.to_owned()),
        e => failed(e),
    })?;
    files::sync(files::parent(file))
}

/// Unpacks an archive into an empty directory. Each file is as the manifest says, and all are there.
pub(super) fn extract(file: &Path, to: &Path, stop: &Stop) -> Result<Manifest, BackupError> {
    let opened = File::open(file).map_err(BackupError::file(file))?;
    check_extensions(&opened, file)?;
    let mut archive = Archive::new(BufReader::new(opened));
    let damaged = |why: String| BackupError::Damaged {
        path: file.to_owned(),
        why,
    };
    let unreadable = |e: io::Error| damaged(e.to_string());
    let mut entries = archive.entries().map_err(unreadable)?;
    let (manifest, digest) = manifest(&mut entries, file)?;
    let mut expected = expected(&manifest).map_err(&damaged)?;
    check_list(&manifest)?.map_err(&damaged)?;
    let mut is_complete = false;
    for entry in entries {
        let mut entry = entry.map_err(unreadable)?;
        let path = entry.path().map_err(unreadable)?.into_owned();
        if is_complete {
            return Err(damaged(format!("{} follows its end", path.display())));
        }
        if path == Path::new(DIGEST) {
            is_complete = confirms(&mut entry, &digest).map_err(unreadable)?;
            if !is_complete {
                return Err(damaged(
                    "its list of contents has another digest".to_owned(),
                ));
            }
            continue;
        }
        let part = expected.remove(&path);
        let part = part.ok_or_else(|| damaged(format!("{} is not in its list", path.display())))?;
        unpack(&mut entry, &to.join(&path), part, stop).map_err(|e| match e {
            Unpacked::Other(e) => e,
            Unpacked::Damaged(why) => damaged(format!("{}: {why}", path.display())),
        })?;
    }
    match expected.keys().next() {
        Some(missing) => Err(damaged(format!(
            "{} is missing: it was cut off",
            missing.display()
        ))),
        None if !is_complete => Err(damaged("its end is missing: it was cut off".to_owned())),
        None => Ok(manifest),
    }
}

/// Refuses headers that the parser would read whole into memory, before it does, and those that may
/// change where the next header is, so that the parser sees what was checked. Backups have none of these,
/// except names that are longer than a plain header holds.
fn check_extensions(mut opened: &File, file: &Path) -> Result<(), BackupError> {
    let mut archive = Archive::new(opened);
    let entries = archive.entries_with_seek().map(|all| all.raw(true));
    let mut is_first = true;
    // What cannot be read here is reported when it is unpacked.
    for entry in entries.into_iter().flatten().map_while(Result::ok) {
        let kind = entry.header().entry_type();
        let is_name = kind.is_gnu_longname() || kind.is_gnu_longlink();
        let is_refused = kind.is_pax_local_extensions()
            || kind.is_gnu_sparse()
            || (is_name && entry.size() > LARGEST_NAME);
        if is_refused {
            let path = file.to_owned();
            let why = "it has an extension header that backups do not have".to_owned();
            return Err(match is_first {
                true => BackupError::Foreign { path, why },
                false => BackupError::Damaged { path, why },
            });
        }
        is_first = false;
    }
    opened.rewind().map_err(BackupError::file(file))
}

/// The first entry. Whatever does not begin with it was made by something else.
fn manifest(
    entries: &mut Entries<'_, impl Read>,
    file: &Path,
) -> Result<(Manifest, String), BackupError> {
    let foreign = |why: String| BackupError::Foreign {
        path: file.to_owned(),
        why,
    };
    let first = entries
        .next()
        .ok_or_else(|| foreign("it is empty".to_owned()))?;
    let first = first.map_err(|e| foreign(format!("it is no tar archive ({e})")))?;
    let is_ours = first.path().is_ok_and(|path| path == Path::new(MANIFEST));
    if !is_ours {
        return Err(foreign(format!("it does not begin with {MANIFEST}")));
    }
    let mut text = Vec::new();
    let size = first.size();
    let read = first.take(LARGEST_MANIFEST).read_to_end(&mut text);
    if read.is_err() || text.len() as u64 != size {
        let why = format!("{MANIFEST} is cut off, or larger than {LARGEST_MANIFEST} bytes");
        let path = file.to_owned();
        return Err(BackupError::Damaged { path, why });
    }
    let digest = hex(&Sha256::digest(&text));
    Ok((parse(&text, file)?, digest))
}

fn parse(text: &[u8], file: &Path) -> Result<Manifest, BackupError> {
    #[derive(serde::Deserialize)]
    struct Head {
        format: String,
        version: u32,
    }
    let path = file.to_owned();
    let head: Head = serde_json::from_slice(text).map_err(|e| BackupError::Foreign {
        path: path.clone(),
        why: format!("{MANIFEST}: {e}"),
    })?;
    if head.format != FORMAT {
        let why = format!("its format is {:?}", head.format);
        return Err(BackupError::Foreign { path, why });
    }
    if head.version > VERSION {
        let found = head.version;
        return Err(BackupError::Newer { path, found });
    }
    serde_json::from_slice(text).map_err(|e| BackupError::Damaged {
        path,
        why: format!("{MANIFEST}: {e}"),
    })
}

/// The files to come by their paths, none of which leads out of the directory.
fn expected(manifest: &Manifest) -> Result<BTreeMap<PathBuf, &FilePart>, String> {
    let mut expected = BTreeMap::new();
    for part in &manifest.files {
        let path = PathBuf::from(&part.path);
        let is_within = path.components().all(|c| matches!(c, Component::Normal(_)));
        if !is_within || part.path.is_empty() {
            return Err(format!(
                "{:?} is no path within a data directory",
                part.path
            ));
        }
        if expected.insert(path, part).is_some() {
            return Err(format!("{:?} is listed twice", part.path));
        }
    }
    Ok(expected)
}

fn confirms(entry: &mut Entry<'_, impl Read>, digest: &str) -> io::Result<bool> {
    let mut text = String::new();
    let longest = digest.len() as u64 + 1;
    entry.take(longest).read_to_string(&mut text)?;
    Ok(text == digest)
}

enum Unpacked {
    Damaged(String),
    Other(BackupError),
}

fn unpack(
    entry: &mut Entry<'_, impl Read>,
    to: &Path,
    part: &FilePart,
    stop: &Stop,
) -> Result<(), Unpacked> {
    if entry.header().entry_type() != EntryType::Regular || entry.size() != part.bytes {
        return Err(Unpacked::Damaged("it is not as it is listed".to_owned()));
    }
    let mut file = files::create(to, part.mode).map_err(Unpacked::Other)?;
    let copied = copy_digested(stop.reader(entry), &mut file);
    let (bytes, sha256) = copied.map_err(|e| match e.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::Other => Unpacked::Damaged(e.to_string()),
        _ => Unpacked::Other(BackupError::file(to)(e)),
    })?;
    if bytes != part.bytes {
        return Err(Unpacked::Damaged("it was cut off".to_owned()));
    }
    if sha256 != part.sha256 {
        return Err(Unpacked::Damaged(
            "its content has another digest".to_owned(),
        ));
    }
    Ok(())
}
