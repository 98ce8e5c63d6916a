//! `tars proposals watch`: a proposal followed to what somebody waits for.

use super::{Until, assessment_state, show, state};
use crate::{
    commands::{CommandError, events, listing::short, progress::Progress, session::Session},
    rest::Rest,
};
use indicatif::ProgressBar;
use serde_json::Value;
use std::process::ExitCode;
use uuid::Uuid;

pub(super) async fn watch(
    session: &mut Session,
    id: Uuid,
    until: Option<Until>,
    json: bool,
) -> Result<ExitCode, CommandError> {
    // An id that does not exist is refused before the stream.
    let mut last = show::read(&session.rest(), id).await?;
    let until = until.unwrap_or_else(|| Until::next(&last));
    let goes_on = format!("`tars proposals watch {id}`");
    let mut shown = Shown::new(json);
    let events = events_of(&id.to_string());
    let followed = events::follow(session, &events, &goes_on, |item| {
        last = item["proposal"].clone();
        shown.show(item);
        !until.is_reached(&last)
    });
    followed.await?;
    drop(shown);
    if !json {
        show::outcome(&last);
    }
    if !until.is_good(&last) {
        return Err(CommandError::Failed(show::shortfall(&last, until)));
    }
    if !json {
        show::next_step(&last);
    }
    Ok(ExitCode::SUCCESS)
}

/// Follows a proposal with one credential, and returns it as it is in the end. For a mesh that this
/// process serves.
pub(in crate::commands) async fn follow_until(
    rest: &Rest,
    id: &str,
    until: Until,
    mut each: impl FnMut(&Value),
) -> Result<Value, CommandError> {
    let mut last = Value::Null;
    let goes_on = format!("`tars proposals watch {id}`");
    let events = events_of(id);
    let followed = events::follow_with(rest, &events, &goes_on, |item| {
        last = item["proposal"].clone();
        each(item);
        !until.is_reached(&last)
    });
    followed.await?;
    Ok(last)
}

fn events_of(id: &str) -> String {
    format!("/api/v1/sync/proposals/{id}/events?with_progress=true")
}

/// How many training runs of a measurement have ended, while one is made.
pub(in crate::commands) fn training_runs(item: &Value) -> Option<String> {
    let progress = item["progress"].as_object()?;
    // A zero is left out of JSON.
    let ended = progress
        .get("runs_ended")
        .map_or_else(|| "0".to_owned(), short);
    Some(format!(
        "{ended} of {} training runs",
        short(&progress["runs"])
    ))
}

/// What has been printed of a proposal: a line for each of its states, and on a terminal how far its
/// measurement is.
struct Shown {
    json: bool,
    line: String,
    progress: Progress,
    measuring: Option<ProgressBar>,
}

impl Shown {
    fn new(json: bool) -> Self {
        Self {
            json,
            line: String::new(),
            progress: Progress::new(json),
            measuring: None,
        }
    }

    fn show(&mut self, item: &Value) {
        if self.json {
            say!("{item}");
            return;
        }
        let proposal = &item["proposal"];
        let (state, assessment) = (state(proposal), assessment_state(proposal));
        let line = format!("{state} (assessment {assessment})");
        if line != self.line {
            self.clear();
            say!("{line}");
            self.line = line;
        }
        let Some(what) = measured(&state, &assessment) else {
            return self.clear();
        };
        let begin = || self.progress.spinner(what);
        let bar = self.measuring.get_or_insert_with(begin);
        // The replica that measures alone knows how far it is.
        bar.set_message(training_runs(item).unwrap_or_default());
    }

    fn clear(&mut self) {
        if let Some(bar) = self.measuring.take() {
            bar.finish_and_clear();
        }
    }
}

/// What is being measured of a proposal.
fn measured(state: &str, assessment: &str) -> Option<&'static str> {
    match (state, assessment) {
        ("verifying", _) => Some("verifying"),
        ("pending_approval" | "approved", "pending") => Some("assessing"),
        _ => None,
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Until::{Assessed, Decided, Ended};
    use serde_json::json;

    fn proposal(state: &str, assessment: &str) -> Value {
        json!({ "state": format!("PROPOSAL_STATE_{state}"),
                "assessment_state": format!("ASSESSMENT_STATE_{assessment}") })
    }

    #[test]
    fn a_proposal_is_followed_to_what_it_waits_for_unless_told_otherwise() {
        for (state, assessment, next) in [
            ("PENDING_APPROVAL", "PENDING", Assessed),
            ("PENDING_APPROVAL", "COMPLETED", Decided),
            ("PENDING_APPROVAL", "FAILED", Decided),
            ("APPROVED", "PENDING", Ended),
            ("VERIFYING", "COMPLETED", Ended),
        ] {
            assert_eq!(Until::next(&proposal(state, assessment)), next, "{state}");
        }
    }

    #[test]
    fn a_measurement_is_shown_whoever_makes_it() {
        for (state, assessment, shown) in [
            ("pending_approval", "pending", Some("assessing")),
            ("approved", "pending", Some("assessing")),
            ("approved", "completed", None),
            ("applying", "pending", None),
            ("verifying", "completed", Some("verifying")),
            ("withdrawn", "pending", None),
        ] {
            assert_eq!(measured(state, assessment), shown, "{state} {assessment}");
        }
    }

    #[test]
    fn the_progress_of_a_measurement_is_in_training_runs() {
        for (progress, shown) in [
            (
                json!({ "runs_ended": 5, "runs": 16 }),
                Some("5 of 16 training runs"),
            ),
            (json!({ "runs": 16 }), Some("0 of 16 training runs")),
            (Value::Null, None),
        ] {
            let item = json!({ "proposal": {}, "progress": progress });
            assert_eq!(training_runs(&item).as_deref(), shown);
        }
    }

    #[test]
    fn each_state_is_the_end_of_some_watches_and_good_for_some() {
        let (no, yes) = (None, Some(true));
        let bad = Some(false);
        for (state, assessment, assessed, decided, ended) in [
            ("PENDING_APPROVAL", "PENDING", no, no, no),
            ("PENDING_APPROVAL", "COMPLETED", yes, no, no),
            ("PENDING_APPROVAL", "FAILED", bad, no, no),
            ("APPROVED", "PENDING", no, yes, no),
            ("APPROVED", "COMPLETED", yes, yes, no),
            ("APPLYING", "NOT_MADE", bad, yes, no),
            ("GIVING_UP", "NOT_MADE", bad, yes, no),
            ("VERIFYING", "COMPLETED", yes, yes, no),
            ("ROLLING_BACK", "COMPLETED", yes, yes, no),
            ("REJECTED", "COMPLETED", yes, bad, bad),
            ("WITHDRAWN", "NOT_MADE", bad, bad, bad),
            ("COMPLETED", "COMPLETED", yes, yes, yes),
            ("ROLLED_BACK", "COMPLETED", yes, yes, bad),
            ("FAILED", "COMPLETED", yes, yes, bad),
            ("NEEDS_ATTENTION", "COMPLETED", yes, yes, bad),
            ("KEPT", "NOT_MADE", bad, yes, bad),
        ] {
            let proposal = proposal(state, assessment);
            for (until, end) in [(Assessed, assessed), (Decided, decided), (Ended, ended)] {
                let reached = until.is_reached(&proposal);
                let shown = reached.then(|| until.is_good(&proposal));
                assert_eq!(shown, end, "{state} {assessment} {until:?}");
            }
        }
    }
}
