//! Calls of peers and callers for the tests of several layers.

use crate::{Call, contract};
use http::{HeaderMap, HeaderValue};
use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tars_certs::{
    KeyId, PeerClass, Serial,
    name::CertName,
    peer::{PeerCertificate, PeerInfo, Verified},
};
use tars_credentials::{Caller, Credential, Permissions};
use tars_proto::attempt;
use tars_runtime::{
    clock::Monotonic,
    trace::{Kind, Tracer},
};
use tokio_util::sync::CancellationToken;

pub(crate) const ME: &str = "/tars.auth.v1.AuthService/GetMe";

fn verified(path: &str) -> Verified {
    let (key, serial) = (KeyId::of_spki(b"key"), Serial::from_bytes(&[1]).unwrap());
    Verified {
        certificate: PeerCertificate {
            id: tars_certs::SpiffeId::new("tars.local", path).unwrap(),
            serial: serial.clone(),
            not_before: Duration::ZERO,
            not_after: Duration::MAX,
            client_auth: true,
            server_auth: true,
        },
        chain: vec![CertName {
            issuer: key,
            serial,
        }],
        anchor: key,
        presented: Default::default(),
    }
}

pub(crate) fn by_peer(method: &str, class: PeerClass, path: &str) -> Arc<Call> {
    call(method, class, path, [10, 0, 0, 1])
}

pub(crate) fn call(
    method: &str,
    class: PeerClass,
    path: &str,
    client: impl Into<IpAddr>,
) -> Arc<Call> {
    let peer = PeerInfo {
        verified: Some(verified(path)),
        class: Some(class),
        addr: SocketAddr::from(([127, 0, 0, 1], 1)),
        closing: CancellationToken::new(),
    };
    let trace = Tracer::disabled().start("test", Kind::Server, None);
    let method = contract().unwrap().get(method).unwrap();
    Arc::new(Call::new(
        method,
        Arc::new(peer),
        client.into(),
        trace.context(),
        Monotonic::default(),
    ))
}

pub(crate) fn by_credential(method: &str, peer: &str, user: &str, label: &str) -> Arc<Call> {
    let call = by_peer(method, PeerClass::Gateway, peer);
    call.set_caller(caller(user, label, Permissions::ALL));
    call
}

/// A call that says that it was attempted and charged before.
pub(crate) fn again(method: &str, class: PeerClass, caller: Arc<Caller>) -> Arc<Call> {
    let call = Arc::into_inner(by_peer(method, class, "/some")).unwrap();
    let mut headers = HeaderMap::new();
    for name in [attempt::PREVIOUS, attempt::CHARGED] {
        headers.insert(name, HeaderValue::from_static("1"));
    }
    let call = Arc::new(call.attempted(&headers));
    call.set_caller(caller);
    call
}

pub(crate) fn caller(user: &str, label: &str, permissions: Permissions) -> Arc<Caller> {
    Arc::new(Caller {
        owner_id: user.to_owned(),
        username: user.to_owned(),
        roles: Vec::new(),
        permissions,
        credential: Credential::Session { id: String::new() },
        label: label.to_owned(),
        version: 1,
        expires_s: u64::MAX,
    })
}
