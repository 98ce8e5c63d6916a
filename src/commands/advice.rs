//! What a person can do about a refusal, by its reason.

use super::{CommandError, plain};
use crate::rest::RestError;
use http::StatusCode;
use serde_json::Value;
use std::fmt::Display;
use tars_credentials::permission;
use tars_proto::reason;

/// A reason, and what helps against it. `{id}` stands for the resource that the command was given,
/// `{named}` for the proposal that the refusal names.
pub(super) type Advice = (&'static str, &'static str);

/// Adds the advice for the reason of a refusal; other errors stay as they are.
pub(super) fn add(error: RestError, table: &[Advice], id: &dyn Display) -> CommandError {
    let known = |reason| table.iter().find(|(r, _)| *r == reason);
    match error.reason().and_then(known) {
        Some((_, advice)) => CommandError::Advised {
            advice: filled_in(advice, &error, id),
            error: Box::new(error),
        },
        None => of_any_call(error),
    }
}

/// Adds the advice for what is missing, by its kind; for other refusals that for their reason.
pub(super) fn add_by_kind(
    error: RestError,
    missing: &[Advice],
    table: &[Advice],
    id: &dyn Display,
) -> CommandError {
    let is_missing = error.reason() == Some(reason::NOT_FOUND);
    let kind = error.resource_kind().filter(|_| is_missing);
    let known = kind.and_then(|kind| missing.iter().find(|(known, _)| *known == kind));
    match known {
        Some((_, advice)) => CommandError::Advised {
            advice: filled_in(advice, &error, id),
            error: Box::new(error),
        },
        None => add(error, table, id),
    }
}

/// Adds the advice that helps against refusals of any call.
pub(super) fn of_any_call(error: RestError) -> CommandError {
    match general(&error) {
        Some(advice) => CommandError::Advised {
            advice,
            error: Box::new(error),
        },
        None => CommandError::Rest(error),
    }
}

fn filled_in(advice: &str, error: &RestError, id: &dyn Display) -> String {
    let named = error.resource().unwrap_or("PROPOSAL_ID");
    advice
        .replace("{id}", &id.to_string())
        .replace("{named}", named)
}

/// What helps against refusals of any call.
fn general(error: &RestError) -> Option<String> {
    let RestError::Refused {
        status, path, body, ..
    } = error
    else {
        return None;
    };
    if error.reason() == Some(reason::QUOTA_EXCEEDED) {
        return Some(of_quota(body));
    }
    if *status == StatusCode::UNAUTHORIZED && path != "/auth/login" {
        return Some("log in again with `tars login`".to_owned());
    }
    let mut details = body["details"].as_array()?.iter();
    let missing = details.find_map(|d| d["metadata"]["permission"].as_str())?;
    let mut roles = permission::default_roles();
    let (weakest, _) = roles.find(|(_, held)| held.names().contains(&missing))?;
    Some(format!("the role {weakest} has it"))
}

/// What helps where a quota is spent: to look at it, and to wait for the next month.
fn of_quota(body: &Value) -> String {
    let mut details = body["details"].as_array().into_iter().flatten();
    let resets_at = details.find_map(|d| d["metadata"]["resets_at"].as_str());
    let next = resets_at.map(|at| format!(", and the next month begins at {at}"));
    format!(
        "`tars usage show` shows what you have used and what is left{}",
        next.unwrap_or_default()
    )
}

/// The refusal without what the service advises, which is for callers of its API: it stands after the
/// last semicolon.
pub(super) fn problem(error: &RestError) -> String {
    let RestError::Refused {
        status,
        message,
        body,
        ..
    } = error
    else {
        return plain::refusal(error);
    };
    let whole = plain::whole(message, body);
    let problem = whole
        .rsplit_once("; ")
        .map_or(&*whole, |(problem, _)| problem);
    format!("{} ({status})", plain::text(problem))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Method;
    use serde_json::json;
    use uuid::Uuid;

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
        let advised = add(error, &[("STALE", "withdraw it")], &Uuid::nil()).to_string();
        assert!(
            advised.contains("it is stale: 3; 5 is live (403"),
            "{advised}"
        );
        assert!(advised.ends_with("; withdraw it"), "{advised}");
        assert!(!advised.contains("WithdrawProposal"), "{advised}");
    }

    #[test]
    fn a_refused_caller_is_told_to_log_in_or_which_role_is_needed() {
        let refused = |status, path: &str, body| RestError::Refused {
            method: Method::POST,
            path: path.to_owned(),
            status,
            message: "no".to_owned(),
            body,
        };
        let denied = |permission: &str| {
            let details = json!([{ "domain": "tars", "reason": "PERMISSION_DENIED",
                                   "metadata": { "permission": permission } }]);
            refused(StatusCode::FORBIDDEN, "/x", json!({ "details": details }))
        };
        let out = || refused(StatusCode::UNAUTHORIZED, "/x", json!({}));
        for (error, advice) in [
            (out(), Some("tars login")),
            (denied("studies.write"), Some("the role developer has it")),
            (denied("proposals.approve"), Some("the role admin has it")),
            (denied("nonsense"), None),
            (
                refused(StatusCode::UNAUTHORIZED, "/auth/login", json!({})),
                None,
            ),
        ] {
            let error = CommandError::from(error);
            assert_eq!(error.exit_code(), 77);
            let advised = matches!(error, CommandError::Advised { .. });
            assert_eq!(advised, advice.is_some(), "{error}");
            assert!(
                error.to_string().contains(advice.unwrap_or("no")),
                "{error}"
            );
        }
    }

    #[test]
    fn a_spent_quota_comes_with_where_to_look_and_when_the_month_ends() {
        let refused = |metadata| RestError::Refused {
            method: Method::POST,
            path: "/api/v1/optimize".to_owned(),
            status: StatusCode::TOO_MANY_REQUESTS,
            message: "all 5 calls are used; the next month begins at T".to_owned(),
            body: json!({ "details": [
                { "domain": "tars", "reason": "QUOTA_EXCEEDED", "metadata": metadata },
            ] }),
        };
        let looks = "`tars usage show` shows what you have used and what is left";
        let told = CommandError::from(refused(json!({ "resets_at": "2026-12-01T00:00:00Z" })));
        assert_eq!(
            told.to_string(),
            format!(
                "all 5 calls are used (429 Too Many Requests); {looks}, and the next month begins at \
                 2026-12-01T00:00:00Z"
            )
        );
        let told = CommandError::from(refused(json!({})));
        assert!(told.to_string().ends_with(looks), "{told}");
    }

    #[test]
    fn advice_about_what_is_missing_follows_its_kind() {
        let absent = |kind: &str| {
            let RestError::Refused {
                method,
                path,
                status,
                message,
                mut body,
            } = refused("NOT_FOUND")
            else {
                panic!("it is refused");
            };
            let named = json!({ "resource_type": kind, "resource_name": "x" });
            body["details"].as_array_mut().unwrap().push(named);
            RestError::Refused {
                method,
                path,
                status,
                message,
                body,
            }
        };
        let missing = [("agent", "list them"), ("rule", "show {id}")];
        let table = [("NOT_FOUND", "look")];
        for (kind, advice) in [
            ("agent", "; list them"),
            ("rule", "; show policy"),
            ("version", "; look"),
        ] {
            let advised = add_by_kind(absent(kind), &missing, &table, &"policy");
            assert!(advised.to_string().ends_with(advice), "{advised}");
        }
        let other = add_by_kind(refused("STALE"), &missing, &table, &"policy");
        assert!(other.to_string().ends_with(')'), "{other}");
    }

    #[test]
    fn advice_follows_the_reason_and_keeps_the_exit_code() {
        let advice = [("FOUR_EYES", "show {id} to somebody else")];
        let id = Uuid::nil();
        let advised = add(refused("FOUR_EYES"), &advice, &id);
        let expected = format!("; show {id} to somebody else");
        assert!(advised.to_string().ends_with(&expected));
        assert_eq!(advised.exit_code(), 77);
        let other = add(refused("OTHER"), &advice, &id);
        assert!(!other.to_string().contains("somebody else"), "{other}");
        assert_eq!(other.exit_code(), 77);
    }
}
