//! The part of Auth's push that is about certificates, as [`TrustFeed`](tars_certs::TrustFeed) takes
//! it.

use rustls::pki_types::CertificateDer;
use std::time::Duration;
use tars_certs::{Bundle, CertName, KeyId, RevocationSet, SpiffeId, TrustUpdate};
use tars_proto::auth::v1::{
    CertificateRevocation, IdentityRevocation, TrustBundle, WatchCredentialsResponse,
};

/// What an item says about certificates. What of it does not parse is left out, and said in the log.
pub fn update(item: &WatchCredentialsResponse) -> TrustUpdate {
    TrustUpdate {
        whole: item.reset,
        revocations: revocations(item),
        bundle: item.bundle.as_ref().map(bundle),
    }
}

fn bundle(message: &TrustBundle) -> Bundle {
    let roots = message.roots.iter();
    let tainted = message.tainted.iter();
    Bundle {
        version: message.version,
        roots: roots.map(|r| CertificateDer::from(r.clone())).collect(),
        tainted: tainted.filter_map(|k| KeyId::from_bytes(k).ok()).collect(),
    }
}

fn revocations(item: &WatchCredentialsResponse) -> RevocationSet {
    let set = RevocationSet {
        certificates: item.revoked_certificates.iter().filter_map(name).collect(),
        identities: item.revoked_identities.iter().filter_map(cut).collect(),
    };
    let sent = item.revoked_certificates.len() + item.revoked_identities.len();
    if set.len() < sent {
        tracing::error!(sent, kept = set.len(), "pushed revocations do not parse");
    }
    set
}

fn name(revoked: &CertificateRevocation) -> Option<CertName> {
    Some(CertName {
        issuer: KeyId::from_bytes(&revoked.issuer).ok()?,
        serial: revoked.serial.parse().ok()?,
    })
}

fn cut(revoked: &IdentityRevocation) -> Option<(SpiffeId, Duration)> {
    let seconds = revoked.not_before.as_ref()?.seconds;
    let cut = Duration::from_secs(u64::try_from(seconds).ok()?);
    Some((revoked.spiffe_id.parse().ok()?, cut))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tars_proto::Timestamp;

    fn certificate(issuer: &[u8], serial: &str) -> CertificateRevocation {
        CertificateRevocation {
            issuer: issuer.to_vec(),
            serial: serial.into(),
        }
    }

    fn identity(id: &str, seconds: i64) -> IdentityRevocation {
        IdentityRevocation {
            spiffe_id: id.into(),
            not_before: Some(Timestamp { seconds, nanos: 0 }),
        }
    }

    #[test]
    fn an_item_is_read_whole() {
        let issuer = KeyId::of_spki(b"issuer");
        let id = "spiffe://tars.local/automl";
        let read = update(&WatchCredentialsResponse {
            reset: true,
            revoked_certificates: vec![certificate(issuer.as_bytes(), "11")],
            revoked_identities: vec![identity(id, 5)],
            bundle: Some(TrustBundle {
                version: 3,
                roots: vec![vec![1]],
                tainted: vec![vec![7; 32]],
            }),
            ..Default::default()
        });
        assert!(read.whole);
        assert_eq!(read.revocations.certificates.len(), 1);
        let cut = read.revocations.identities[&id.parse().unwrap()];
        assert_eq!(cut, Duration::from_secs(5));
        let bundle = read.bundle.unwrap();
        assert_eq!((bundle.version, bundle.roots.len()), (3, 1));
        assert_eq!(bundle.tainted, [KeyId::from_bytes(&[7; 32]).unwrap()]);
    }

    #[test]
    fn what_does_not_parse_is_left_out_and_the_rest_counts() {
        let issuer = KeyId::of_spki(b"issuer");
        let read = update(&WatchCredentialsResponse {
            revoked_certificates: vec![
                certificate(b"short", "11"),
                certificate(issuer.as_bytes(), "not a serial"),
                certificate(issuer.as_bytes(), "11"),
            ],
            revoked_identities: vec![
                identity("https://tars.local/automl", 5),
                identity("spiffe://tars.local/automl", -5),
                IdentityRevocation {
                    not_before: None,
                    ..identity("spiffe://tars.local/automl", 0)
                },
            ],
            ..Default::default()
        });
        assert_eq!(read.revocations.len(), 1);
        assert!(!read.whole && read.bundle.is_none());
    }
}
