//! Why a run of the mesh failed, in words, and what helps.

use super::listing::text;
use serde_json::Value;
use tars_proto::reason;

/// Reasons of runs that failed, each in words, with what helps.
const CAUSES: &[(&str, &str, &str)] = &[
    (
        reason::HOST_GONE,
        "its host is gone",
        "lend its environment again (`tars_env.py`), then start it anew with `tars training start`",
    ),
    (
        reason::HOST_LATE,
        "its host was too slow",
        "fewer `--steps` take less time",
    ),
    (
        reason::DIVERGED,
        "it diverged",
        "`tars training start --preset` trains with hyperparameters that are known to learn",
    ),
    (
        reason::NOT_SAVED,
        "its process ended, and what is lent cannot be saved",
        "`tars training start` starts it anew",
    ),
    (
        reason::INTERNAL,
        "the service failed",
        "the log of Orchestration says why",
    ),
];

/// Why a run failed, in words, and what helps; `None` where it did not fail, or for a reason that is not known here.
pub(super) fn of(run: &Value) -> Option<(&'static str, &'static str)> {
    let reason = text(&run["error_reason"]);
    let found = CAUSES.iter().find(|(known, ..)| *known == reason);
    found.map(|(_, words, helps)| (*words, *helps))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_reason_is_told_in_words_with_what_helps() {
        let run = |reason: &str| json!({ "error_reason": reason });
        let (words, helps) = of(&run("HOST_GONE")).unwrap();
        assert_eq!(words, "its host is gone");
        assert!(helps.contains("tars training start"), "{helps}");
        for unknown in ["", "ELSE"] {
            assert_eq!(of(&run(unknown)), None);
        }
        for (_, words, helps) in CAUSES {
            assert!(!words.contains('_') && !helps.contains("HOST"), "{words}");
        }
    }
}
