//! What a person can do about a refusal, by its reason.

use super::CommandError;
use crate::rest::RestError;

/// Adds the advice for the reason of a refusal; other errors stay as they are.
pub(super) fn add(error: RestError, advice: &[(&str, String)]) -> CommandError {
    let known = |reason| advice.iter().find(|(r, _)| *r == reason);
    match error.reason().and_then(known) {
        Some((_, advice)) => CommandError::Advised {
            advice: advice.clone(),
            error: Box::new(error),
        },
        None => error.into(),
    }
}

/// The refusal without what the service advises, which is for callers of its API: it stands after the
/// last semicolon.
pub(super) fn problem(error: &RestError) -> String {
    let text = error.to_string();
    match (error, text.rsplit_once("; ")) {
        (RestError::Refused { status, .. }, Some((problem, _))) => format!("{problem} ({status})"),
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{Method, StatusCode};
    use serde_json::json;

    fn refused(reason: &str) -> RestError {
        RestError::Refused {
            method: Method::POST,
            path: "/x".to_owned(),
            status: StatusCode::FORBIDDEN,
            message: "no".to_owned(),
            body: json!({ "details": [{ "domain": "tars", "reason": reason }] }),
        }
    }

    #[test]
    fn advice_for_callers_of_the_api_gives_way_to_that_for_users_of_the_command() {
        let RestError::Refused {
            method,
            path,
            status,
            body,
            ..
        } = refused("STALE")
        else {
            panic!("it is refused");
        };
        let error = RestError::Refused {
            method,
            path,
            status,
            message: "it is stale: 3; 5 is live; call WithdrawProposal".to_owned(),
            body,
        };
        let advised = add(error, &[("STALE", "withdraw it".to_owned())]).to_string();
        assert!(
            advised.contains("it is stale: 3; 5 is live (403"),
            "{advised}"
        );
        assert!(advised.ends_with("; withdraw it"), "{advised}");
        assert!(!advised.contains("WithdrawProposal"), "{advised}");
    }

    #[test]
    fn advice_follows_the_reason_and_keeps_the_exit_code() {
        let advice = [("FOUR_EYES", "ask somebody else".to_owned())];
        let advised = add(refused("FOUR_EYES"), &advice);
        assert!(advised.to_string().ends_with("; ask somebody else"));
        assert_eq!(advised.exit_code(), 77);
        let other = add(refused("OTHER"), &advice);
        assert!(!other.to_string().contains("ask somebody"), "{other}");
        assert_eq!(other.exit_code(), 77);
    }
}
