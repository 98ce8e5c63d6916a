//! Which messages hold secrets: those with a field that is marked with `debug_redact`, at any depth.

use prost_reflect::{FieldDescriptor, Kind, MessageDescriptor, MethodDescriptor};
use std::collections::HashSet;

/// Whether the request or the response of a method holds a secret.
pub(super) fn is_held(method: &MethodDescriptor) -> bool {
    let mut seen = HashSet::new();
    holds(&method.input(), &mut seen) || holds(&method.output(), &mut seen)
}

fn holds(message: &MessageDescriptor, seen: &mut HashSet<String>) -> bool {
    // Messages may contain each other.
    if !seen.insert(message.full_name().to_owned()) {
        return false;
    }
    message.fields().any(|field| match field.kind() {
        _ if is_marked(&field) => true,
        Kind::Message(inner) => holds(&inner, seen),
        _ => false,
    })
}

fn is_marked(field: &FieldDescriptor) -> bool {
    let options = field.options();
    let mark = options.get_field_by_name("debug_redact");
    mark.and_then(|mark| mark.as_bool()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::pool;

    fn is_secret(path: &str) -> bool {
        let (service, name) = path.split_once('/').unwrap();
        let service = pool().get_service_by_name(service).unwrap();
        let method = service.methods().find(|m| m.name() == name).unwrap();
        is_held(&method)
    }

    #[test]
    fn methods_that_take_or_return_a_secret_are_known() {
        for secret in [
            "tars.auth.v1.AuthService/Login",
            "tars.auth.v1.AuthService/Refresh",
            "tars.auth.v1.AuthService/ChangePassword",
            "tars.auth.v1.UserService/CreateUser",
            "tars.auth.v1.ApiKeyService/CreateApiKey",
            "tars.auth.v1.ApiKeyService/RotateApiKey",
            "tars.auth.v1.CertificateService/CreateJoinToken",
            "tars.auth.v1.BootstrapService/IssueWithToken",
        ] {
            assert!(is_secret(secret), "{secret}");
        }
        for open in [
            "tars.auth.v1.AuthService/GetMe",
            "tars.auth.v1.ApiKeyService/ListApiKeys",
            "tars.orchestration.v1.TrainingService/WatchTraining",
        ] {
            assert!(!is_secret(open), "{open}");
        }
    }

    /// The names that secrets have here. A field with such a name is marked, or is listed as none.
    #[test]
    fn no_field_that_is_named_like_a_secret_is_without_the_mark() {
        let harmless = ["token_type", "page_token", "next_page_token"];
        let named = |name: &str| {
            let words = ["password", "token", "secret", "api_key"];
            words.iter().any(|word| name.contains(word)) && !harmless.contains(&name)
        };
        let is_text = |field: &FieldDescriptor| matches!(field.kind(), Kind::String | Kind::Bytes);
        let ours = pool()
            .all_messages()
            .filter(|m| m.package_name().starts_with("tars."));
        let fields = ours.flat_map(|message| message.fields().collect::<Vec<_>>());
        let forgotten: Vec<String> = fields
            .filter(|field| is_text(field) && named(field.name()) && !is_marked(field))
            .map(|field| field.full_name().to_owned())
            .collect();
        assert!(forgotten.is_empty(), "{forgotten:?}");
    }
}
