//! The names of tests in `CONTRIBUTING.md` and in the table of attacks: a document that names a test nobody
//! has is worse than none.

use super::collect;
use crate::{Outcome, tools};
use std::{collections::BTreeSet, fs, path::PathBuf};

/// The documents that name tests.
const GUIDES: [&str; 2] = ["CONTRIBUTING.md", ATTACKS];
const ATTACKS: &str = "tests/ATTACKS.md";
/// The ids of the table of attacks, as a prefix and a count.
const IDS: [(&str, u32); 5] = [("H", 16), ("R", 14), ("L", 5), ("M", 12), ("S8.", 15)];

/// Fails when a document names a test that does not exist, or an attack has no row with a test.
pub(super) fn check() -> Outcome {
    let root = tools::root();
    let read =
        |path: PathBuf| fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()));
    let mut files = Vec::new();
    collect(&root, &mut files)?;
    let mut functions = BTreeSet::new();
    for file in files {
        functions.extend(functions_in(&read(file)?));
    }
    let mut wrong = Vec::new();
    for guide in GUIDES {
        let text = read(root.join(guide))?;
        let unknown = named_tests(&text).filter(|name| !functions.contains(*name));
        wrong.extend(unknown.map(|name| format!("{guide} names no test: {name}")));
    }
    let untested = untested(&read(root.join(ATTACKS))?);
    wrong.extend(untested.map(|id| format!("{ATTACKS} has no row with a test for {id}")));
    match wrong.is_empty() {
        true => Ok(()),
        false => Err(wrong.join("\n")),
    }
}

/// The ids that have no row with a test.
fn untested(table: &str) -> impl Iterator<Item = String> + use<> {
    let tested = table
        .lines()
        .filter(|row| named_tests(row).next().is_some());
    let tested = tested.filter_map(|row| row.strip_prefix("| ")?.split_once(" |"));
    let tested: BTreeSet<String> = tested.map(|(id, _)| id.to_owned()).collect();
    let all = IDS.iter().flat_map(|(prefix, count)| {
        let numbers = 1..=*count;
        numbers.map(move |number| format!("{prefix}{number}"))
    });
    all.filter(move |id| !tested.contains(id))
}

/// Names in backticks that look like tests: three words or more, joined by underscores.
fn named_tests(guide: &str) -> impl Iterator<Item = &str> {
    let is_word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let quoted = guide.split('`').skip(1).step_by(2);
    quoted.filter(move |name| name.matches('_').count() >= 2 && name.chars().all(is_word))
}

fn functions_in(source: &str) -> impl Iterator<Item = String> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let after = source.split("fn ").skip(1);
    after.map(move |text| text.chars().take_while(|c| is_word(*c)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guide_names_tests_in_backticks() {
        let guide = "See `a_test_of_it` and `holders` in `tests/a_b.rs`, `ONE_TWO_THREE`, or\n`a_field` and `every_b_1` a_c_d.";
        let names: Vec<_> = named_tests(guide).collect();
        assert_eq!(names, ["a_test_of_it", "every_b_1"]);
    }

    #[test]
    fn an_attack_without_a_test_is_found() {
        let mut rows = Vec::new();
        for (prefix, count) in IDS {
            rows.extend((1..=count).map(|n| format!("| {prefix}{n} | what | `a_test_of_it` |")));
        }
        assert_eq!(untested(&rows.join("\n")).count(), 0);
        rows[2] = "| H3 | what | none |".to_owned();
        rows.remove(20);
        let missing: Vec<_> = untested(&rows.join("\n")).collect();
        assert_eq!(missing, ["H3", "R5"]);
    }

    #[test]
    fn functions_are_found_in_sources() {
        let source = "async fn a_b() {}\npub(crate) fn c<T>(t: T) {}\n";
        let names: Vec<_> = functions_in(source).collect();
        assert_eq!(names, ["a_b", "c"]);
    }
}
