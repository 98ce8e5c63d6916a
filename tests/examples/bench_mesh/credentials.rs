//! What clients and servers of one run hold: certificates of one authority, a signing key and a token, all in one
//! folder, so that servers of every kind can read them.

use crate::Failure;
use aws_lc_rs::{
    encoding::{AsDer, Pkcs8V1Der},
    signature::{Ed25519KeyPair, KeyPair},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use std::{
    path::{Path, PathBuf},
    time::Duration,
};
use tars_certs::{
    Authority, SpiffeId,
    ca::{Lifetimes, Request},
    files::IdentityFiles,
};
use tars_credentials::{Claims, token};
use tars_runtime::clock::Clock;
use tonic::transport::{Certificate, ClientTlsConfig, Identity};

/// The signing key's id.
pub(crate) const KID: &str = "bench-signing-key";
/// The role of the token.
pub(crate) const ROLE: &str = "viewer";
/// The certificate of every server.
pub(crate) const SERVER: &str = "server";
/// The certificate of every client.
pub(crate) const CLIENT: &str = "client";
const LIFE: Duration = Duration::from_secs(12 * 3600);

/// The folder.
#[derive(Debug, Clone)]
pub(crate) struct Credentials(pub(crate) PathBuf);

impl Credentials {
    /// Issues everything into an empty folder.
    pub(crate) fn issue(folder: &Path) -> Result<Self, Failure> {
        let these = Self(folder.to_owned());
        let now = Clock::system().now();
        let ca = folder.join("ca");
        let authority = Authority::init(&ca, "tars.local", Lifetimes::default(), now)?;
        for (name, id) in [(SERVER, "/auth"), (CLIENT, "/client/bench")] {
            let id = SpiffeId::new("tars.local", id)?;
            let request = Request::new(id, Duration::from_secs(86_400)).with_local_names();
            let issued = authority.issue(&request, now)?;
            these.files(name).save(&issued, &authority.bundle_pem())?;
        }
        let pair = Ed25519KeyPair::generate().map_err(|_| "no signing key")?;
        let der: Pkcs8V1Der<'_> = pair.as_der().map_err(|_| "no signing key")?;
        let public = URL_SAFE_NO_PAD.encode(pair.public_key().as_ref());
        these.write("token.key", &public)?;
        these.write(
            "token",
            &sign(&EncodingKey::from_ed_der(der.as_ref()), now)?,
        )?;
        Ok(these)
    }

    fn write(&self, name: &str, text: &str) -> Result<(), Failure> {
        Ok(std::fs::write(self.path(name), text)?)
    }

    /// Where a file is.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// What a file holds.
    pub(crate) fn read(&self, name: &str) -> Result<String, Failure> {
        Ok(std::fs::read_to_string(self.path(name))?)
    }

    /// The certificate, key and roots of [`SERVER`] or [`CLIENT`].
    pub(crate) fn files(&self, of: &str) -> IdentityFiles {
        IdentityFiles::in_dir(&self.path(of))
    }

    /// The roots of the authority.
    pub(crate) fn roots(&self) -> Result<Certificate, Failure> {
        Ok(Certificate::from_pem(std::fs::read(self.files(SERVER).ca)?))
    }

    /// A certificate with its key.
    pub(crate) fn identity(&self, of: &str) -> Result<Identity, Failure> {
        let files = self.files(of);
        let (chain, key) = (std::fs::read(files.cert)?, std::fs::read(files.key)?);
        Ok(Identity::from_pem(chain, key))
    }

    /// How a client of tonic's connects.
    pub(crate) fn client(&self) -> Result<ClientTlsConfig, Failure> {
        Ok(ClientTlsConfig::new()
            .ca_certificate(self.roots()?)
            .identity(self.identity(CLIENT)?)
            .domain_name("localhost"))
    }
}

fn sign(key: &EncodingKey, now: Duration) -> Result<String, Failure> {
    let mut header = Header::new(Algorithm::EdDSA);
    header.typ = Some(token::TYPE.to_owned());
    header.kid = Some(KID.to_owned());
    let claims = Claims {
        iss: token::ISSUER.to_owned(),
        aud: token::AUDIENCE.to_owned(),
        sub: "bench".to_owned(),
        sid: "bench".to_owned(),
        jti: "bench".to_owned(),
        iat: now.as_secs(),
        nbf: now.as_secs(),
        exp: (now + LIFE).as_secs(),
        ver: 1,
        username: "bench".to_owned(),
        roles: vec![ROLE.to_owned()],
    };
    Ok(jsonwebtoken::encode(&header, &claims, key)?)
}
