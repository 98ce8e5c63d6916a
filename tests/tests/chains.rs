//! Chains and revocation lists, judged along the whole path: by a listener, by a client, on open
//! connections, and when an own identity is loaded.

#![allow(clippy::unwrap_used)]

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, ExtendedKeyUsagePurpose, GeneralSubtree,
    IsCa, KeyUsagePurpose, NameConstraints, SerialNumber,
};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime};
use std::time::Duration;
use tars_certs::{
    Identity, IdentityFiles, IdentityHandle, Revocations,
    identity::Parts,
    trust::{Side, Trust},
};
use tars_proto::grpc::health::v1::{HealthCheckRequest, health_client::HealthClient};
use tars_tests::{
    eventually,
    test_ca::{HOUR, Leaf, TestCa, client, is_let_in, now, uri},
    test_listener::TestListener,
    time,
};

type Crl = CertificateRevocationListDer<'static>;

/// The reason of the refusal, or `ok`, for a client and for a server.
fn verdicts(roots: &[&TestCa], crls: Vec<Crl>, chain: &[CertificateDer<'_>]) -> [&'static str; 2] {
    let at = Duration::from_secs(u64::try_from(now().unix_timestamp()).unwrap());
    let roots = roots.iter().map(|r| r.der.clone()).collect();
    let trust = Trust::new("tars.local", roots, crls, at).unwrap();
    let now = UnixTime::since_unix_epoch(at);
    [Side::Client, Side::Server].map(|side| {
        let judged = trust.verify(&chain[0], &chain[1..], now, side, &Revocations::default());
        judged.map_or_else(|refusal| refusal.reason(), |_| "ok")
    })
}

/// A leaf for both sides, but for what `shape` does to it.
fn leaf(of: &TestCa, shape: impl FnOnce(&mut CertificateParams)) -> Leaf {
    of.leaf(|p| {
        p.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ClientAuth,
            ExtendedKeyUsagePurpose::ServerAuth,
        ];
        shape(p);
    })
}

fn critical(oid: &[u64]) -> CustomExtension {
    let mut extension = CustomExtension::from_oid_content(oid, vec![5, 0]);
    extension.set_criticality(true);
    extension
}

/// keyUsage with these bits, marked as critical or not.
fn key_usage(bits: [u8; 2], is_critical: bool) -> CustomExtension {
    let content = vec![0x03, 0x02, bits[0], bits[1]];
    let mut extension = CustomExtension::from_oid_content(&[2, 5, 29, 15], content);
    extension.set_criticality(is_critical);
    extension
}

type Shape = Box<dyn FnOnce(&mut CertificateParams)>;

fn usages(usages: &[KeyUsagePurpose]) -> Shape {
    let usages = usages.to_vec();
    Box::new(move |p| p.key_usages = usages)
}

#[test]
fn a_leaf_is_no_authority_and_says_that_it_signs_handshakes() {
    use KeyUsagePurpose::{CrlSign, DigitalSignature, KeyAgreement, KeyCertSign, KeyEncipherment};
    let root = TestCa::root("root");
    let issuer = root.below("intermediate", |_| {});
    let cases: Vec<(&str, &str, Shape)> = vec![
        ("a good leaf", "ok", Box::new(|_| {})),
        (
            "more uses",
            "ok",
            usages(&[DigitalSignature, KeyEncipherment, KeyAgreement]),
        ),
        (
            "keyCertSign",
            "leaf_signs",
            usages(&[DigitalSignature, KeyCertSign]),
        ),
        (
            "cRLSign",
            "leaf_signs",
            usages(&[DigitalSignature, CrlSign]),
        ),
        ("keyCertSign alone", "leaf_signs", usages(&[KeyCertSign])),
        (
            "no digitalSignature",
            "key_usage",
            usages(&[KeyEncipherment]),
        ),
        ("no key usage", "key_usage", usages(&[])),
        (
            "a key usage that may be passed over",
            "key_usage",
            Box::new(|p| {
                p.key_usages.clear();
                p.custom_extensions.push(key_usage([7, 0x80], false));
            }),
        ),
        (
            "two key usages",
            "malformed",
            Box::new(|p| p.custom_extensions.push(key_usage([7, 0x80], true))),
        ),
        (
            "the CA bit",
            "leaf_is_ca",
            Box::new(|p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)),
        ),
        (
            "an unknown critical extension",
            "critical_extension",
            Box::new(|p| p.custom_extensions.push(critical(&[1, 2, 3, 4]))),
        ),
        (
            "two ids",
            "several_ids",
            Box::new(|p| p.subject_alt_names.push(uri("spiffe://tars.local/auth"))),
        ),
        (
            "the id of a trust domain",
            "bad_id",
            Box::new(|p| p.subject_alt_names = vec![uri("spiffe://tars.local")]),
        ),
    ];
    for (what, reason, shape) in cases {
        let found = verdicts(&[&root], vec![], &leaf(&issuer, shape).0);
        // webpki finds a repeated extension before anything is asked here.
        let same = |r: &str| r == reason || (reason == "malformed" && r == "chain");
        assert!(found.iter().all(|r| same(r)), "{what}: {found:?}");
    }
}

#[test]
fn an_issuer_in_the_path_must_be_allowed_to_sign_certificates() {
    use KeyUsagePurpose::{CrlSign, DigitalSignature, KeyCertSign};
    let root = TestCa::root("root");
    let cases: Vec<(&str, &str, Shape)> = vec![
        ("a good intermediate", "ok", Box::new(|_| {})),
        ("keyCertSign alone", "ok", usages(&[KeyCertSign])),
        (
            "no keyCertSign",
            "issuer_key_usage",
            usages(&[CrlSign, DigitalSignature]),
        ),
        ("no key usage", "issuer_key_usage", usages(&[])),
        (
            "no CA bit",
            "issuer_is_no_ca",
            Box::new(|p| p.is_ca = IsCa::ExplicitNoCa),
        ),
        (
            "an unknown critical extension",
            "critical_extension",
            Box::new(|p| p.custom_extensions.push(critical(&[1, 2, 3, 4]))),
        ),
        (
            "critical policy constraints",
            "critical_extension",
            Box::new(|p| p.custom_extensions.push(critical(&[2, 5, 29, 36]))),
        ),
        (
            "the id of its trust domain",
            "ok",
            Box::new(|p| p.subject_alt_names = vec![uri("spiffe://tars.local")]),
        ),
        (
            "a workload's id",
            "issuer_id",
            Box::new(|p| p.subject_alt_names = vec![uri("spiffe://tars.local/auth")]),
        ),
        (
            "another trust domain's id",
            "issuer_id",
            Box::new(|p| p.subject_alt_names = vec![uri("spiffe://evil.local")]),
        ),
        (
            "an id and another",
            "issuer_id",
            Box::new(|p| {
                p.subject_alt_names = vec![uri("spiffe://tars.local"), uri("https://x")];
            }),
        ),
        (
            "no use for either side",
            "purpose",
            Box::new(|p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning]),
        ),
        (
            "not yet valid",
            "not_yet_valid",
            Box::new(|p| p.not_before = now() + HOUR / 2),
        ),
        (
            "bound to the names of others",
            "name_constraint",
            Box::new(|p| {
                p.name_constraints = Some(NameConstraints {
                    permitted_subtrees: vec![],
                    excluded_subtrees: vec![GeneralSubtree::DnsName("evil.local".into())],
                });
            }),
        ),
    ];
    for (what, reason, shape) in cases {
        let issuer = root.below("intermediate", shape);
        let found = verdicts(
            &[&root],
            vec![],
            &leaf(&issuer, |p| {
                let name = rcgen::SanType::DnsName("x.evil.local".try_into().unwrap());
                p.subject_alt_names.push(name);
            })
            .0,
        );
        assert_eq!(found, [reason; 2], "{what}");
        // One step further up, the same holds.
        if reason != "ok" {
            let deep = leaf(&issuer.below("below", |_| {}), |p| {
                let name = rcgen::SanType::DnsName("x.evil.local".try_into().unwrap());
                p.subject_alt_names.push(name);
            });
            assert_eq!(
                verdicts(&[&root], vec![], &deep.0),
                [reason; 2],
                "deep: {what}"
            );
        }
    }
}

#[test]
fn a_path_that_is_refused_does_not_hide_one_that_is_good() {
    let root = TestCa::root("root");
    let issuer = root.below("intermediate", |_| {});
    let mut bad = issuer.params.clone();
    bad.key_usages.clear();
    let by = rcgen::Issuer::from_params(&root.params, &root.key);
    let bad = bad.signed_by(&issuer.key, &by).unwrap();
    let (chain, _) = leaf(&issuer, |_| {});
    let both = [chain[0].clone(), bad.der().clone(), issuer.der.clone()];
    assert_eq!(verdicts(&[&root], vec![], &both), ["ok"; 2]);
    assert_eq!(
        verdicts(&[&root], vec![], &both[..2]),
        ["issuer_key_usage"; 2]
    );
}

#[test]
fn a_root_is_held_to_the_same_rules_when_it_is_loaded() {
    use KeyUsagePurpose::{CrlSign, KeyCertSign};
    let at = Duration::from_secs(u64::try_from(now().unix_timestamp()).unwrap());
    let cases: Vec<(&str, &str, Shape)> = vec![
        ("a good root", "", Box::new(|_| {})),
        ("no cRLSign", "", usages(&[KeyCertSign])),
        ("no keyCertSign", "keyCertSign", usages(&[CrlSign])),
        ("no key usage", "keyCertSign", usages(&[])),
        (
            "no CA bit",
            "CA bit",
            Box::new(|p| p.is_ca = IsCa::ExplicitNoCa),
        ),
        (
            "an unknown critical extension",
            "critical extension",
            Box::new(|p| p.custom_extensions.push(critical(&[1, 2, 3, 4]))),
        ),
        (
            "a workload's id",
            "SPIFFE id",
            Box::new(|p| p.subject_alt_names = vec![uri("spiffe://tars.local/auth")]),
        ),
        (
            "another trust domain",
            "SPIFFE id",
            Box::new(|p| p.subject_alt_names = vec![uri("spiffe://evil.local")]),
        ),
    ];
    let good = TestCa::root("good");
    for (what, problem, shape) in cases {
        let root = TestCa::root_with("odd", shape);
        // A good one beside it makes it no better.
        let roots = vec![good.der.clone(), root.der.clone()];
        let loaded = Trust::new("tars.local", roots, vec![], at);
        match loaded {
            Ok(_) => assert_eq!(problem, "", "{what} is loaded"),
            Err(e) => {
                assert!(
                    !problem.is_empty() && e.to_string().contains(problem),
                    "{what}: {e}"
                );
                assert!(e.to_string().contains("odd"), "it is named: {e}");
            }
        }
    }
    let early = TestCa::root_with("early", |p| p.not_before = now() + HOUR / 2);
    let chain = leaf(&early, |_| {}).0;
    assert_eq!(verdicts(&[&early], vec![], &chain), ["not_yet_valid"; 2]);
    let flat = TestCa::root_with("flat", |p| {
        p.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    });
    assert_eq!(
        verdicts(&[&flat], vec![], &leaf(&flat, |_| {}).0),
        ["ok"; 2]
    );
    let below = flat.below("below", |_| {});
    assert_eq!(
        verdicts(&[&flat], vec![], &leaf(&below, |_| {}).0),
        ["path_length"; 2]
    );
}

/// A root, an intermediate and its leaf, with serials that lists can name.
struct Path {
    root: TestCa,
    issuer: TestCa,
    chain: Vec<CertificateDer<'static>>,
}

const ISSUER: [u8; 2] = [0x11, 0x11];
const LEAF: [u8; 2] = [0x22, 0x22];

fn path() -> Path {
    let root = TestCa::root("root");
    let issuer = root.below("intermediate", |p| {
        p.serial_number = Some(SerialNumber::from_slice(&ISSUER));
    });
    let serial =
        |p: &mut CertificateParams| p.serial_number = Some(SerialNumber::from_slice(&LEAF));
    let chain = leaf(&issuer, serial).0;
    Path {
        root,
        issuer,
        chain,
    }
}

impl Path {
    fn judged(&self, crls: Vec<Crl>) -> [&'static str; 2] {
        verdicts(&[&self.root], crls, &self.chain)
    }
}

#[test]
fn every_certificate_of_the_path_needs_a_list_that_clears_it() {
    let p = path();
    let in_time = || now() + HOUR;
    let root_list = |serials: &[&[u8]]| p.root.revocation_list(serials, in_time());
    let issuer_list = |serials: &[&[u8]]| p.issuer.revocation_list(serials, in_time());
    let other: &[u8] = &[0x33];
    for (what, reason, crls) in [
        ("no lists at all", "ok", vec![]),
        (
            "both clear",
            "ok",
            vec![root_list(&[other]), issuer_list(&[other])],
        ),
        (
            "the leaf",
            "revoked",
            vec![root_list(&[]), issuer_list(&[&LEAF])],
        ),
        (
            "the intermediate",
            "revoked",
            vec![root_list(&[&ISSUER]), issuer_list(&[])],
        ),
        (
            "both",
            "revoked",
            vec![root_list(&[&ISSUER]), issuer_list(&[&LEAF])],
        ),
        (
            "the intermediate's serial on its own list",
            "ok",
            vec![root_list(&[]), issuer_list(&[&ISSUER])],
        ),
        (
            "no list for the intermediate",
            "crl_missing",
            vec![issuer_list(&[])],
        ),
        ("no list for the leaf", "crl_missing", vec![root_list(&[])]),
        (
            "the root's has ended",
            "crl_expired",
            vec![p.root.revocation_list(&[], now() - HOUR), issuer_list(&[])],
        ),
        (
            "the intermediate's has ended",
            "crl_expired",
            vec![root_list(&[]), p.issuer.revocation_list(&[], now() - HOUR)],
        ),
        (
            "one that ended is not made good by what it does not name",
            "crl_expired",
            vec![
                root_list(&[]),
                p.issuer.revocation_list(&[other], now() - HOUR),
            ],
        ),
        (
            "one of tomorrow",
            "crl_expired",
            vec![
                root_list(&[]),
                p.issuer.revocation_list_with(&[], |l| {
                    l.this_update = now() + HOUR / 2;
                }),
            ],
        ),
        (
            "another's in the same name",
            "crl_signature",
            vec![
                root_list(&[]),
                TestCa::root("intermediate").revocation_list(&[], in_time()),
            ],
        ),
        (
            "a forged one beside a good one",
            "ok",
            vec![
                root_list(&[]),
                TestCa::root("intermediate").revocation_list(&[&LEAF], in_time()),
                issuer_list(&[]),
            ],
        ),
    ] {
        assert_eq!(p.judged(crls), [reason; 2], "{what}");
    }
}

#[test]
fn of_two_lists_of_one_issuer_the_newer_counts() {
    let p = path();
    let numbered = |number: u64, serials: &[&[u8]]| {
        p.issuer.revocation_list_with(serials, |l| {
            l.crl_number = SerialNumber::from(number);
        })
    };
    let root_list = || p.root.revocation_list(&[], now() + HOUR);
    let revoking = [numbered(300, &[&LEAF]), numbered(20, &[])];
    let released = [numbered(300, &[]), numbered(20, &[&LEAF])];
    for at in [0, 1] {
        let pair = |lists: &[Crl; 2]| vec![lists[at].clone(), root_list(), lists[1 - at].clone()];
        assert_eq!(p.judged(pair(&revoking)), ["revoked"; 2], "order {at}");
        assert_eq!(p.judged(pair(&released)), ["ok"; 2], "order {at}");
    }
}

#[test]
fn a_list_counts_only_from_whoever_may_sign_lists() {
    let root = TestCa::root("root");
    let mut issuer = root.below("intermediate", |p| {
        p.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    });
    let chain = leaf(&issuer, |_| {}).0;
    // The key signs one all the same.
    issuer.params.key_usages.push(KeyUsagePurpose::CrlSign);
    let list = issuer.revocation_list(&[], now() + HOUR);
    let root_list = root.revocation_list(&[], now() + HOUR);
    let found = verdicts(&[&root], vec![root_list, list], &chain);
    assert_eq!(found, ["crl_signer"; 2]);
    // webpki does not know what a root may do.
    let mut flat = TestCa::root_with("flat", |p| {
        p.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    });
    let chain = leaf(&flat, |_| {}).0;
    flat.params.key_usages.push(KeyUsagePurpose::CrlSign);
    let list = flat.revocation_list(&[], now() + HOUR);
    assert_eq!(verdicts(&[&flat], vec![list], &chain), ["crl_signer"; 2]);
}

#[test]
fn lists_that_are_not_understood_are_not_loaded() {
    let p = path();
    let at = Duration::from_secs(u64::try_from(now().unix_timestamp()).unwrap());
    let load = |list: Vec<u8>| {
        Trust::new(
            "tars.local",
            vec![p.root.der.clone()],
            vec![list.into()],
            at,
        )
        .map(drop)
    };
    let good = p.issuer.revocation_list(&[&LEAF], now() + HOUR).to_vec();
    assert!(load(good.clone()).is_ok());
    for cut in [0, 1, good.len() / 2, good.len() - 1] {
        assert!(load(good[..cut].to_vec()).is_err(), "{cut} bytes");
    }
    let mut trailing = good.clone();
    trailing.push(0);
    assert!(load(trailing).is_err(), "something behind it");
    // crlNumber, made into a delta indicator and into something unknown and critical: the signature
    // does not matter, as such a list is not looked at any further.
    let number = good
        .windows(5)
        .position(|w| w == [6, 3, 0x55, 0x1d, 0x14])
        .unwrap();
    let mut delta = good;
    delta[number + 4] = 27;
    assert!(load(delta).unwrap_err().to_string().contains("elta"));
}

fn parts(of: &TestCa, root: &TestCa, path: &str, crls: Vec<Crl>) -> Parts {
    Parts {
        crls,
        ..of.parts(path, vec![root.der.clone()])
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_intermediate_serves_nobody_and_is_served_by_nobody() {
    let root = TestCa::root("root");
    let serial =
        |p: &mut CertificateParams| p.serial_number = Some(SerialNumber::from_slice(&ISSUER));
    let (bad, good) = (root.below("bad", serial), root.below("good", |_| {}));
    let lists = |serials: &[&[u8]]| {
        vec![
            root.revocation_list_with(serials, |l| {
                l.crl_number = SerialNumber::from(2 + serials.len() as u64);
            }),
            bad.revocation_list(&[], now() + HOUR),
            good.revocation_list(&[], now() + HOUR),
        ]
    };
    // In: a client below the revoked intermediate.
    let listener = TestListener::open(parts(&good, &root, "/door", lists(&[&ISSUER]))).await;
    let before = listener.refused("revoked");
    assert!(!is_let_in(listener.addr, client(Some(bad.leaf(|_| {})))).await);
    eventually("it is counted", || async {
        listener.refused("revoked") > before
    })
    .await;
    assert!(is_let_in(listener.addr, client(Some(good.leaf(|_| {})))).await);
    // Out: a server below it, that has no lists.
    let served = TestListener::open(bad.parts("/door", vec![root.der.clone()])).await;
    let own = |crls| {
        let identity = Identity::new(parts(&good, &root, "/client/x", crls), &time());
        IdentityHandle::new(identity.unwrap())
    };
    let refused = served.channel(own(lists(&[&ISSUER])), Revocations::default());
    let why = refused.server().await.unwrap_err().to_string();
    assert!(why.contains("(revoked)"), "{why}");
    let blind = served.channel(own(vec![]), Revocations::default());
    assert!(blind.server().await.is_ok(), "nobody told it");
    // Open connections, both ways: cut when the list comes, with their streams.
    let inward = TestListener::open(parts(&good, &root, "/door", lists(&[]))).await;
    let theirs = Identity::new(bad.parts("/client/x", vec![root.der.clone()]), &time()).unwrap();
    let channel = inward.channel(IdentityHandle::new(theirs), Revocations::default());
    let mut in_stream = watch(&channel).await;
    let ours = own(lists(&[]));
    let channel = served.channel(ours.clone(), Revocations::default());
    let mut out_stream = watch(&channel).await;
    let next =
        |path: &str| Identity::new(parts(&good, &root, path, lists(&[&ISSUER])), &time()).unwrap();
    inward.identity.publish(next("/door"));
    ours.publish(next("/client/x"));
    let limit = Duration::from_secs(20);
    let ended = tokio::time::timeout(limit, in_stream.message()).await;
    assert!(ended.unwrap().is_err(), "the client's stream is cut");
    let ended = tokio::time::timeout(limit, out_stream.message()).await;
    assert!(ended.unwrap().is_err(), "the stream from the server is cut");
    eventually("no connection is left", || async {
        inward.table.is_empty()
    })
    .await;
}

async fn watch(
    channel: &tars_mesh::Channel,
) -> tonic::Streaming<tars_proto::grpc::health::v1::HealthCheckResponse> {
    let mut client = HealthClient::new(channel.clone());
    let opened = client.watch(HealthCheckRequest::default()).await;
    let mut stream = opened.unwrap().into_inner();
    stream.message().await.unwrap().unwrap();
    stream
}

#[test]
fn an_own_identity_below_a_revoked_intermediate_is_not_loaded_and_an_old_list_not_taken() {
    let root = TestCa::root("root");
    let issuer = root.below("intermediate", |p| {
        p.serial_number = Some(SerialNumber::from_slice(&ISSUER));
    });
    let lists = |number: u64, serials: &[&[u8]]| {
        let list = root.revocation_list_with(serials, |l| {
            l.crl_number = SerialNumber::from(number);
        });
        vec![list, issuer.revocation_list(&[], now() + HOUR)]
    };
    let dir = tempfile::tempdir().unwrap();
    let files = IdentityFiles::in_dir(dir.path());
    let identity = Identity::new(issuer.parts("/auth", vec![root.der.clone()]), &time()).unwrap();
    files.save_identity(&identity).unwrap();
    let mount = |lists: Vec<Crl>| {
        let text: String = lists
            .iter()
            .map(|l| tars_certs::files::encode("X509 CRL", l))
            .collect();
        std::fs::write(&files.crl, format!("# lists of today\n\n{text}")).unwrap();
    };
    mount(lists(5, &[]));
    let first = files.load(&time()).unwrap();
    mount(lists(6, &[&ISSUER]));
    let refused = files.load(&time()).unwrap_err().to_string();
    assert!(refused.contains("revoked"), "{refused}");
    // Somebody puts the list of yesterday back: the newer one stays in force.
    mount(lists(4, &[]));
    let again = files.load_after(Some(first.trust()), &time()).unwrap();
    assert_eq!(again.trust().crls()[0], first.trust().crls()[0]);
    // One that is cut short is named.
    let text = std::fs::read_to_string(&files.crl).unwrap();
    std::fs::write(&files.crl, &text[..text.len() - 30]).unwrap();
    let refused = files.load(&time()).unwrap_err().to_string();
    assert!(
        refused.contains("ca.crl") && refused.contains("block 2 (X509 CRL, line"),
        "{refused}"
    );
}
