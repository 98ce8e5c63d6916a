//! What h2spec says of an HTTP/2 server.

use serde_json::{Value, json};

/// What a mesh port may answer otherwise: these expect DATA, and an error of gRPC is trailers only.
const EXPECTED: [&str; 2] = [
    "Sends a WINDOW_UPDATE frame on half-closed (remote) stream",
    "Sends a PRIORITY frame on half-closed (remote) stream",
];

/// What became of the cases.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Conformance {
    /// The machine has no such program.
    LeftOut,
    /// All were tried.
    Tried {
        /// The program's last word: how many passed, were skipped and failed.
        summary: String,
        /// The packages and texts of the cases that failed.
        failed: Vec<String>,
    },
}

impl Conformance {
    /// Reads what the program printed, and the report that it wrote.
    ///
    /// # Errors
    ///
    /// There is no summary, or the report has other failures than it counts: it is not understood.
    pub fn read(printed: &str, report: &str) -> Result<Self, String> {
        let summary = printed.lines().rev().find(|line| line.contains("passed"));
        let summary = summary.ok_or("h2spec printed no summary")?.to_owned();
        let failed = failures(report);
        match summary.ends_with(&format!(" {} failed", failed.len())) {
            true => Ok(Self::Tried { summary, failed }),
            false => Err(format!(
                "the report has {} failures: {summary}",
                failed.len()
            )),
        }
    }

    /// The cases that failed and may not.
    pub fn unexpected(&self) -> Vec<&str> {
        let failed = match self {
            Self::LeftOut => &[][..],
            Self::Tried { failed, .. } => failed.as_slice(),
        };
        let is_expected = |case: &&str| !EXPECTED.iter().any(|text| case.ends_with(text));
        let failed = failed.iter().map(String::as_str);
        failed.filter(is_expected).collect()
    }

    /// All of it.
    pub fn report(&self) -> Value {
        match self {
            Self::LeftOut => json!("left out"),
            Self::Tried { summary, failed } => json!({
                "summary": summary,
                "failed": failed,
                "unexpected": self.unexpected(),
            }),
        }
    }
}

fn failures(report: &str) -> Vec<String> {
    let attribute = |text: &str, name: &str| {
        let (_, rest) = text.split_once(&format!("{name}=\""))?;
        Some(rest.split_once('"')?.0.to_owned())
    };
    let cases = report.split("<testcase").skip(1);
    let mut failed = Vec::new();
    for case in cases.filter(|case| case.contains("<failure") || case.contains("<error")) {
        let package = attribute(case, "package").unwrap_or_default();
        let name = attribute(case, "classname").unwrap_or_default();
        failed.push(format!("{package}: {name}"));
    }
    failed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(name: &str, ending: &str) -> String {
        format!(
            "<testcase package=\"http2/5.1\" classname=\"{name}\" time=\"0\">{ending}</testcase>"
        )
    }

    fn read(failed: &[&str], summary: &str) -> Result<Conformance, String> {
        let good = case("Sends a DATA frame", "");
        let bad = failed
            .iter()
            .map(|name| case(name, "<failure>timeout</failure>"));
        let report = format!("<testsuites>{good}{}</testsuites>", bad.collect::<String>());
        Conformance::read(&format!("...\n{summary}\n"), &report)
    }

    #[test]
    fn cases_that_expect_data_of_a_refusal_may_fail_and_no_other() {
        let none = read(&[], "146 tests, 142 passed, 4 skipped, 0 failed").unwrap();
        assert!(none.unexpected().is_empty());
        let both = read(&EXPECTED, "146 tests, 140 passed, 4 skipped, 2 failed").unwrap();
        assert!(both.unexpected().is_empty());
        assert_eq!(both.report()["failed"].as_array().unwrap().len(), 2);
        let one = [EXPECTED[0], "Sends a RST_STREAM frame with stream ID 0x0"];
        let one = read(&one, "146 tests, 140 passed, 4 skipped, 2 failed").unwrap();
        let unexpected = ["http2/5.1: Sends a RST_STREAM frame with stream ID 0x0"];
        assert_eq!(one.unexpected(), unexpected);
    }

    #[test]
    fn what_is_not_understood_is_an_error() {
        assert!(read(&[], "panic: runtime error").is_err());
        let other = read(&["a"], "146 tests, 140 passed, 4 skipped, 2 failed");
        assert!(other.unwrap_err().contains("the report has 1 failures"));
        let eleven = read(&["a"], "146 tests, 131 passed, 4 skipped, 11 failed");
        assert!(eleven.is_err(), "not a part of the number");
    }

    #[test]
    fn without_the_program_nothing_has_failed_and_it_is_told() {
        assert!(Conformance::LeftOut.unexpected().is_empty());
        assert_eq!(Conformance::LeftOut.report(), "left out");
    }
}
