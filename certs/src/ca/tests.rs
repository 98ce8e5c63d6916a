use super::*;
use crate::{peer::PeerCertificate, secret};
use std::fs;

const NOW: Duration = Duration::from_secs(1_800_000_000);

fn request(life: Duration) -> Request {
    let id = SpiffeId::new("tars.local", "/auth").unwrap();
    Request::new(id, life).with_local_names()
}

fn init(dir: &Path) -> Authority {
    Authority::init(dir, "tars.local", Lifetimes::default(), NOW).unwrap()
}

fn open(dir: &Path, now: Duration) -> Result<Authority, CaError> {
    Authority::open(dir, "tars.local", Lifetimes::default(), now)
}

#[test]
fn a_leaf_carries_the_requested_identity_and_usages() {
    let dir = tempfile::tempdir().unwrap();
    let ca = init(dir.path());
    let issued = ca.issue(&request(Duration::from_secs(3600)), NOW).unwrap();
    let peer = PeerCertificate::parse(&issued.chain[0]).unwrap();
    assert_eq!(peer.id.as_str(), "spiffe://tars.local/auth");
    assert!(peer.client_auth && peer.server_auth);
    assert_eq!(peer.not_after, NOW + Duration::from_secs(3600));
    assert_eq!(peer.not_after, issued.not_after);
    assert_eq!(peer.serial, issued.name.serial);
    assert_eq!(issued.chain.len(), 2);
    assert_eq!(ca.root_above(&issued.name.issuer).unwrap().generation, 1);
}

#[test]
fn a_leaf_is_not_backdated_to_before_a_revocation() {
    let dir = tempfile::tempdir().unwrap();
    let ca = init(dir.path());
    let revoked_at = NOW - Duration::from_secs(5);
    ca.raise_not_before(&[(request(DAY).id, revoked_at)])
        .unwrap();
    let earlier = revoked_at - DAY;
    ca.raise_not_before(&[(request(DAY).id, earlier)]).unwrap();
    let reopened = open(dir.path(), NOW).unwrap();
    let issued = reopened.issue(&request(DAY), NOW).unwrap();
    let peer = PeerCertificate::parse(&issued.chain[0]).unwrap();
    assert_eq!(peer.not_before, revoked_at, "an earlier time is ignored");
}

#[test]
fn a_leaf_never_outlives_its_issuer() {
    let dir = tempfile::tempdir().unwrap();
    let issued = init(dir.path()).issue(&request(DAY * 400), NOW).unwrap();
    assert_eq!(issued.not_after, NOW + DAY * 30);
}

#[test]
fn the_intermediate_is_replaced_before_it_expires_if_the_root_key_is_online() {
    let dir = tempfile::tempdir().unwrap();
    let ca = init(dir.path());
    let first = ca.issue(&request(DAY), NOW).unwrap();
    let second = ca.issue(&request(DAY), NOW + DAY * 21).unwrap();
    assert_ne!(first.name.issuer, second.name.issuer);
    let reopened = open(dir.path(), NOW + DAY * 21).unwrap();
    for issuer in [first.name.issuer, second.name.issuer] {
        assert!(
            reopened.root_above(&issuer).is_some(),
            "both are still trusted"
        );
    }
    fs::remove_file(dir.path().join("root-1/root.key")).unwrap();
    assert!(
        open(dir.path(), NOW + DAY * 22).is_ok(),
        "offline, with an intermediate"
    );
    let late = ca.issue(&request(DAY), NOW + DAY * 60);
    assert!(matches!(late, Err(CaError::Expired)));
    let late = open(dir.path(), NOW + DAY * 60).unwrap_err().to_string();
    assert!(
        late.contains("no intermediate that is still valid"),
        "{late}"
    );
}

#[test]
fn a_clock_that_was_ahead_leaves_the_intermediates_known() {
    let dir = tempfile::tempdir().unwrap();
    let ca = init(dir.path());
    let first = ca.issue(&request(DAY), NOW).unwrap();
    let ahead = ca.issue(&request(DAY), NOW + DAY * 400).unwrap();
    assert_ne!(first.name.issuer, ahead.name.issuer);
    for ca in [ca, open(dir.path(), NOW + DAY * 400).unwrap()] {
        assert!(ca.root_above(&first.name.issuer).is_some());
        let back = ca.issue(&request(DAY), NOW).unwrap();
        assert_eq!(back.name.issuer, first.name.issuer, "not of the future");
    }
}

#[test]
fn an_authority_is_never_overwritten_and_its_keys_are_private() {
    let dir = tempfile::tempdir().unwrap();
    init(dir.path());
    let again = Authority::init(dir.path(), "tars.local", Lifetimes::default(), NOW);
    assert!(matches!(again, Err(CaError::Exists(_))));
    secret::write_public(&dir.path().join("join.key"), b"x").unwrap();
    assert!(matches!(open(dir.path(), NOW), Err(CaError::File { .. })));
}

/// Replaces the root by one with a single defect, and returns the error.
fn refused_root(shape: impl FnOnce(&mut rcgen::CertificateParams), key: Option<KeyPair>) -> String {
    let dir = tempfile::tempdir().unwrap();
    init(dir.path());
    let key = key.unwrap_or_else(|| KeyPair::generate().unwrap());
    let mut params = profile::authority("root", 1, NOW, NOW + DAY);
    shape(&mut params);
    let cert = params.self_signed(&key).unwrap();
    let folder = dir.path().join("root-1");
    fs::write(folder.join("root.crt"), cert.pem()).unwrap();
    open(dir.path(), NOW).unwrap_err().to_string()
}

#[test]
fn unusable_authority_files_are_refused_with_the_reason() {
    use rcgen::KeyUsagePurpose::{CrlSign, KeyCertSign};
    let expired = refused_root(|p| p.not_after = profile::date(NOW), None);
    assert!(expired.contains("has expired"), "{expired}");
    let leaf = refused_root(|p| p.is_ca = rcgen::IsCa::ExplicitNoCa, None);
    assert!(leaf.contains("lacks the CA bit"), "{leaf}");
    let crl = refused_root(|p| p.key_usages = vec![KeyCertSign], None);
    assert!(crl.contains("cRLSign"), "{crl}");
    let sign = refused_root(|p| p.key_usages = vec![CrlSign], None);
    assert!(sign.contains("keyCertSign"), "{sign}");
    let other_key = refused_root(|_| {}, None);
    assert!(
        other_key.contains("is not the key of the certificate"),
        "{other_key}"
    );
    let dir = tempfile::tempdir().unwrap();
    init(dir.path());
    let root = dir.path().join("root-1/root.crt");
    fs::write(&root, "nonsense").unwrap();
    let nonsense = open(dir.path(), NOW).unwrap_err().to_string();
    assert!(nonsense.contains("is not a certificate"), "{nonsense}");
    fs::write(&root, WEAK_ROOT).unwrap();
    let weak = open(dir.path(), NOW).unwrap_err().to_string();
    assert!(weak.contains("has a weak key"), "{weak}");
}

/// 1024-bit RSA. No library in use here generates it, so it was made with openssl.
const WEAK_ROOT: &str = include_str!("../../tests/fixtures/rsa1024-root.crt");

#[test]
fn roots_rotate_in_order_and_survive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let ca = init(dir.path());
    let old = ca.issue(&request(DAY), NOW).unwrap();
    ca.step(RotationStep::Prepare, "ada", NOW).unwrap();
    assert_eq!(ca.roots().len(), 2);
    let still = ca.issue(&request(DAY), NOW).unwrap();
    assert_eq!(
        still.name.issuer, old.name.issuer,
        "a prepared root signs nothing"
    );
    ca.step(RotationStep::Activate, "ada", NOW).unwrap();
    let new = ca.issue(&request(DAY), NOW).unwrap();
    assert_eq!(ca.root_above(&new.name.issuer).unwrap().generation, 2);
    ca.step(RotationStep::Taint, "ada", NOW).unwrap();
    let reopened = open(dir.path(), NOW).unwrap();
    let above = reopened.root_above(&old.name.issuer).unwrap();
    assert_eq!((above.generation, above.state), (1, RootState::Tainted));
    let gone = reopened.step(RotationStep::Remove, "ada", NOW).unwrap();
    assert_eq!(gone.generation, 1);
    assert_eq!(reopened.roots().len(), 1);
    assert!(reopened.root_above(&old.name.issuer).is_none());
    assert_eq!(reopened.steps_after(1).len(), 4);
    let bundle = fs::read_to_string(reopened.bundle_path()).unwrap();
    assert_eq!(bundle.matches("BEGIN CERTIFICATE").count(), 1);
}

#[test]
fn revocation_lists_name_what_their_key_signed() {
    let dir = tempfile::tempdir().unwrap();
    let ca = init(dir.path());
    let mine = ca.issue(&request(DAY), NOW).unwrap().name;
    let foreign = CertName {
        issuer: KeyId::of_spki(b"other"),
        serial: mine.serial.clone(),
    };
    let lists = ca
        .revocation_lists(&[(mine.clone(), NOW), (foreign, NOW)], 7, NOW, DAY)
        .unwrap();
    assert_eq!(lists.len(), 1);
    let list = webpki::OwnedCertRevocationList::from_der(&lists[0]).unwrap();
    let list: webpki::CertRevocationList<'_> = list.into();
    assert!(list.find_serial(&mine.serial.bytes()).unwrap().is_some());
    assert!(list.find_serial(&[1]).unwrap().is_none());
}

#[test]
fn an_earlier_revocation_time_does_not_lower_the_floor() {
    let dir = tempfile::tempdir().unwrap();
    let ca = init(dir.path());
    let id = request(DAY).id;
    let revoked_at = NOW - Duration::from_secs(5);
    ca.raise_not_before(&[(id.clone(), revoked_at)]).unwrap();
    ca.raise_not_before(&[(id, revoked_at - DAY)]).unwrap();
    for ca in [ca, open(dir.path(), NOW).unwrap()] {
        let issued = ca.issue(&request(DAY), NOW).unwrap();
        let peer = PeerCertificate::parse(&issued.chain[0]).unwrap();
        assert_eq!(peer.not_before, revoked_at);
    }
}

#[test]
fn an_unusable_journal_entry_does_not_hide_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let ca = init(dir.path());
    let issued = ca.issue(&request(DAY), NOW).unwrap();
    let folder = dir.path().join("issued");
    let good = folder.join(format!("{}.json", issued.name.serial));
    fs::create_dir(folder.join("folder.json")).unwrap();
    fs::write(folder.join("empty.json"), "").unwrap();
    fs::write(folder.join("bytes.json"), [0xff]).unwrap();
    fs::copy(&good, folder.join("copy.json")).unwrap();
    for ca in [ca, open(dir.path(), NOW).unwrap()] {
        let entries = ca.journal().unwrap();
        assert_eq!(entries.len(), 1);
        assert_eq!(entries[0].serial, issued.name.serial.to_string());
    }
    let long_after = open(dir.path(), NOW + DAY * 20).unwrap();
    assert_eq!(long_after.journal().unwrap().len(), 1, "not pruned yet");
}
