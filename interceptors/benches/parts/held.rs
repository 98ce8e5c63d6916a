//! A signing key, a token of its, an API key, and the view of a process that knows all three.

use aws_lc_rs::{
    encoding::{AsDer, Pkcs8V1Der},
    signature::{Ed25519KeyPair, KeyPair},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use std::time::Duration;
use tars_credentials::{Claims, Permissions, View, apikey::ApiKey, token};
use tars_proto::auth::v1::{
    Jwk, KeyView, RoleView, SecretView, UserView, WatchCredentialsResponse,
};
use tars_runtime::clock::Clock;

const KID: &str = "bench-signing-key";
const ROLE: &str = "viewer";
const USER: &str = "bench";
const LIFE: Duration = Duration::from_secs(12 * 3600);

pub(crate) struct Held {
    pub(crate) token: String,
    pub(crate) api_key: ApiKey,
    /// What Auth would have pushed.
    snapshot: WatchCredentialsResponse,
    public: String,
    pub(crate) now: Duration,
}

impl Held {
    pub(crate) fn new() -> Self {
        let now = Clock::system().now();
        let pair = Ed25519KeyPair::generate().expect("a key pair");
        let der: Pkcs8V1Der<'_> = pair.as_der().expect("its encoding");
        let public = URL_SAFE_NO_PAD.encode(pair.public_key().as_ref());
        let api_key = ApiKey::generate();
        Self {
            token: sign(&EncodingKey::from_ed_der(der.as_ref()), now),
            snapshot: snapshot(&public, &api_key),
            api_key,
            public,
            now,
        }
    }

    /// A view that has received the snapshot, and has seen no token.
    pub(crate) fn view(&self) -> View {
        let view = View::default();
        view.apply(&self.snapshot, self.now.as_secs());
        view
    }

    /// The key and the rules by which services usually verify a token.
    pub(crate) fn usual(&self) -> (DecodingKey, Validation) {
        let key = DecodingKey::from_ed_components(&self.public).expect("the public key");
        let mut rules = Validation::new(Algorithm::EdDSA);
        rules.set_audience(&[token::AUDIENCE]);
        rules.set_issuer(&[token::ISSUER]);
        (key, rules)
    }
}

fn snapshot(public: &str, api_key: &ApiKey) -> WatchCredentialsResponse {
    let permissions: Vec<String> = Permissions::ALL
        .names()
        .into_iter()
        .map(str::to_owned)
        .collect();
    WatchCredentialsResponse {
        reset: true,
        keys: vec![Jwk {
            kty: "OKP".to_owned(),
            crv: "Ed25519".to_owned(),
            x: public.to_owned(),
            kid: KID.to_owned(),
            alg: "EdDSA".to_owned(),
            r#use: "sig".to_owned(),
        }],
        roles: vec![RoleView {
            name: ROLE.to_owned(),
            permissions: permissions.clone(),
        }],
        users: vec![UserView {
            user_id: USER.to_owned(),
            username: USER.to_owned(),
            roles: vec![ROLE.to_owned()],
            version: 1,
            revision: 1,
            ..UserView::default()
        }],
        api_keys: vec![KeyView {
            key_id: api_key.id.clone(),
            secrets: vec![SecretView {
                sha256: api_key.hash.to_vec(),
                expires_at: None,
            }],
            owner_id: USER.to_owned(),
            scopes: permissions,
            revision: 1,
            ..KeyView::default()
        }],
        ..WatchCredentialsResponse::default()
    }
}

fn sign(key: &EncodingKey, now: Duration) -> String {
    let mut header = Header::new(Algorithm::EdDSA);
    header.typ = Some(token::TYPE.to_owned());
    header.kid = Some(KID.to_owned());
    let claims = Claims {
        iss: token::ISSUER.to_owned(),
        aud: token::AUDIENCE.to_owned(),
        sub: USER.to_owned(),
        sid: "bench".to_owned(),
        jti: "bench".to_owned(),
        iat: now.as_secs(),
        nbf: now.as_secs(),
        exp: (now + LIFE).as_secs(),
        ver: 1,
        username: USER.to_owned(),
        roles: vec![ROLE.to_owned()],
    };
    jsonwebtoken::encode(&header, &claims, key).expect("a token")
}
