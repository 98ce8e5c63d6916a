//! What parses outside bytes in the certificates plane, as functions of bytes: each must return,
//! whatever comes, and what it accepts must hold together. `tests/fuzz.rs` runs them over mutated
//! good input; any fuzzer can be put in front of them.

use http::{HeaderMap, HeaderName, HeaderValue};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime};
use std::{net::IpAddr, sync::LazyLock, time::Duration};
use tars_certs::{
    PeerCertificate, Revocations, Serial, SpiffeId,
    ca::csr,
    files::IdentityPem,
    inspect::summarise,
    join::JoinToken,
    trust::{Side, Trust},
};
use tars_gateway::forwarded::client;
use tars_interceptors::{Policy, contract};
use tars_runtime::network::{Network, Networks};

/// A target, and good inputs to begin with.
pub struct Target {
    /// As the command line and the corpus name it.
    pub name: &'static str,
    /// Feeds one input; panics on a broken invariant.
    pub run: fn(&[u8]),
    /// Well-formed inputs that mutations begin with.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// Every parser of bytes that a stranger sends.
pub const TARGETS: [Target; 10] = [
    Target {
        name: "spiffe_id",
        run: spiffe_id,
        seeds: || {
            vec![
                b"spiffe://tars.local/ns/prod/sa/auth".to_vec(),
                b"spiffe://tars.local/user/ada".to_vec(),
            ]
        },
    },
    Target {
        name: "certificate",
        run: certificate,
        seeds: || world().certificates.clone(),
    },
    Target {
        name: "chain",
        run: chain,
        seeds: || world().certificates.clone(),
    },
    Target {
        name: "csr",
        run: signing_request,
        seeds: || world().requests.clone(),
    },
    Target {
        name: "crl",
        run: revocation_list,
        seeds: || world().lists.clone(),
    },
    Target {
        name: "policy",
        run: policy,
        seeds: || vec![include_bytes!("../fixtures/policy.toml").to_vec()],
    },
    Target {
        name: "join_token",
        run: join_token,
        seeds: || {
            let hex = "00".repeat(74);
            vec![format!("tars_join_0100{hex}2f2f{}", "11".repeat(32)).into_bytes()]
        },
    },
    Target {
        name: "forwarded",
        run: forwarded,
        seeds: || {
            vec![
                b"for=192.0.2.43, for=\"[2001:db8::17]:4711\";proto=https;by=10.0.0.1".to_vec(),
                b"for=\"_gaze\\\"pho\", For=10.0.0.2\nfor=198.51.100.7".to_vec(),
                b"6.6.6.6, 192.0.2.43, [2001:db8::17]:80,10.0.0.2\n10.0.0.3".to_vec(),
            ]
        },
    },
    Target {
        name: "network",
        run: network,
        seeds: || vec![b"10.0.0.0/8".to_vec(), b"2001:db8::/33".to_vec()],
    },
    Target {
        name: "identity_pem",
        run: identity_pem,
        seeds: || vec![world().pem.clone()],
    },
];

struct World {
    certificates: Vec<Vec<u8>>,
    requests: Vec<Vec<u8>>,
    lists: Vec<Vec<u8>>,
    pem: Vec<u8>,
    root: CertificateDer<'static>,
}

fn world() -> &'static World {
    static WORLD: LazyLock<World> = LazyLock::new(|| {
        let root = crate::test_ca::TestCa::root("root");
        let issuer = root.below("intermediate", |_| {});
        let leaf = issuer.leaf(|_| {});
        let parts = issuer.parts("/client/x", vec![root.der.clone()]);
        let key = rcgen::KeyPair::generate().expect("a key");
        let identity = tars_certs::Identity::new(parts, &crate::time()).expect("a good identity");
        let ends = crate::test_ca::now() + crate::test_ca::HOUR;
        World {
            certificates: vec![leaf.0[0].to_vec(), issuer.der.to_vec(), root.der.to_vec()],
            requests: vec![csr::create(&key).expect("a request")],
            lists: vec![issuer.revocation_list(&[&[1, 2, 3]], ends).to_vec()],
            pem: serde_json::to_vec(&IdentityPem::of(&identity)).expect("JSON"),
            root: root.der,
        }
    });
    &WORLD
}

fn spiffe_id(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(id) = text.parse::<SpiffeId>() {
        assert_eq!(id.to_string(), text, "nothing is repaired");
        let again = SpiffeId::new(id.trust_domain(), id.path());
        assert_eq!(again.as_ref(), Ok(&id), "its parts make it again");
        assert!(id.path().starts_with('/') && !id.path().contains(".."));
    }
}

fn certificate(data: &[u8]) {
    if let Ok(peer) = PeerCertificate::parse(data) {
        let serial = peer.serial.as_str().parse::<Serial>();
        assert_eq!(serial.as_ref(), Ok(&peer.serial));
    }
    summarise(data);
}

/// As a leaf, and as an intermediate behind a good leaf.
fn chain(data: &[u8]) {
    let now = crate::test_ca::now().unix_timestamp();
    let now = Duration::from_secs(u64::try_from(now).unwrap_or(0));
    let roots = vec![world().root.clone()];
    let trust = Trust::new("tars.local", roots, Vec::new(), now).expect("a good root");
    let at = UnixTime::since_unix_epoch(now);
    let (odd, list) = (CertificateDer::from(data.to_vec()), Revocations::default());
    let good: Vec<CertificateDer<'_>> = world()
        .certificates
        .iter()
        .map(|c| CertificateDer::from(c.as_slice()))
        .collect();
    if let Ok(peer) = trust.verify(&odd, &good[1..2], at, Side::Client, &list) {
        assert_eq!(
            data,
            world().certificates[0],
            "only the good one is accepted: {peer:?}"
        );
    }
    // What goes before a good chain must not decide about it, either way, but for the search's end.
    trust
        .verify(
            &good[0],
            &[odd.clone(), good[1].clone()],
            at,
            Side::Client,
            &list,
        )
        .ok();
    Trust::new("tars.local", vec![odd.into_owned()], Vec::new(), now).ok();
}

fn signing_request(data: &[u8]) {
    if let Ok(key) = csr::public_key(data) {
        use rcgen::PublicKeyData;
        assert!(!key.der_bytes().is_empty());
    }
}

fn revocation_list(data: &[u8]) {
    let list = CertificateRevocationListDer::from(data.to_vec());
    let roots = vec![world().root.clone()];
    Trust::new("tars.local", roots, vec![list], Duration::ZERO).ok();
}

/// Whatever a policy says, it lets nobody in whom the contract does not.
fn policy(data: &[u8]) {
    let (Ok(text), Ok(table)) = (std::str::from_utf8(data), contract()) else {
        return;
    };
    let Ok(policy) = Policy::parse(text, table) else {
        return;
    };
    for method in table.iter() {
        let (left, _) = policy.describe(method);
        for class in left {
            assert!(
                method.rule.peers.iter().any(|p| p == class),
                "widened: {text}"
            );
        }
    }
}

fn join_token(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(claims) = JoinToken::new(text).unverified_claims() {
        assert!(claims.spiffe_id.as_str().starts_with("spiffe://"));
    }
}

fn identity_pem(data: &[u8]) {
    if let Ok(pem) = serde_json::from_slice::<IdentityPem>(data) {
        pem.load(&crate::time()).ok();
    }
}

/// Lines of either header. Whatever they say, a stranger is whom it connects as, and what a client
/// wrote to the left of a proxy's own words changes nothing, or hides the client behind the proxy.
fn forwarded(data: &[u8]) {
    let proxies = Networks::parse(&["10.0.0.0/8".to_owned()]).expect("a network");
    let proxy = IpAddr::from([10, 0, 0, 1]);
    let told = IpAddr::from([198, 51, 100, 99]);
    let own = [
        ("forwarded", "for=198.51.100.99"),
        ("x-forwarded-for", "198.51.100.99"),
    ];
    for (name, value) in own {
        let mut headers = HeaderMap::new();
        for line in data.split(|b| *b == b'\n') {
            if let Ok(value) = HeaderValue::from_bytes(line) {
                headers.append(name, value);
            }
        }
        let stranger = IpAddr::from([203, 0, 113, 1]);
        assert_eq!(client(stranger, &headers, &proxies), stranger);
        let alone = client(proxy, &headers, &proxies);
        assert_eq!(alone, alone.to_canonical());
        headers.append(name, HeaderValue::from_static(value));
        assert_eq!(client(proxy, &headers, &proxies), told, "a line of its own");
        let last = [data, b", ", value.as_bytes()].concat();
        if let Ok(last) = HeaderValue::from_bytes(&last) {
            let headers = HeaderMap::from_iter([(HeaderName::from_static(name), last)]);
            let seen = client(proxy, &headers, &proxies);
            assert!(
                seen == told || (seen == proxy && name == "forwarded"),
                "{seen}"
            );
        }
    }
}

fn network(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(network) = text.parse::<Network>() {
        let again = network.to_string().parse::<Network>();
        assert_eq!(again, Ok(network), "what it prints is what it is");
        let host = text.split('/').next().and_then(|a| a.parse().ok());
        assert!(host.is_some_and(|addr| network.contains(addr)));
    }
}
