//! Attacks on HTTP/2 itself against the real process: each ends or costs nothing, the memory stays where it
//! was, and others are served meanwhile.

#![allow(clippy::unwrap_used)]

use rustls::pki_types::ServerName;
use std::{
    net::{IpAddr, Ipv4Addr},
    process::Command,
    sync::Arc,
    time::Duration,
};
use tars_certs::{Identity, IdentityFiles, Revocations, SpiffeId, tls};
use tars_mesh::{Channel, ChannelOptions};
use tars_proto::grpc::health::v1::{HealthCheckRequest, health_client::HealthClient};
use tars_runtime::clock::Clock;
use tars_tests::{
    memory,
    process::{Running, Up},
    time,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::client::TlsStream;

/// The connection preface, and SETTINGS that open no window.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x06\x04\0\0\0\0\0\0\x04\0\0\0\0";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const ENHANCE_YOUR_CALM: u32 = 11;

/// By how much the process may grow in all: what allocators keep, and buffers of connections.
const GROWTH: u64 = 48 << 20;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

fn literal(name: &[u8], value: &str) -> Vec<u8> {
    let length = u8::try_from(value.len()).unwrap();
    [name, &[length], value.as_bytes()].concat()
}

/// The headers of a call, in HPACK without a table.
fn call() -> Vec<u8> {
    [
        vec![0x83, 0x87],
        literal(&[0x01], "localhost"),
        literal(&[0x04], "/grpc.health.v1.Health/Check"),
        literal(&[0x0f, 0x10], "application/grpc"),
    ]
    .concat()
}

fn operator(mesh: &Running) -> (Identity, SpiffeId) {
    let files = IdentityFiles::in_dir(mesh.ready.client_cert.parent().unwrap());
    let expected = SpiffeId::new(&mesh.ready.trust_domain, "/automl").unwrap();
    (files.load(&time()).unwrap(), expected)
}

fn target(mesh: &Running) -> &str {
    mesh.ready.automl.trim_start_matches("https://")
}

async fn connected(mesh: &Running) -> TlsStream<TcpStream> {
    let (identity, expected) = operator(mesh);
    let config = tls::client(&identity, expected, &Revocations::default(), time()).unwrap();
    let tcp = TcpStream::connect(target(mesh)).await.unwrap();
    let name = ServerName::from(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let mut stream = connector.connect(name, tcp).await.unwrap();
    stream.write_all(PREFACE).await.unwrap();
    stream
}

/// Sends until the server ends the connection; returns the code of its GOAWAY, where one was read.
async fn flooded(mesh: &Running, mut what: impl FnMut() -> Vec<u8>) -> Option<u32> {
    let (mut read, mut write) = tokio::io::split(connected(mesh).await);
    let sending = async { while write.write_all(&what()).await.is_ok() {} };
    let reading = async {
        let mut code = None;
        loop {
            let mut head = [0; 9];
            if read.read_exact(&mut head).await.is_err() {
                return code;
            }
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let mut payload = vec![0; length as usize];
            if read.read_exact(&mut payload).await.is_err() {
                return code;
            }
            if head[3] == GOAWAY {
                code = Some(u32::from_be_bytes(payload[4..8].try_into().unwrap()));
            }
        }
    };
    let both = async { tokio::join!(sending, reading).1 };
    timeout(Duration::from_secs(60), both)
        .await
        .expect("the server ends the connection")
}

/// The numbers of the streams that a client opens.
fn streams() -> impl FnMut() -> u32 {
    let mut next = (1..).step_by(2);
    move || next.next().unwrap()
}

/// What a mesh has in memory before an attack. Its peak is measured from here.
fn resident(mesh: &Running) -> u64 {
    let process = mesh.process.id();
    memory::forget_peak(process).unwrap();
    memory::resident(process).unwrap()
}

/// Fails when the mesh has ever had much more in memory than before the attack.
fn stayed_flat(mesh: &Running, before: u64) {
    let most = memory::peak(mesh.process.id()).unwrap();
    assert!(most < before + GROWTH, "from {before} to {most} bytes");
}

async fn serves_others(mesh: &Running) {
    let (identity, expected) = operator(mesh);
    let options = ChannelOptions::alone(target(mesh), expected, identity, Clock::system());
    let mut health = HealthClient::new(Channel::new(options).unwrap());
    for _ in 0..50 {
        health.check(HealthCheckRequest::default()).await.unwrap();
    }
}

fn start() -> (tempfile::TempDir, Running) {
    let data = tempfile::tempdir().unwrap();
    let tars = Command::new(env!("CARGO_BIN_EXE_tars"));
    let up = Up::new(tars, data.path()).unlimited().replicas(1);
    // All of it comes from one identity, and it is HTTP/2 that is tested.
    let up = up.env("TARS__LIMITS__FLOOD_PER_SECOND", "1000000");
    let mesh = up.start();
    (data, mesh)
}

#[tokio::test(flavor = "multi_thread")]
async fn floods_of_frames_end_their_connection_with_flat_memory_and_others_are_served() {
    let (_data, mesh) = start();
    serves_others(&mesh).await;
    let before = resident(&mesh);
    for _ in 0..10 {
        let mut next = streams();
        let rapid_reset = || {
            let each = |_| {
                let stream = next();
                let opened = frame(HEADERS, END_HEADERS, stream, &call());
                [opened, frame(RST_STREAM, 0, stream, &8u32.to_be_bytes())].concat()
            };
            (0..100).flat_map(each).collect()
        };
        let told = flooded(&mesh, rapid_reset).await;
        assert_eq!(told, Some(ENHANCE_YOUR_CALM), "rapid reset");

        let mut begun = false;
        let continuation = || match std::mem::replace(&mut begun, true) {
            false => frame(HEADERS, 0, 1, &call()),
            true => frame(
                CONTINUATION,
                0,
                1,
                &literal(&[0x00, 1, b'a'], "b").repeat(100),
            ),
        };
        assert!(flooded(&mesh, continuation).await.is_some(), "CONTINUATION");

        let mut begun = false;
        let empty = || match std::mem::replace(&mut begun, true) {
            false => frame(HEADERS, END_HEADERS, 1, &call()),
            true => frame(DATA, 0, 1, &[]).repeat(64),
        };
        let told = flooded(&mesh, empty).await;
        assert_eq!(told, Some(ENHANCE_YOUR_CALM), "empty DATA");
        for (what, flood) in [
            ("PING", frame(PING, 0, 0, b"pingping")),
            ("SETTINGS", frame(SETTINGS, 0, 0, &[])),
            ("WINDOW_UPDATE", frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])),
        ] {
            let told = flooded(&mesh, || flood.repeat(64)).await;
            assert_eq!(told, Some(ENHANCE_YOUR_CALM), "{what}");
        }
        serves_others(&mesh).await;
    }
    stayed_flat(&mesh, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_announced_or_hoarded_takes_no_memory() {
    let (_data, mesh) = start();
    serves_others(&mesh).await;
    let before = resident(&mesh);
    // Messages of a mebibyte of which nothing comes, and answers for which there is no window: as many as one
    // identity may have in flight, and one connection.
    let (mut stream, mut next) = (connected(&mesh).await, streams());
    for n in 0..200 {
        let id = next();
        let headers = frame(HEADERS, END_HEADERS, id, &call());
        let body = match n % 2 {
            0 => frame(DATA, 0, id, &[0, 0, 0x10, 0, 0]),
            _ => frame(DATA, END_STREAM, id, &[0; 5]),
        };
        let opened = [headers, body].concat();
        stream.write_all(&opened).await.unwrap();
    }
    stream.flush().await.unwrap();
    serves_others(&mesh).await;
    stayed_flat(&mesh, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_that_unpack_to_megabytes_are_not_unpacked() {
    let (_data, mesh) = start();
    serves_others(&mesh).await;
    let before = resident(&mesh);
    for _ in 0..4 {
        let mut stream = connected(&mesh).await;
        // A header of 3 KB enters the table, and is then named by one byte each: 16 KB say 48 MB.
        let large = [&[0x40, 1, b'a', 0x7f, 0xa1, 0x16][..], &[b'x'; 2976]].concat();
        let mut next = streams();
        let first = frame(
            HEADERS,
            END_HEADERS | END_STREAM,
            next(),
            &[call(), large].concat(),
        );
        stream.write_all(&first).await.unwrap();
        for _ in 0..50 {
            let bomb = [call(), vec![0xbe; 16_000]].concat();
            let bomb = frame(HEADERS, END_HEADERS | END_STREAM, next(), &bomb);
            if stream.write_all(&bomb).await.is_err() {
                break;
            }
        }
        serves_others(&mesh).await;
    }
    stayed_flat(&mesh, before);
}
