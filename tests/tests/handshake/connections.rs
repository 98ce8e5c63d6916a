//! Connections after the handshake: which are cut, and who may hold them.

use super::*;

/// A TLS connection from another address, with the server's first byte: it was let in, or not.
async fn open_from(w: &World, from: [u8; 4], leaf: Leaf) -> Option<TlsStream<TcpStream>> {
    let tcp = connect_from(from, w.listener.addr).await.ok()?;
    let name = ServerName::try_from("localhost").unwrap();
    let connector = TlsConnector::from(Arc::new(client(Some(leaf))));
    let mut stream = connector.connect(name, tcp).await.ok()?;
    stream.read_u8().await.ok().map(|_| stream)
}

fn named(w: &World, path: &str) -> Leaf {
    let id = format!("spiffe://tars.local{path}");
    w.issuer.leaf(|p| p.subject_alt_names = vec![uri(&id)])
}

/// The client's preface with its settings, and nothing after it.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

async fn ends(stream: &mut TlsStream<TcpStream>) {
    let mut all = Vec::new();
    let reading = stream.read_to_end(&mut all);
    // A reset, or an end without a word, is an end as well.
    tokio::time::timeout(Duration::from_secs(60), reading)
        .await
        .expect("the server ends the connection")
        .ok();
}

fn cut(reason: &str) -> String {
    format!("mesh_connections_cut_total{{reason=\"{reason}\"}} ")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_does_not_speak_http2_is_cut_in_seconds() {
    let limits = Connections {
        handshake_timeout_seconds: 1,
        ..Config::default().connections
    };
    let w = world_with(limits).await;
    let leaf = || named(&w, "/client/x");
    let mut silent = open_from(&w, [127, 0, 0, 2], leaf()).await.unwrap();
    let mut half = open_from(&w, [127, 0, 0, 2], leaf()).await.unwrap();
    half.write_all(&PREFACE[..23]).await.unwrap();
    let mut honest = open_from(&w, [127, 0, 0, 2], leaf()).await.unwrap();
    honest.write_all(PREFACE).await.unwrap();
    ends(&mut silent).await;
    ends(&mut half).await;
    eventually("both are counted", || async {
        w.listener.count(&cut("silent")) == 2
    })
    .await;
    assert_eq!(w.listener.table.len(), 1, "whoever spoke is still there");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quiet_channel_lives_on_and_a_dead_one_does_not() {
    let times = Timeouts {
        ping_seconds: 1,
        ping_timeout_seconds: 1,
        ..Timeouts::default()
    };
    let w = world_with_times(Config::default().connections, times).await;
    let parts = w.issuer.parts("/client/quiet", vec![w.root.der.clone()]);
    let own = IdentityHandle::new(Identity::new(parts, &tars_tests::time()).unwrap());
    let quiet = w.listener.channel(own, Revocations::default());
    quiet.server().await.unwrap();
    let mut dead = open_from(&w, [127, 0, 0, 2], named(&w, "/client/dead"))
        .await
        .unwrap();
    dead.write_all(PREFACE).await.unwrap();
    ends(&mut dead).await;
    eventually("only the quiet one is left", || async {
        let open = w.listener.table.report().to_string();
        w.listener.table.len() == 1 && open.contains("/client/quiet")
    })
    .await;
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = [&length[1..], &[kind, flags], &stream.to_be_bytes()].concat();
    frame.extend_from_slice(payload);
    frame
}

/// The headers of a call, in HPACK without a table.
fn call_headers(path: &str) -> Vec<u8> {
    let literal = |name: &[u8], value: &str| {
        let length = u8::try_from(value.len()).unwrap();
        [name, &[length], value.as_bytes()].concat()
    };
    [
        // Method and scheme; authority, path, content type.
        vec![0x83, 0x87],
        literal(&[0x01], "localhost"),
        literal(&[0x04], path),
        literal(&[0x0f, 0x10], "application/grpc"),
    ]
    .concat()
}

/// What is sent until the server says GOAWAY, its code, and its debug data.
async fn goaway(
    stream: TlsStream<TcpStream>,
    mut what: impl FnMut() -> Vec<u8>,
) -> Option<(u32, String)> {
    let (mut read, mut write) = tokio::io::split(stream);
    let sending = async { while write.write_all(&what()).await.is_ok() {} };
    let reading = async {
        // Of the first frame, a byte was read when the connection was opened.
        let mut had = 1;
        loop {
            let mut head = [0; 9];
            read.read_exact(&mut head[had..]).await.ok()?;
            had = 0;
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let mut payload = vec![0; length as usize];
            read.read_exact(&mut payload).await.ok()?;
            if head[3] == 7 {
                let code = u32::from_be_bytes(payload[4..8].try_into().unwrap());
                return Some((code, String::from_utf8(payload[8..].to_vec()).unwrap()));
            }
        }
    };
    let both = async { tokio::join!(sending, reading).1 };
    tokio::time::timeout(Duration::from_secs(60), both)
        .await
        .expect("the server ends the connection")
}

const ENHANCE_YOUR_CALM: u32 = 11;

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_control_frames_is_cut_with_enhance_your_calm() {
    let w = world().await;
    let floods = [
        ("WINDOW_UPDATE", frame(8, 0, 0, &[0, 0, 0, 1])),
        ("PRIORITY", frame(2, 0, 5, &[0, 0, 0, 1, 7])),
        ("an unknown kind", frame(0xfa, 0, 0, b"grease")),
        ("PRIORITY_UPDATE", frame(0x10, 0, 0, b"\0\0\0\x05u=1")),
        ("PING", frame(6, 0, 0, b"pingping")),
        ("PING that nobody asked for", frame(6, 1, 0, b"pingping")),
        ("SETTINGS", frame(4, 0, 0, &[0, 3, 0, 0, 0, 100])),
        ("empty SETTINGS", frame(4, 0, 0, &[])),
    ];
    for (n, (what, flood)) in floods.iter().enumerate() {
        let mut stream = open_from(&w, [127, 0, 0, 2], named(&w, "/client/loud"))
            .await
            .unwrap();
        stream.write_all(PREFACE).await.unwrap();
        let many = flood.repeat(64);
        let before = w.listener.count(&cut("control_frames"));
        assert_eq!(before, n as u64, "{what}");
        let told = goaway(stream, || many.clone()).await;
        let why = "too many control frames".to_owned();
        assert_eq!(told, Some((ENHANCE_YOUR_CALM, why)), "{what}");
        eventually(&format!("{what} is counted"), || async {
            w.listener.count(&cut("control_frames")) == before + 1
        })
        .await;
    }
}

/// Reads a frame, of whose header `had` bytes were read before.
async fn next_frame(stream: &mut TlsStream<TcpStream>, had: usize) -> ([u8; 9], Vec<u8>) {
    let mut head = [0; 9];
    stream.read_exact(&mut head[had..]).await.unwrap();
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
    let mut payload = vec![0; length as usize];
    stream.read_exact(&mut payload).await.unwrap();
    (head, payload)
}

/// Lets the server end the connection gracefully, which it does in two steps.
async fn goes_away(stream: &mut TlsStream<TcpStream>) {
    let mut had = 1;
    loop {
        let (head, payload) = next_frame(stream, had).await;
        had = 0;
        match (head[3], head[4]) {
            (6, 0) => stream.write_all(&frame(6, 1, 0, &payload)).await.unwrap(),
            (7, _) if payload[..4] == [0, 0, 0, 1] => return,
            _ => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_calls_after_goaway_is_cut_with_enhance_your_calm() {
    let w = world_with(Connections {
        max_age_seconds: 1,
        ..Config::default().connections
    })
    .await;
    let opened = open_from(&w, [127, 0, 0, 2], named(&w, "/client/loud")).await;
    let mut stream = opened.unwrap();
    // A call that does not end keeps the connection, for as long as the grace.
    let headers = call_headers("/grpc.health.v1.Health/Check");
    let begin = [PREFACE, &frame(1, 4, 1, &headers)].concat();
    stream.write_all(&begin).await.unwrap();
    tokio::time::timeout(Duration::from_secs(60), goes_away(&mut stream))
        .await
        .expect("the connection is old");
    let before = w.listener.count(&cut("control_frames"));
    let mut streams = (3..).step_by(2);
    let mut flood = || -> Vec<u8> {
        let calls = streams.by_ref().take(64);
        calls.flat_map(|id| frame(1, 5, id, &headers)).collect()
    };
    let (mut read, mut write) = tokio::io::split(stream);
    let sending = async { while write.write_all(&flood()).await.is_ok() {} };
    let mut sink = tokio::io::sink();
    let reading = tokio::io::copy(&mut read, &mut sink);
    let both = async { tokio::join!(sending, reading) };
    let ended = tokio::time::timeout(Duration::from_secs(60), both).await;
    assert!(ended.is_ok(), "the server ends the connection");
    eventually("the flood is counted", || async {
        w.listener.count(&cut("control_frames")) == before + 1
    })
    .await;
}

/// Answers everything with a great deal.
#[derive(Clone)]
struct Large(Bytes);

impl tonic::codegen::Service<Request<tonic::body::Body>> for Large {
    type Response = Response<Full<Bytes>>;
    type Error = std::convert::Infallible;
    type Future = std::future::Ready<Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<tonic::body::Body>) -> Self::Future {
        std::future::ready(Ok(Response::new(Full::new(self.0.clone()))))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_reads_much_may_open_its_window_as_often() {
    const LENGTH: usize = 48 << 20;
    let (root, answer) = (TestCa::root("root"), Bytes::from(vec![7; LENGTH]));
    let parts = root.parts("/door", vec![root.der.clone()]);
    let listener = TestListener::serving(parts, Timeouts::default(), Large(answer)).await;
    let leaf = root.leaf(|_| {});
    let stream = connect(listener.addr, client(Some(leaf))).await.unwrap();
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(16 << 10);
    let (mut send, connection) = builder.handshake::<_, Bytes>(stream).await.unwrap();
    tokio::spawn(async move { connection.await.ok() });
    let request = Request::post("https://localhost/a/b").header("content-type", "application/grpc");
    let (answer, _) = send.send_request(request.body(()).unwrap(), true).unwrap();
    let mut body = answer.await.unwrap().into_body();
    let mut got = 0;
    while let Some(data) = body.data().await {
        let data = data.unwrap();
        got += data.len();
        // h2 opens the window anew for every half of it: thousands of times.
        body.flow_control().release_capacity(data.len()).unwrap();
    }
    assert_eq!(got, LENGTH);
    assert_eq!(listener.count(&cut("control_frames")), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_never_reads_is_cut() {
    let times = Timeouts {
        write_stall_seconds: 1,
        ping_seconds: 600,
        ..Timeouts::default()
    };
    let root = TestCa::root("root");
    let parts = root.parts("/door", vec![root.der.clone()]);
    let large = Large(Bytes::from(vec![7; 48 << 20]));
    let listener = TestListener::serving(parts, times, large).await;
    let mut deaf = connect(listener.addr, client(Some(root.leaf(|_| {}))))
        .await
        .unwrap();
    deaf.write_all(PREFACE).await.unwrap();
    let window = 0x7fff_0000_u32.to_be_bytes();
    let asks = [
        frame(4, 0, 0, &[&[0, 4], &window[..]].concat()),
        frame(8, 0, 0, &window),
        frame(1, 5, 1, &call_headers("/a/b")),
    ];
    deaf.write_all(&asks.concat()).await.unwrap();
    eventually("it is counted", || async {
        listener.count(&cut("write")) == 1
    })
    .await;
    ends(&mut deaf).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_identity_cannot_hold_every_connection() {
    let limits = Connections {
        max: 64,
        max_by_address: 32,
        max_by_identity: 8,
        max_by_workload: 32,
        handshake_timeout_seconds: 60,
        ..Config::default().connections
    };
    let w = world_with(limits).await;
    let mut held = Vec::new();
    for at in 0..64 {
        let from = [127, 0, 1, 1 + at];
        held.extend(open_from(&w, from, named(&w, "/client/greedy")).await);
    }
    assert_eq!(held.len(), 8, "from however many addresses");
    assert_eq!(w.listener.refused("identity"), 56);
    // Others get in; many of them, from one address, have that address's share.
    for at in 0..64 {
        let leaf = named(&w, &format!("/client/{at}"));
        held.extend(open_from(&w, [127, 0, 2, 1], leaf).await);
    }
    assert!((16..=32).contains(&(held.len() - 8)), "{}", held.len());
    assert!(w.listener.refused("address") >= 32);
    // Which keeps out neither a workload on that address nor a client on another.
    let gateway = open_from(&w, [127, 0, 2, 1], named(&w, "/gateway")).await;
    assert!(gateway.is_some());
    let honest = open_from(&w, [127, 0, 2, 2], named(&w, "/client/honest")).await;
    assert!(honest.is_some());
    drop(held);
    eventually("places come back", || async {
        open_from(&w, [127, 0, 1, 1], named(&w, "/client/greedy"))
            .await
            .is_some()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn half_handshakes_make_way_for_whole_ones_of_the_same_address() {
    let limits = Connections {
        handshake_timeout_seconds: 60,
        max_handshakes: 64,
        max_handshakes_by_address: 8,
        ..Config::default().connections
    };
    let w = world_with(limits).await;
    let mut half = Vec::new();
    for _ in 0..8 {
        let mut tcp = connect_from([127, 0, 0, 3], w.listener.addr).await.unwrap();
        tcp.write_all(&hello(0x0303, &[0x13, 0x01])[..20])
            .await
            .unwrap();
        half.push(tcp);
    }
    eventually("an honest one of the same address gets in", || async {
        open_from(&w, [127, 0, 0, 3], named(&w, "/client/x"))
            .await
            .is_some()
    })
    .await;
    eventually("one made way", || async {
        w.listener.refused("displaced") == 1
    })
    .await;
}
