//! Signing requests (PKCS #10). The authority takes only the public key from a request: the
//! identity comes from the peer's certificate or its token, and lifetime and usage are the
//! authority's policy.

use rcgen::{CertificateParams, DistinguishedName, KeyPair, SubjectPublicKeyInfo};
use x509_parser::{certification_request::X509CertificationRequest, prelude::FromDer};

const MAX_BYTES: usize = 4096;

/// Why a signing request is rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CsrError {
    /// It is larger than any request with an accepted key.
    #[error("the signing request is longer than {MAX_BYTES} bytes")]
    TooLong,
    /// It does not parse, or has trailing bytes.
    #[error("the signing request does not parse")]
    Malformed,
    /// Its signature was not made by the key that it contains.
    #[error("the signing request is not signed by its own key")]
    Proof,
    /// The key is of a type that is not accepted.
    #[error("the key must be P-256, P-384 or Ed25519")]
    Key,
}

/// The public key of a request whose sender has proved possession of the private key.
pub fn public_key(der: &[u8]) -> Result<SubjectPublicKeyInfo, CsrError> {
    if der.len() > MAX_BYTES {
        return Err(CsrError::TooLong);
    }
    let (rest, csr) = X509CertificationRequest::from_der(der).map_err(|_| CsrError::Malformed)?;
    if !rest.is_empty() {
        return Err(CsrError::Malformed);
    }
    let spki = &csr.certification_request_info.subject_pki;
    let key = SubjectPublicKeyInfo::from_der(spki.raw).map_err(|_| CsrError::Key)?;
    let algorithm = rcgen::PublicKeyData::algorithm(&key);
    let allowed = [
        &rcgen::PKCS_ECDSA_P256_SHA256,
        &rcgen::PKCS_ECDSA_P384_SHA384,
        &rcgen::PKCS_ED25519,
    ];
    if !allowed.contains(&algorithm) {
        return Err(CsrError::Key);
    }
    csr.verify_signature().map_err(|_| CsrError::Proof)?;
    Ok(key)
}

/// Creates a request that contains nothing but the key.
///
/// # Errors
///
/// When the key cannot sign.
pub fn create(key: &KeyPair) -> Result<Vec<u8>, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    Ok(params.serialize_request(key)?.der().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_proves_possession_of_its_key() {
        let key = KeyPair::generate().unwrap();
        let der = create(&key).unwrap();
        let public = public_key(&der).unwrap();
        use rcgen::PublicKeyData;
        assert_eq!(public.der_bytes(), key.der_bytes());
    }

    #[test]
    fn requests_without_proof_or_with_other_key_types_are_refused() {
        let key = KeyPair::generate().unwrap();
        let mut forged = create(&key).unwrap();
        let last = forged.len() - 1;
        forged[last] ^= 1;
        assert!(matches!(
            public_key(&forged),
            Err(CsrError::Proof | CsrError::Malformed)
        ));
        let mut trailing = create(&key).unwrap();
        trailing.push(0);
        assert_eq!(public_key(&trailing).unwrap_err(), CsrError::Malformed);
        assert_eq!(public_key(&[]).unwrap_err(), CsrError::Malformed);
        assert_eq!(public_key(&[0; 5000]).unwrap_err(), CsrError::TooLong);
        let ed = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        assert!(public_key(&create(&ed).unwrap()).is_ok());
        let p521 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P521_SHA512).unwrap();
        assert_eq!(
            public_key(&create(&p521).unwrap()).unwrap_err(),
            CsrError::Key
        );
    }
}
