//! `tars proposals watch`: a proposal followed to what somebody waits for.

use super::{assessment_state, path, show, state};
use crate::commands::{CommandError, events, session::Session};
use clap::ValueEnum;
use serde_json::Value;
use std::process::ExitCode;
use uuid::Uuid;

/// What to wait for. A proposal that ends or needs a person is followed no further in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Until {
    /// Until it is measured against the live values, or cannot be.
    Assessed,
    /// Until it is approved, rejected or withdrawn.
    Decided,
    /// Until it is applied and verified, or ends otherwise.
    Ended,
}

impl Until {
    /// What a proposal waits for now.
    fn next(proposal: &Value) -> Self {
        match state(proposal).as_str() {
            "pending_approval" if assessment_state(proposal) == "pending" => Self::Assessed,
            "pending_approval" => Self::Decided,
            _ => Self::Ended,
        }
    }

    fn is_reached(self, proposal: &Value) -> bool {
        match state(proposal).as_str() {
            "pending_approval" => self == Self::Assessed && assessment_state(proposal) != "pending",
            "approved" if self == Self::Assessed => assessment_state(proposal) != "pending",
            "approved" | "applying" | "verifying" | "rolling_back" => self != Self::Ended,
            _ => true,
        }
    }

    fn is_good(self, proposal: &Value) -> bool {
        let state = state(proposal);
        match self {
            Self::Assessed => assessment_state(proposal) == "completed",
            Self::Decided => !["pending_approval", "rejected", "withdrawn"].contains(&&*state),
            Self::Ended => state == "completed",
        }
    }
}

pub(super) async fn watch(
    session: &mut Session,
    id: Uuid,
    until: Option<Until>,
    json: bool,
) -> Result<ExitCode, CommandError> {
    // An id that does not exist is refused before the stream.
    let mut last = show::read(&session.rest(), id).await?;
    let until = until.unwrap_or_else(|| Until::next(&last));
    let mut printed = String::new();
    let goes_on = format!("`tars proposals watch {id}`");
    let events = format!("{}/events", path(id));
    let followed = events::follow(session, &events, &goes_on, |item| {
        last = item["proposal"].clone();
        let line = format!("{} (assessment {})", state(&last), assessment_state(&last));
        if json {
            say!("{item}");
        } else if line != printed {
            say!("{line}");
            printed = line;
        }
        !until.is_reached(&last)
    });
    followed.await?;
    if !json {
        show::outcome(&last);
    }
    Ok(ExitCode::from(u8::from(!until.is_good(&last))))
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
