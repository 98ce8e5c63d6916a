//! Certificates as wrong as a test wants them, and clients that show them.

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::{
    ClientConfig,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    pki_types::{
        CertificateDer, CertificateRevocationListDer, PrivateKeyDer, PrivatePkcs8KeyDer,
        ServerName, UnixTime,
    },
};
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tars_certs::{crypto::provider, identity::Parts};
use time::OffsetDateTime;
use tokio::{
    io::AsyncReadExt,
    net::{TcpSocket, TcpStream},
};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// Takes any server: these clients are about what the server takes.
#[derive(Debug)]
pub struct AnyServer;

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// What a client shows: a chain, and the key of its first certificate.
pub type Leaf = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// A TLS 1.3 client that accepts any server and shows `leaf`, or no certificate.
pub fn client(leaf: Option<Leaf>) -> ClientConfig {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer));
    let mut config = match leaf {
        Some((chain, key)) => builder
            .with_client_auth_cert(chain, key)
            .expect("a key that rustls can use"),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

/// A client that shows a chain whose key it cannot use: the chain alone must be enough to refuse.
pub fn client_without_key(chain: Vec<CertificateDer<'static>>) -> ClientConfig {
    #[derive(Debug)]
    struct Shows(Arc<rustls::sign::CertifiedKey>);

    impl rustls::client::ResolvesClientCert for Shows {
        fn resolve(
            &self,
            _: &[&[u8]],
            _: &[rustls::SignatureScheme],
        ) -> Option<Arc<rustls::sign::CertifiedKey>> {
            Some(Arc::clone(&self.0))
        }

        fn has_certs(&self) -> bool {
            true
        }
    }

    let other = KeyPair::generate().expect("a key");
    let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(other.serialize_der()));
    let key = provider()
        .key_provider
        .load_private_key(der)
        .expect("a key that rustls can use");
    let mut config = client(None);
    config.client_auth_cert_resolver =
        Arc::new(Shows(Arc::new(rustls::sign::CertifiedKey::new(chain, key))));
    config
}

/// Completes the client's half of a handshake.
pub async fn connect(
    target: SocketAddr,
    config: ClientConfig,
) -> std::io::Result<TlsStream<TcpStream>> {
    let tcp = TcpStream::connect(target).await?;
    let name = ServerName::try_from("localhost").expect("a name");
    TlsConnector::from(Arc::new(config))
        .connect(name, tcp)
        .await
}

/// Whether the server keeps the connection: it sends its HTTP/2 settings, or an alert. In TLS 1.3 a
/// client learns that it was refused on its first read: its own side of the handshake is done then.
pub async fn is_let_in(target: SocketAddr, config: ClientConfig) -> bool {
    let Ok(mut stream) = connect(target, config).await else {
        return false;
    };
    let mut byte = [0u8; 1];
    let read = tokio::time::timeout(Duration::from_secs(20), stream.read(&mut byte)).await;
    matches!(read.expect("an answer within the handshake timeout"), Ok(1))
}

/// A plain connection from another loopback address, as from another machine.
pub async fn connect_from(from: [u8; 4], target: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((from, 0).into())?;
    socket.connect(target).await
}

/// An authority of a test's own, as deep and as odd as need be.
#[derive(Debug)]
pub struct TestCa {
    /// What its certificate says.
    pub params: CertificateParams,
    /// What it signs with.
    pub key: KeyPair,
    /// Its certificate.
    pub der: CertificateDer<'static>,
    /// Itself and what stands between it and the root, nearest first.
    pub above: Vec<CertificateDer<'static>>,
}

/// A URI as a subject alternative name.
pub fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().expect("an IA5 string"))
}

/// The machine's time, as rcgen takes it.
pub fn now() -> OffsetDateTime {
    OffsetDateTime::now_utc()
}

/// The unit of the lives in tests of certificates.
pub const HOUR: time::Duration = time::Duration::HOUR;

fn authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = now() - HOUR * 2;
    params.not_after = now() + HOUR * 24;
    params.use_authority_key_identifier_extension = true;
    params
}

impl TestCa {
    /// A root with nothing odd about it.
    pub fn root(name: &str) -> Self {
        Self::root_with(name, |_| {})
    }

    /// A root whose certificate `shape` may change.
    pub fn root_with(name: &str, shape: impl FnOnce(&mut CertificateParams)) -> Self {
        let mut params = authority(name);
        shape(&mut params);
        let key = KeyPair::generate().expect("a key");
        let der = params.self_signed(&key).expect("a root").der().clone();
        Self {
            params,
            key,
            der,
            above: Vec::new(),
        }
    }

    fn issuer(&self) -> Issuer<'_, &KeyPair> {
        Issuer::from_params(&self.params, &self.key)
    }

    /// An intermediate that this authority signs, and `shape` may change.
    pub fn below(&self, name: &str, shape: impl FnOnce(&mut CertificateParams)) -> Self {
        let mut params = authority(name);
        shape(&mut params);
        let key = KeyPair::generate().expect("a key");
        let cert = params
            .signed_by(&key, &self.issuer())
            .expect("a certificate");
        let der = cert.der().clone();
        let mut above = vec![der.clone()];
        above.extend(self.above.iter().cloned());
        Self {
            params,
            key,
            der,
            above,
        }
    }

    /// A client's leaf under a fresh key; `shape` may change it.
    pub fn leaf(&self, shape: impl FnOnce(&mut CertificateParams)) -> Leaf {
        self.leaf_of(KeyPair::generate().expect("a key"), shape)
    }

    /// A good client's leaf, but for what `shape` does to it.
    pub fn leaf_of(&self, key: KeyPair, shape: impl FnOnce(&mut CertificateParams)) -> Leaf {
        let mut params = CertificateParams::default();
        params.not_before = now() - HOUR * 2;
        params.not_after = now() + HOUR;
        params.subject_alt_names = vec![uri("spiffe://tars.local/client/test")];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        shape(&mut params);
        let cert = params.signed_by(&key, &self.issuer()).expect("a leaf");
        let mut chain = vec![cert.der().clone()];
        chain.extend(self.above.iter().cloned());
        (chain, PrivatePkcs8KeyDer::from(key.serialize_der()).into())
    }

    /// An identity below this authority that trusts `roots`.
    pub fn parts(&self, path: &str, roots: Vec<CertificateDer<'static>>) -> Parts {
        let (chain, key) = self.leaf(|p| {
            p.subject_alt_names = vec![uri(&format!("spiffe://tars.local{path}"))];
            p.extended_key_usages
                .push(ExtendedKeyUsagePurpose::ServerAuth);
        });
        Parts {
            chain,
            key,
            roots,
            crls: Vec::new(),
        }
    }

    /// A list that this authority signs.
    pub fn revocation_list(
        &self,
        serials: &[&[u8]],
        ends: OffsetDateTime,
    ) -> CertificateRevocationListDer<'static> {
        self.revocation_list_with(serials, |list| list.next_update = ends)
    }

    /// The same, but for what `shape` does to it.
    pub fn revocation_list_with(
        &self,
        serials: &[&[u8]],
        shape: impl FnOnce(&mut CertificateRevocationListParams),
    ) -> CertificateRevocationListDer<'static> {
        let revoked = serials.iter().map(|s| rcgen::RevokedCertParams {
            serial_number: rcgen::SerialNumber::from_slice(s),
            revocation_time: now() - HOUR,
            reason_code: None,
            invalidity_date: None,
        });
        let mut params = CertificateRevocationListParams {
            this_update: now() - HOUR * 2,
            next_update: now() + HOUR,
            crl_number: rcgen::SerialNumber::from(1u64),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        };
        shape(&mut params);
        let list = params.signed_by(&self.issuer()).expect("a list");
        list.der().clone()
    }
}
