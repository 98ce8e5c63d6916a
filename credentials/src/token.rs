//! Access tokens: Ed25519 JWTs, checked strictly.
//!
//! The library verifies the signature. What it accepts by default is rejected before that:
//! oversized tokens, unknown header members, other types, missing or malformed claims, lifetimes
//! longer than the mesh issues. A token proves an identity; authorization decisions are never
//! cached with it.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde::{Deserialize, Serialize};

/// The `iss` claim of every token.
pub const ISSUER: &str = "tars-auth";
/// The `aud` claim of every token.
pub const AUDIENCE: &str = "tars";
/// The `typ` header of every token (RFC 9068).
pub const TYPE: &str = "at+jwt";
const ALG: &str = "EdDSA";
const MAX_LEN: usize = 4096;
/// The accepted clock skew between processes, in seconds.
pub const LEEWAY_S: u64 = 30;
/// The longest lifetime that configuration allows.
const MAX_LIFE_S: u64 = 86_400;

/// The claims of an access token. Each is required, and there are no others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claims {
    /// The issuer, always [`ISSUER`].
    pub iss: String,
    /// The audience, always [`AUDIENCE`].
    pub aud: String,
    /// The id of the user.
    pub sub: String,
    /// The id of the session.
    pub sid: String,
    /// A unique id of the token.
    pub jti: String,
    /// When it was issued, in seconds since the Unix epoch.
    pub iat: u64,
    /// Not valid before this second.
    pub nbf: u64,
    /// Expires at this second.
    pub exp: u64,
    /// The user's token version when the token was issued.
    pub ver: u64,
    /// The name of the user.
    pub username: String,
    /// The roles of the user at issue; those in the view take precedence.
    pub roles: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    alg: String,
    typ: String,
    kid: String,
}

/// Why a token was rejected. It is logged and counted, but not disclosed to the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// The text is longer than any token that Auth issues.
    #[error("too long")]
    Oversize,
    /// It is not a compact JWS.
    #[error("malformed")]
    Malformed,
    /// The header is not exactly the one that Auth writes.
    #[error("header")]
    Header,
    /// It names a signing key that is not valid.
    #[error("unknown key")]
    UnknownKey,
    /// The signature does not verify, or the claims are malformed.
    #[error("signature or claims")]
    Invalid,
    /// It is for another issuer or audience.
    #[error("issuer or audience")]
    Audience,
    /// It has expired.
    #[error("expired")]
    Expired,
    /// Its validity has not started.
    #[error("not yet valid")]
    NotYet,
    /// Its lifetime is longer than Auth issues, or not positive.
    #[error("life too long")]
    Life,
    /// Its session has ended, or its user was disabled or changed.
    #[error("session ended")]
    Revoked,
}

impl TokenError {
    /// The value of the `reason` label in metrics.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Oversize => "oversize",
            Self::Malformed => "malformed",
            Self::Header => "header",
            Self::UnknownKey => "unknown_key",
            Self::Invalid => "invalid",
            Self::Audience => "audience",
            Self::Expired => "expired",
            Self::NotYet => "not_yet",
            Self::Life => "life",
            Self::Revoked => "revoked",
        }
    }
}

/// The id of the signing key that a token names.
///
/// # Errors
///
/// When the token is oversized or malformed, or its header is not exactly the one that Auth writes.
pub fn key_id(token: &str) -> Result<String, TokenError> {
    if token.len() > MAX_LEN {
        return Err(TokenError::Oversize);
    }
    let mut parts = token.split('.');
    let (Some(header), Some(_), Some(_), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(TokenError::Malformed);
    };
    let bytes = URL_SAFE_NO_PAD
        .decode(header)
        .map_err(|_| TokenError::Malformed)?;
    let header: Header = serde_json::from_slice(&bytes).map_err(|_| TokenError::Header)?;
    let good = header.alg == ALG && header.typ == TYPE && is_kid(&header.kid);
    good.then_some(header.kid).ok_or(TokenError::Header)
}

fn is_kid(kid: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    (8..=64).contains(&kid.len()) && kid.bytes().all(plain)
}

/// Verifies the signature and every claim except the times.
///
/// # Errors
///
/// The first rule that the token breaks.
pub fn verify(token: &str, key: &DecodingKey) -> Result<Claims, TokenError> {
    let mut validation = Validation::new(Algorithm::EdDSA);
    validation.validate_exp = false;
    validation.validate_aud = false;
    validation.required_spec_claims.clear();
    let claims = jsonwebtoken::decode::<Claims>(token, key, &validation)
        .map_err(|_| TokenError::Invalid)?
        .claims;
    if claims.iss != ISSUER || claims.aud != AUDIENCE {
        return Err(TokenError::Audience);
    }
    if claims.sub.is_empty() || claims.sid.is_empty() || claims.jti.is_empty() {
        return Err(TokenError::Invalid);
    }
    if claims.exp <= claims.iat || claims.exp - claims.iat > MAX_LIFE_S {
        return Err(TokenError::Life);
    }
    Ok(claims)
}

/// Checks that the token has not expired.
///
/// # Errors
///
/// [`TokenError::Expired`].
pub fn check_end(claims: &Claims, now_s: u64) -> Result<(), TokenError> {
    let over = now_s >= claims.exp.saturating_add(LEEWAY_S);
    if over {
        Err(TokenError::Expired)
    } else {
        Ok(())
    }
}

/// Checks the start and the end of the token's validity.
///
/// # Errors
///
/// [`TokenError::Expired`] or [`TokenError::NotYet`].
pub fn check_time(claims: &Claims, now_s: u64) -> Result<(), TokenError> {
    check_end(claims, now_s)?;
    if claims.nbf > now_s + LEEWAY_S || claims.iat > now_s + LEEWAY_S {
        return Err(TokenError::NotYet);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use jsonwebtoken::EncodingKey;
    use serde_json::{Value, json};

    /// An Ed25519 key made for these tests and used nowhere else.
    const PRIVATE: [u8; 48] = {
        let mut der = [0x42; 48];
        let head = [
            0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22,
            0x04, 0x20,
        ];
        let mut i = 0;
        while i < head.len() {
            der[i] = head[i];
            i += 1;
        }
        der
    };
    /// The public half of `PRIVATE`.
    const PUBLIC_X: &str = "IVL40Zt5HSRFMkLhXy6rbLfP-ntqXtMAl5YOBpiB2xI";

    fn public() -> DecodingKey {
        DecodingKey::from_ed_components(PUBLIC_X).unwrap()
    }

    fn claims() -> Value {
        json!({
            "iss": ISSUER, "aud": AUDIENCE, "sub": "u", "sid": "s", "jti": "j", "iat": 1000, "nbf": 1000,
            "exp": 1900, "ver": 1, "username": "ada", "roles": ["viewer"],
        })
    }

    fn sign(claims: &Value) -> String {
        let mut header = jsonwebtoken::Header::new(Algorithm::EdDSA);
        header.typ = Some(TYPE.into());
        header.kid = Some("key-12345678".into());
        jsonwebtoken::encode(&header, claims, &EncodingKey::from_ed_der(&PRIVATE)).unwrap()
    }

    fn with(name: &str, value: Value) -> Value {
        let mut claims = claims();
        claims[name] = value;
        claims
    }

    #[test]
    fn a_valid_token_is_accepted() {
        let token = sign(&claims());
        assert_eq!(key_id(&token).unwrap(), "key-12345678");
        assert_eq!(verify(&token, &public()).unwrap().username, "ada");
    }

    #[test]
    fn missing_unknown_and_malformed_claims_are_refused() {
        for name in [
            "iss", "aud", "sub", "sid", "jti", "iat", "nbf", "exp", "ver", "username", "roles",
        ] {
            let mut missing = claims();
            missing.as_object_mut().unwrap().remove(name);
            assert!(
                verify(&sign(&missing), &public()).is_err(),
                "without {name}"
            );
            assert!(
                verify(&sign(&with(name, Value::Null)), &public()).is_err(),
                "null {name}"
            );
        }
        for (name, value) in [
            ("iss", json!("tars-auth/")),
            ("iss", json!(["tars-auth"])),
            ("aud", json!(["tars", "evil"])),
            ("aud", json!("TARS")),
            ("exp", json!(1900.5)),
            ("exp", json!("1900")),
            ("exp", json!(u64::MAX)),
            ("exp", json!(-1)),
            ("exp", json!(1000)),
            ("sub", json!("")),
            ("admin", json!(true)),
            ("type", json!("refresh")),
        ] {
            assert!(
                verify(&sign(&with(name, value.clone())), &public()).is_err(),
                "{name} = {value}"
            );
        }
    }

    /// A signed token with these claims, as they are written.
    fn sign_text(claims: &str) -> String {
        let header = r#"{"alg":"EdDSA","typ":"at+jwt","kid":"key-12345678"}"#;
        let (header, claims) = (
            URL_SAFE_NO_PAD.encode(header),
            URL_SAFE_NO_PAD.encode(claims),
        );
        let message = format!("{header}.{claims}");
        let key = EncodingKey::from_ed_der(&PRIVATE);
        let signature =
            jsonwebtoken::crypto::sign(message.as_bytes(), &key, Algorithm::EdDSA).unwrap();
        format!("{message}.{signature}")
    }

    #[test]
    fn a_duplicate_claim_is_refused() {
        let good = claims().to_string();
        assert!(verify(&sign_text(&good), &public()).is_ok());
        for more in [
            r#""roles":["admin"]"#,
            r#""\u0072oles":["admin"]"#,
            r#""exp":1901"#,
            r#""sub":"u""#,
        ] {
            for twice in [
                good.replacen('{', &format!("{{{more},"), 1),
                format!("{},{more}}}", good.trim_end_matches('}')),
            ] {
                assert!(verify(&sign_text(&twice), &public()).is_err(), "{twice}");
            }
        }
        for odd in [format!("{good} {{}}"), format!("\u{feff}{good}")] {
            assert!(verify(&sign_text(&odd), &public()).is_err(), "{odd}");
        }
    }

    #[test]
    fn foreign_headers_are_refused_before_a_key_is_looked_up() {
        let rest = "e30.AAAA";
        for header in [
            r#"{"alg":"none","typ":"at+jwt","kid":"key-12345678"}"#,
            r#"{"alg":"HS256","typ":"at+jwt","kid":"key-12345678"}"#,
            r#"{"alg":"EdDSA","typ":"JWT","kid":"key-12345678"}"#,
            r#"{"alg":"EdDSA","typ":"rt","kid":"key-12345678"}"#,
            r#"{"alg":"EdDSA","typ":"at+jwt"}"#,
            r#"{"alg":"EdDSA","typ":"at+jwt","kid":"../../dev/null"}"#,
            r#"{"alg":"EdDSA","typ":"at+jwt","kid":""}"#,
            r#"{"alg":"EdDSA","typ":"at+jwt","kid":7}"#,
            r#"{"alg":"EdDSA","typ":"at+jwt","kid":"key-12345678","crit":[]}"#,
            r#"{"alg":"EdDSA","typ":"at+jwt","kid":"key-12345678","jku":"http://x"}"#,
            r#"{"alg":"EdDSA","alg":"EdDSA","typ":"at+jwt","kid":"key-12345678"}"#,
            r#"[]"#,
            "",
        ] {
            let token = format!("{}.{rest}", URL_SAFE_NO_PAD.encode(header));
            assert!(key_id(&token).is_err(), "{header}");
        }
    }

    #[test]
    fn malformed_tokens_are_refused() {
        let good = sign(&claims());
        let padded = format!("{good}=");
        let mut flipped = good.clone().into_bytes();
        let at = good.rfind('.').unwrap() + 5;
        flipped[at] = if flipped[at] == b'A' { b'B' } else { b'A' };
        let flipped = String::from_utf8(flipped).unwrap();
        for bad in [
            "",
            ".",
            "..",
            "a.b",
            "a.b.c.d",
            &"x".repeat(5000),
            &padded,
            &flipped,
            &good[..good.len() - 2],
        ] {
            let refused = key_id(bad).is_err() || verify(bad, &public()).is_err();
            assert!(refused, "{bad}");
        }
        assert_eq!(key_id(&"x".repeat(5000)), Err(TokenError::Oversize));
    }

    #[test]
    fn times_are_checked_with_a_leeway_of_thirty_seconds() {
        let claims: Claims = serde_json::from_value(claims()).unwrap();
        assert_eq!(check_time(&claims, 1929), Ok(()));
        assert_eq!(check_time(&claims, 1930), Err(TokenError::Expired));
        assert_eq!(check_time(&claims, 970), Ok(()));
        assert_eq!(check_time(&claims, 969), Err(TokenError::NotYet));
    }
}
