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
