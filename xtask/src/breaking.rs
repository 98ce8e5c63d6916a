//! The contract does not break whoever uses it: `buf breaking` against the last release, or before
//! there is one, against the first commit. What was broken on purpose is listed with its reason in
//! `proto/breaking.json`; what is listed and no longer broken is a mistake too.

use crate::{Outcome, tools};
use serde::Deserialize;
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// What `buf breaking` exits with when something is broken.
const BROKEN: i32 = 100;
const EXCEPTIONS: &str = "proto/breaking.json";

/// One broken rule, as buf tells it and as it is listed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
struct Break {
    #[serde(alias = "type")]
    rule: String,
    message: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Exception {
    rule: String,
    message: String,
    reason: String,
}

pub(crate) fn check(buf: &Path) -> Outcome {
    let Some(baseline) = baseline()? else {
        eprintln!(
            "breaking: NOT CHECKED: there is no history to compare the contract with; \
             run `git fetch --unshallow --tags`"
        );
        return Ok(());
    };
    let before = extract(&baseline)?;
    let found = broken(buf, &before)?;
    let path = tools::root().join(EXCEPTIONS);
    let text = fs::read_to_string(&path).map_err(|e| format!("{EXCEPTIONS}: {e}"))?;
    let listed: Vec<Exception> =
        serde_json::from_str(&text).map_err(|e| format!("{EXCEPTIONS}: {e}"))?;
    compare(&found, &listed).map_err(|e| format!("the contract against {baseline}: {e}"))?;
    eprintln!(
        "breaking: good against {baseline}, {} exceptions",
        listed.len()
    );
    Ok(())
}

/// The last release's tag, else the first commit; `None` where history has neither. A check against
/// whatever commit a shallow clone happens to begin with would prove nothing.
fn baseline() -> Result<Option<String>, String> {
    let tag = ["describe", "--tags", "--abbrev=0", "--match", "v[0-9]*"];
    if let Ok(tag) = tools::read(git().args(tag)) {
        return Ok(Some(tag.trim().to_owned()));
    }
    let shallow = ["rev-parse", "--is-shallow-repository"];
    match tools::read(git().args(shallow)) {
        Ok(answer) if answer.trim() == "false" => {}
        _ => return Ok(None),
    }
    let roots = tools::read(git().args(["rev-list", "--max-parents=0", "HEAD"]))?;
    let first = roots.lines().last().ok_or("there is no first commit")?;
    Ok(Some(first.to_owned()))
}

fn git() -> Command {
    let mut git = Command::new("git");
    git.current_dir(tools::root());
    git
}

/// The protos as they were.
fn extract(baseline: &str) -> Result<PathBuf, String> {
    let before = tools::dir().join("baseline");
    if before.exists() {
        fs::remove_dir_all(&before).map_err(|e| format!("{}: {e}", before.display()))?;
    }
    fs::create_dir_all(&before).map_err(|e| format!("{}: {e}", before.display()))?;
    let mut archive = git()
        .args(["archive", baseline, "proto"])
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|e| format!("git archive: {e}"))?;
    let archived = archive.stdout.take().ok_or("git archive has no output")?;
    let mut tar = Command::new("tar");
    tools::run(tar.arg("-x").arg("-C").arg(&before).stdin(archived))?;
    let status = archive.wait().map_err(|e| format!("git archive: {e}"))?;
    if status.success() {
        Ok(before.join("proto"))
    } else {
        Err(format!("git archive {baseline}: {status}"))
    }
}

fn broken(buf: &Path, before: &Path) -> Result<BTreeSet<Break>, String> {
    let output = Command::new(buf)
        .args(["breaking", "--error-format", "json", "--against"])
        .arg(before)
        .current_dir(tools::root().join("proto"))
        .output()
        .map_err(|e| format!("buf breaking: {e}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    match output.status.code() {
        Some(0) => Ok(BTreeSet::new()),
        Some(BROKEN) => parse(&text),
        _ => Err(format!(
            "buf breaking: {}",
            String::from_utf8_lossy(&output.stderr)
        )),
    }
}

/// One object a line.
fn parse(text: &str) -> Result<BTreeSet<Break>, String> {
    let line = |line: &str| serde_json::from_str(line).map_err(|e| format!("buf said {line}: {e}"));
    text.lines()
        .filter(|l| !l.trim().is_empty())
        .map(line)
        .collect()
}

fn compare(found: &BTreeSet<Break>, listed: &[Exception]) -> Outcome {
    let mut known = BTreeSet::new();
    for exception in listed {
        if exception.reason.trim().is_empty() {
            return Err(format!(
                "{:?} is listed without a reason",
                exception.message
            ));
        }
        known.insert(Break {
            rule: exception.rule.clone(),
            message: exception.message.clone(),
        });
    }
    let lines = |title: &str, breaks: BTreeSet<&Break>| -> String {
        let line = |b: &&Break| format!("\n  {title}: {}: {}", b.rule, b.message);
        breaks.iter().map(line).collect()
    };
    let new = lines("broken", found.difference(&known).collect());
    let gone = lines(
        "no longer broken, remove from the list",
        known.difference(found).collect(),
    );
    if new.is_empty() && gone.is_empty() {
        return Ok(());
    }
    Err(format!("{new}{gone}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = r#"{"path":"tars/a.proto","start_line":3,"type":"FIELD_NO_DELETE","message":"Field 1 was deleted."}"#;

    fn listed(message: &str, reason: &str) -> Vec<Exception> {
        vec![Exception {
            rule: "FIELD_NO_DELETE".into(),
            message: message.into(),
            reason: reason.into(),
        }]
    }

    #[test]
    fn the_list_of_breaking_changes_is_exact() {
        let found = parse(SAID).unwrap();
        assert_eq!(found.len(), 1);
        compare(&found, &listed("Field 1 was deleted.", "never released")).unwrap();
        compare(&BTreeSet::new(), &[]).unwrap();
        for (found, listed) in [
            (found.clone(), vec![]),
            (
                found.clone(),
                listed("Field 2 was deleted.", "never released"),
            ),
            (found, listed("Field 1 was deleted.", " ")),
            (
                BTreeSet::new(),
                listed("Field 1 was deleted.", "never released"),
            ),
        ] {
            assert!(compare(&found, &listed).is_err(), "{found:?} {listed:?}");
        }
        assert!(parse("not what buf says").is_err());
    }
}
