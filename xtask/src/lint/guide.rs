//! The names in `CONTRIBUTING.md`: a guide that names a test nobody has is worse than none.

use super::collect;
use crate::{Outcome, tools};
use std::{collections::BTreeSet, fs, path::PathBuf};

const GUIDE: &str = "CONTRIBUTING.md";

/// Fails when the guide names a test that does not exist.
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
    let guide = read(root.join(GUIDE))?;
    let unknown: Vec<&str> = named_tests(&guide)
        .filter(|name| !functions.contains(*name))
        .collect();
    if unknown.is_empty() {
        return Ok(());
    }
    Err(format!(
        "{GUIDE} names tests that do not exist: {}",
        unknown.join(", ")
    ))
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
    fn functions_are_found_in_sources() {
        let source = "async fn a_b() {}\npub(crate) fn c<T>(t: T) {}\n";
        let names: Vec<_> = functions_in(source).collect();
        assert_eq!(names, ["a_b", "c"]);
    }
}
