//! Converts the part of Auth's watch stream that concerns certificates into updates of the
//! [`TrustFeed`](tars_certs::TrustFeed).

use rustls::pki_types::CertificateDer;
use std::time::Duration;
use tars_certs::{Bundle, CertName, KeyId, RevocationSet, SpiffeId, TrustUpdate};
use tars_proto::auth::v1::{
    CertificateRevocation, IdentityRevocation, TrustBundle, WatchCredentialsResponse,
};

/// The certificate part of an item. Entries that do not parse are skipped and logged.
pub fn update(item: &WatchCredentialsResponse) -> TrustUpdate {
    TrustUpdate {
        snapshot: item.reset,
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
        identities: item
            .revoked_identities
            .iter()
            .filter_map(not_before)
            .collect(),
    };
    let sent = item.revoked_certificates.len() + item.revoked_identities.len();
    if set.len() < sent {
        tracing::error!(
            sent,
            accepted = set.len(),
            "some pushed revocations do not parse"
        );
    }
    set
}

fn name(revoked: &CertificateRevocation) -> Option<CertName> {
    Some(CertName {
        issuer: KeyId::from_bytes(&revoked.issuer).ok()?,
        serial: revoked.serial.parse().ok()?,
    })
}

fn not_before(revoked: &IdentityRevocation) -> Option<(SpiffeId, Duration)> {
    let seconds = revoked.not_before.as_ref()?.seconds;
    let at = Duration::from_secs(u64::try_from(seconds).ok()?);
    Some((revoked.spiffe_id.parse().ok()?, at))
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
    fn an_item_is_converted_completely() {
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
        assert!(read.snapshot);
        assert_eq!(read.revocations.certificates.len(), 1);
        let not_before = read.revocations.identities[&id.parse().unwrap()];
        assert_eq!(not_before, Duration::from_secs(5));
        let bundle = read.bundle.unwrap();
        assert_eq!((bundle.version, bundle.roots.len()), (3, 1));
        assert_eq!(bundle.tainted, [KeyId::from_bytes(&[7; 32]).unwrap()]);
    }

    #[test]
    fn entries_that_do_not_parse_are_skipped() {
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
        assert!(!read.snapshot && read.bundle.is_none());
    }
}
