//! Adapts [`Trust`] to rustls, one verifier per side, and provides the verifier of a joining
//! process, which trusts only a pinned root.

use crate::{
    KeyId, Revocations, SpiffeId,
    crypto::provider,
    peer::{self, Verified},
    trust::{Side, Trust, VerifyError, key_id},
};
use rustls::{
    DigitallySignedStruct, DistinguishedName, Error, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};
use std::{sync::Arc, time::Duration};

fn report(result: Result<Verified, VerifyError>) -> Result<(), Error> {
    match result {
        Ok(verified) => {
            peer::record(Ok(&verified));
            Ok(())
        }
        Err(refusal) => {
            peer::record(Err(refusal.reason()));
            Err(refusal.into_rustls())
        }
    }
}

fn no_tls12() -> Result<HandshakeSignatureValid, Error> {
    Err(Error::General("TLS 1.2 is not supported".to_owned()))
}

fn check_signature(
    message: &[u8],
    cert: &CertificateDer<'_>,
    dss: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, Error> {
    let algorithms = &provider().signature_verification_algorithms;
    rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
}

fn schemes() -> Vec<SignatureScheme> {
    provider()
        .signature_verification_algorithms
        .supported_schemes()
}

/// Verifies the certificates of clients.
#[derive(Debug)]
pub(crate) struct ClientVerifier {
    pub(crate) trust: Arc<Trust>,
    pub(crate) revocations: Revocations,
}

impl ClientCertVerifier for ClientVerifier {
    /// No hints: they would name the roots of an older snapshot to some clients.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let result = self.trust.verify(
            end_entity,
            intermediates,
            now,
            Side::Client,
            &self.revocations,
        );
        report(result).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        check_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        schemes()
    }
}

/// Decides whether a server is the intended one.
pub(crate) trait ServerIdentityPolicy: std::fmt::Debug + Send + Sync {
    fn check(
        &self,
        end_entity: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<Verified, VerifyError>;
}

/// Verifies servers by a policy.
#[derive(Debug)]
pub(crate) struct ServerVerifier<P>(pub(crate) P);

impl<P: ServerIdentityPolicy> ServerCertVerifier for ServerVerifier<P> {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verdict = self.0.check(end_entity, intermediates, now);
        report(verdict).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        check_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        schemes()
    }
}

/// Accepts one workload of the mesh.
#[derive(Debug)]
pub(crate) struct ExpectedId {
    pub(crate) trust: Arc<Trust>,
    pub(crate) revocations: Revocations,
    pub(crate) expected: SpiffeId,
}

impl ServerIdentityPolicy for ExpectedId {
    fn check(
        &self,
        end_entity: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<Verified, VerifyError> {
        let chain = (end_entity, rest);
        check_server(&self.trust, &self.revocations, &self.expected, chain, now)
    }
}

/// Verifying the chain alone would let any workload of the mesh impersonate any other.
fn check_server(
    trust: &Trust,
    revocations: &Revocations,
    expected: &SpiffeId,
    chain: (&CertificateDer<'_>, &[CertificateDer<'_>]),
    now: UnixTime,
) -> Result<Verified, VerifyError> {
    let verified = trust.verify(chain.0, chain.1, now, Side::Server, revocations)?;
    if verified.certificate.id == *expected {
        Ok(verified)
    } else {
        Err(VerifyError::OtherId(verified.certificate.id.to_string()))
    }
}

/// Accepts a bootstrap listener below the root that a join token names. The server sends that root
/// in its chain, and it is trusted for its hash alone.
#[derive(Debug)]
pub(crate) struct PinnedRoot {
    pub(crate) root: KeyId,
    pub(crate) expected: SpiffeId,
}

impl ServerIdentityPolicy for PinnedRoot {
    fn check(
        &self,
        end_entity: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<Verified, VerifyError> {
        let root = rest
            .iter()
            .find(|c| key_id(c).is_some_and(|id| id == self.root))
            .ok_or(VerifyError::Chain(webpki::Error::UnknownIssuer))?;
        let trust = Trust::new(
            self.expected.trust_domain(),
            vec![root.clone().into_owned()],
            Vec::new(),
            Duration::from_secs(now.as_secs()),
        )
        .map_err(|_| VerifyError::ExpiredRoot)?;
        let chain = (end_entity, rest);
        check_server(&trust, &Revocations::default(), &self.expected, chain, now)
    }
}
