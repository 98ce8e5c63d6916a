//! What services say, in the words of the command line. Their messages are for every client, and name methods, fields
//! and values of the API; whoever types commands knows those by the names of commands and flags.

use crate::rest::RestError;
use serde_json::Value;

/// Methods, fields and values of the API, and what they are called here.
const WORDS: &[(&str, &str)] = &[
    ("CompareAgent", "`tars agents compare`"),
    ("GetCalibration", "`tars agents calibration`"),
    ("PromoteAgent", "`tars agents promote`"),
    ("SyncService.ProposePromotion", "`tars proposals promote`"),
    ("ResolveProposal", "`tars proposals resolve`"),
    ("WatchProposal", "`tars proposals watch`"),
    ("RESOLUTION_KEEP_LIVE", "keep-live"),
    ("RESOLUTION_ROLL_BACK", "roll-back"),
    ("expected_version", "--expect-version"),
    ("expected_weights_version", "--expect-version"),
    ("intermediate_value", "value"),
    ("n_trials", "--trials"),
    ("page_size", "--limit"),
    ("pruner_type", "--pruner"),
    ("sampler_type", "--sampler"),
    ("search_space", "--space"),
    ("to_stage", "--stage"),
    ("verification_seeds", "--verification-seeds"),
    ("without_assessment", "--without-assessment"),
];

/// The end of a text that its service has cut.
const CUT: char = '…';

/// A text of a service in the words of the command line.
pub(super) fn text(said: &str) -> String {
    let mut plain = String::with_capacity(said.len());
    let mut rest = said;
    while let Some(first) = rest.chars().next() {
        let end = word_end(rest).max(first.len_utf8());
        let (word, after) = rest.split_at(end);
        let known = WORDS.iter().find(|(name, _)| *name == word);
        plain.push_str(known.map_or(word, |(_, here)| here));
        rest = after;
    }
    plain
}

/// Where the name at the start of a text ends; 0 where none is there. A point is a part of it before a letter.
fn word_end(text: &str) -> usize {
    let mut chars = text.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        let next = chars.peek().map(|(_, next)| *next);
        let joins = c == '.' && at > 0 && next.is_some_and(char::is_alphanumeric);
        if !(c.is_alphanumeric() || c == '_' || joins) {
            return at;
        }
    }
    text.len()
}

/// A refusal as it is told: without the method and the path of the call, which nobody typed, and with what the details
/// have of a message that was cut.
pub(super) fn refusal(error: &RestError) -> String {
    let RestError::Refused {
        status,
        message,
        body,
        ..
    } = error
    else {
        return text(&error.to_string());
    };
    format!("{} ({status})", text(&whole(message, body)))
}

/// The whole message of a refusal.
pub(super) fn whole(message: &str, body: &Value) -> String {
    if !message.ends_with(CUT) {
        return message.to_owned();
    }
    let listed: Vec<String> = violations(body).collect();
    match listed.is_empty() {
        true => format!("{message} (cut short; --json has the details that there are)"),
        false => listed.join("; "),
    }
}

/// The violations of fields in the details of a refusal, each as the message says it.
fn violations(body: &Value) -> impl Iterator<Item = String> {
    let details = body["details"].as_array().into_iter().flatten();
    let listed = details.flat_map(|detail| detail["field_violations"].as_array());
    listed.flatten().map(|violation| {
        let of = |name: &str| violation[name].as_str().unwrap_or_default();
        match (of("field"), of("description")) {
            ("", description) => description.to_owned(),
            (field, description) => format!("{field}: {description}"),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{Method, StatusCode};
    use serde_json::json;

    fn refused(message: &str, details: Value) -> RestError {
        RestError::Refused {
            method: Method::POST,
            path: "/api/v1/optimize".to_owned(),
            status: StatusCode::BAD_REQUEST,
            message: message.to_owned(),
            body: json!({ "message": message, "details": details }),
        }
    }

    #[test]
    fn names_of_the_api_are_those_of_commands_and_flags() {
        for (said, plain) in [
            (
                "n_trials: must be at least 1",
                "--trials: must be at least 1",
            ),
            (
                "it was not compared: CompareAgent does",
                "it was not compared: `tars agents compare` does",
            ),
            (
                "as orchestration.governed_promotion says: SyncService.ProposePromotion.",
                "as orchestration.governed_promotion says: `tars proposals promote`.",
            ),
            ("CompareAgents, my_n_trials", "CompareAgents, my_n_trials"),
            ("größer… (ß.ß)", "größer… (ß.ß)"),
            ("", ""),
        ] {
            assert_eq!(text(said), plain);
        }
    }

    #[test]
    fn a_refusal_names_no_path() {
        let told = refusal(&refused("n_trials: must be at least 1", json!([])));
        assert_eq!(told, "--trials: must be at least 1 (400 Bad Request)");
    }

    #[test]
    fn a_message_that_was_cut_is_told_whole_or_says_that_it_was() {
        let violation = |field: &str| json!({ "field": field, "description": "is wrong" });
        let listed = json!([
            { "domain": "tars", "reason": "INVALID_FIELD" },
            { "field_violations": [violation("a"), violation("n_trials"), violation("")] },
        ]);
        let told = refusal(&refused("a: is wro…", listed.clone()));
        assert_eq!(
            told,
            "a: is wrong; --trials: is wrong; is wrong (400 Bad Request)"
        );
        let told = refusal(&refused("a: is wrong", listed));
        assert_eq!(told, "a: is wrong (400 Bad Request)");
        let told = refusal(&refused("it is stale because…", json!([])));
        assert!(told.contains("cut short; --json"), "{told}");
    }
}
