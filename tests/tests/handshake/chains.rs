//! Certificates and their chains: which leaves, authorities, keys and signatures are refused.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn leaves_of_other_authorities_are_refused() {
    let w = world().await;
    let own = TestCa::root_with("self", |p| {
        p.is_ca = IsCa::NoCa;
        p.subject_alt_names = vec![uri("spiffe://tars.local/client/x")];
        p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    });
    let self_signed = (
        vec![own.der.clone()],
        PrivateKeyDer::try_from(own.key.serialize_der()).unwrap(),
    );
    w.refuses(
        "a self-signed certificate",
        "unknown_issuer",
        Some(self_signed),
    )
    .await;
    // The same names and the same key identifiers, another key.
    let same = |p: &mut CertificateParams| {
        p.key_identifier_method = rcgen::KeyIdMethod::PreSpecified(vec![7; 20]);
    };
    let (ours, theirs) = (
        TestCa::root_with("root", same),
        TestCa::root_with("root", same),
    );
    let listener = TestListener::open(ours.parts("/door", vec![ours.der.clone()])).await;
    assert!(is_let_in(listener.addr, client(Some(ours.leaf(|_| {})))).await);
    refuses(
        &listener,
        "a namesake",
        "signature",
        client(Some(theirs.leaf(|_| {}))),
    )
    .await;
    // A leaf that a server's certificate signed.
    let server = w.issuer.below("server", |p| {
        p.is_ca = IsCa::NoCa;
        p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    });
    let leaf = server.leaf(|_| {});
    w.refuses(
        "a leaf below a server's leaf",
        "issuer_is_no_ca",
        Some(leaf),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn chains_outside_of_their_validity_are_refused() {
    let w = world().await;
    let late = w.issuer.leaf(|p| p.not_after = now() - HOUR);
    w.refuses("expired", "expired", Some(late)).await;
    let early = w.issuer.leaf(|p| p.not_before = now() + HOUR / 2);
    w.refuses("not yet valid", "not_yet_valid", Some(early))
        .await;
    let ended = w.root.below("ended", |p| p.not_after = now() - HOUR);
    w.refuses(
        "an expired intermediate",
        "expired",
        Some(ended.leaf(|_| {})),
    )
    .await;
}

/// Judges a client's chain at a second of its own.
fn judge(trust: &Trust, leaf: &Leaf, at: time::OffsetDateTime) -> Result<Verified, &'static str> {
    let seconds = Duration::from_secs(u64::try_from(at.unix_timestamp()).unwrap());
    let at = rustls::pki_types::UnixTime::since_unix_epoch(seconds);
    let (first, rest) = leaf.0.split_first().unwrap();
    trust
        .verify(first, rest, at, Side::Client, &Revocations::default())
        .map_err(|refusal| refusal.reason())
}

fn trust(roots: Vec<CertificateDer<'static>>, at: time::OffsetDateTime) -> Trust {
    let now = Duration::from_secs(u64::try_from(at.unix_timestamp()).unwrap());
    Trust::new("tars.local", roots, Vec::new(), now).unwrap()
}

#[test]
fn validity_includes_its_first_and_last_second_also_for_roots() {
    let second = time::Duration::SECOND;
    let (start, end) = (
        now().replace_nanosecond(0).unwrap(),
        now().replace_nanosecond(0).unwrap() + HOUR,
    );
    let root = TestCa::root("root");
    let leaf = root.leaf(|p| {
        p.not_before = start;
        p.not_after = end;
    });
    let all = trust(vec![root.der.clone()], start);
    assert_eq!(judge(&all, &leaf, start - second), Err("not_yet_valid"));
    assert!(judge(&all, &leaf, start).is_ok());
    assert!(judge(&all, &leaf, end).is_ok());
    assert_eq!(judge(&all, &leaf, end + second), Err("expired"));
    // Path building does not look at a root's end.
    let short = TestCa::root_with("short", |p| p.not_after = start + HOUR / 2);
    let leaf = short.leaf(|p| p.not_after = end);
    let all = trust(vec![root.der.clone(), short.der.clone()], start);
    assert!(judge(&all, &leaf, start + HOUR / 4).is_ok());
    assert_eq!(judge(&all, &leaf, start + HOUR / 2), Err("expired_root"));
    let pruned = trust(vec![root.der, short.der], start + HOUR / 2);
    assert_eq!(pruned.roots().len(), 1, "left out at load");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leaf_that_is_not_for_clients_is_refused() {
    let w = world().await;
    let usages =
        |usages: Vec<ExtendedKeyUsagePurpose>| w.issuer.leaf(|p| p.extended_key_usages = usages);
    let server = usages(vec![ExtendedKeyUsagePurpose::ServerAuth]);
    w.refuses("for servers only", "purpose", Some(server)).await;
    let any = usages(vec![ExtendedKeyUsagePurpose::Any]);
    w.refuses("for anything", "purpose", Some(any)).await;
    w.refuses("for nothing in particular", "no_eku", Some(usages(vec![])))
        .await;
    let empty = w.issuer.leaf(|p| {
        p.extended_key_usages.clear();
        let extension = CustomExtension::from_oid_content(&[2, 5, 29, 37], vec![0x30, 0x00]);
        p.custom_extensions.push(extension);
    });
    w.refuses("for an empty list", "purpose", Some(empty)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leaf_without_exactly_one_spiffe_id_is_refused() {
    let w = world().await;
    let named = |names: Vec<SanType>| w.issuer.leaf(|p| p.subject_alt_names = names);
    let good_name = w.issuer.leaf(|p| {
        p.subject_alt_names.clear();
        p.distinguished_name
            .push(rcgen::DnType::CommonName, "spiffe://tars.local/auth");
    });
    w.refuses("no name but a good common name", "no_id", Some(good_name))
        .await;
    let dns = named(vec![SanType::DnsName("auth".try_into().unwrap())]);
    w.refuses("a DNS name alone", "no_id", Some(dns)).await;
    for (what, reason, text) in [
        ("a wildcard", "bad_id", "spiffe://tars.local/*"),
        ("a NUL", "bad_id", "spiffe://tars.local/auth\0evil"),
        ("a web address", "bad_id", "https://tars.local/auth"),
        ("upper case", "bad_id", "spiffe://TARS.local/auth"),
        ("a port", "bad_id", "spiffe://tars.local:443/auth"),
        ("a query", "bad_id", "spiffe://tars.local/auth?admin"),
        ("dots", "bad_id", "spiffe://tars.local/a/../auth"),
        ("no path", "bad_id", "spiffe://tars.local"),
        (
            "another trust domain",
            "trust_domain",
            "spiffe://tars.local.evil/auth",
        ),
    ] {
        w.refuses(what, reason, Some(named(vec![uri(text)]))).await;
    }
    let two = named(vec![uri("spiffe://tars.local/auth"), uri("https://x")]);
    w.refuses("two URI names", "several_ids", Some(two)).await;
    // An id that no class knows is let in, and may do nothing: `refusals.rs` shows the denial.
    let unknown: SpiffeId = "spiffe://tars.local/nobody".parse().unwrap();
    assert!(
        w.lets_in(client(Some(named(vec![uri(unknown.as_str())]))))
            .await
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_current_list_of_the_issuer_says_what_is_revoked() {
    let serial = [0x0a, 0xbc];
    let root = TestCa::root("root");
    let issuer = root.below("intermediate", |_| {});
    let other = root.below("other", |_| {});
    let with_serial = |of: &TestCa, serial: &[u8]| {
        let serial = rcgen::SerialNumber::from_slice(serial);
        of.leaf(|p| p.serial_number = Some(serial))
    };
    let open = async |list| {
        // The door's own leaf comes from the root, which has a list of its own.
        let mut parts = root.parts("/door", vec![root.der.clone()]);
        parts.crls = vec![root.revocation_list(&[], now() + HOUR), list];
        TestListener::open(parts).await
    };
    let listener = open(issuer.revocation_list(&[&serial], now() + HOUR)).await;
    assert!(is_let_in(listener.addr, client(Some(with_serial(&issuer, &[0x0d])))).await);
    let revoked = client(Some(with_serial(&issuer, &serial)));
    refuses(&listener, "a listed serial", "revoked", revoked).await;
    let unlisted = client(Some(with_serial(&other, &[0x0d])));
    refuses(
        &listener,
        "an issuer without a list",
        "crl_missing",
        unlisted,
    )
    .await;

    let listener = open(issuer.revocation_list(&[], now() - HOUR)).await;
    let good = || client(Some(with_serial(&issuer, &[0x0d])));
    refuses(&listener, "an expired list", "crl_expired", good()).await;

    // A list in the issuer's name, signed by another key.
    let impostor = TestCa::root("intermediate");
    let listener = open(impostor.revocation_list(&[], now() + HOUR)).await;
    refuses(&listener, "a forged list", "crl_signature", good()).await;
}

fn fixture(name: &str) -> Vec<CertificateDer<'static>> {
    let path = format!("{}/fixtures/weak/{name}.crt", env!("CARGO_MANIFEST_DIR"));
    vec![CertificateDer::from_pem_file(path).unwrap()]
}

#[tokio::test(flavor = "multi_thread")]
async fn weak_keys_and_signatures_are_refused() {
    let own = TestCa::root("own");
    let mut parts = own.parts("/door", vec![own.der.clone()]);
    parts.roots.extend(fixture("ca"));
    let listener = TestListener::open(parts).await;
    for (name, reason) in [
        ("rsa1024", "weak_key"),
        ("p192", "weak_key"),
        ("dsa", "weak_key"),
        ("sha1", "weak_signature"),
    ] {
        refuses(&listener, name, reason, client_without_key(fixture(name))).await;
    }
    let path = format!("{}/fixtures/weak/good.key", env!("CARGO_MANIFEST_DIR"));
    let key = PrivateKeyDer::from_pem_file(path).unwrap();
    assert!(is_let_in(listener.addr, client(Some((fixture("good"), key)))).await);
    let other_key = client_without_key(fixture("good"));
    refuses(&listener, "a chain without its key", "proof", other_key).await;
    let ed = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    assert!(
        is_let_in(listener.addr, client(Some(own.leaf_of(ed, |_| {})))).await,
        "Ed25519"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_and_unconnected_chains_are_refused() {
    let w = world().await;
    let as_ca = w
        .issuer
        .leaf(|p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained));
    w.refuses("an authority as a leaf", "leaf_is_ca", Some(as_ca))
        .await;
    let no_ca = w
        .root
        .below("no authority", |p| p.is_ca = IsCa::ExplicitNoCa);
    w.refuses(
        "an issuer that is none",
        "issuer_is_no_ca",
        Some(no_ca.leaf(|_| {})),
    )
    .await;
    let short = w.root.below("short", |p| {
        p.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    });
    let long = short.below("below", |_| {}).leaf(|_| {});
    w.refuses("a path too long", "path_length", Some(long))
        .await;
    let bound = w.root.below("bound", |p| {
        p.name_constraints = Some(NameConstraints {
            permitted_subtrees: vec![GeneralSubtree::DnsName("good.local".into())],
            excluded_subtrees: vec![],
        });
    });
    let outside = bound.leaf(|p| {
        let name = SanType::DnsName("evil.local".try_into().unwrap());
        p.subject_alt_names.push(name);
    });
    w.refuses("a name out of bounds", "name_constraint", Some(outside))
        .await;
    let strange = w.issuer.leaf(|p| {
        let mut extension = CustomExtension::from_oid_content(&[1, 2, 3, 4], vec![5, 0]);
        extension.set_criticality(true);
        p.custom_extensions.push(extension);
    });
    let strange = client_without_key(strange.0);
    refuses(
        &w.listener,
        "an unknown critical extension",
        "critical_extension",
        strange,
    )
    .await;
    let (leaf, key) = w.issuer.leaf(|_| {});
    let hundred: Vec<_> = std::iter::once(leaf[0].clone())
        .chain((0..100).map(|_| w.issuer.der.clone()))
        .collect();
    let hundred = (hundred, key.clone_key());
    w.refuses("a hundred intermediates", "chain_too_long", Some(hundred))
        .await;
    // Two authorities that sign each other, and no way out: a search must end.
    let (a, b) = (TestCa::root("a"), TestCa::root("b"));
    let (a_by_b, b_by_a) = (cross(&a, &b), cross(&b, &a));
    let (mut chain, key) = a.leaf(|_| {});
    for _ in 0..3 {
        chain.extend([a_by_b.clone(), b_by_a.clone()]);
    }
    w.refuses("a circle", "unknown_issuer", Some((chain, key)))
        .await;
    let cut = (
        vec![leaf[0].clone(), leaf[0].clone()],
        w.issuer.leaf(|_| {}).1,
    );
    let config = client_without_key(cut.0);
    refuses(
        &w.listener,
        "a chain without its middle",
        "unknown_issuer",
        config,
    )
    .await;
}

/// `subject` signed by `issuer`.
fn cross(subject: &TestCa, issuer: &TestCa) -> CertificateDer<'static> {
    let by = rcgen::Issuer::from_params(&issuer.params, &issuer.key);
    subject
        .params
        .signed_by(&subject.key, &by)
        .unwrap()
        .der()
        .clone()
}
