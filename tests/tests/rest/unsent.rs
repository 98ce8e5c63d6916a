//! Clients that do not read their answers.

use super::*;
use std::net::{IpAddr, Ipv4Addr};
use tars_tests::{config, eventually};
use tokio::net::TcpSocket;

const STUDIES: &str = "/api/v1/studies?page_size=500";
/// More than the system takes of answers that nobody reads.
const PIPELINED: usize = 8;

/// A study whose space takes about 230 KiB.
fn large() -> Value {
    let choice = |n: usize| format!("{n:0240}");
    let parameter = |at: usize| {
        let values: Vec<_> = (0..15).map(choice).collect();
        json!({ "name": format!("p{at}"), "categorical": { "values": values } })
    };
    json!({ "search_space": (0..64).map(parameter).collect::<Vec<_>>() })
}

impl Http {
    /// Connects from an address of this machine, with a small buffer for what is received.
    async fn connect_from(&self, from: [u8; 4]) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let from = IpAddr::V4(Ipv4Addr::from(from));
        socket.bind((from, 0).into()).unwrap();
        socket.connect(self.host.parse().unwrap()).await.unwrap()
    }

    fn request(&self, path: &str, more: &str) -> String {
        let (host, token) = (&self.host, &self.token);
        format!(
            "GET {path} HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {token}\r\n{more}\r\n"
        )
    }

    /// Asks for many answers, and reads none of them.
    async fn stall(&self) -> TcpStream {
        let mut stalled = self.connect_from([127, 0, 0, 1]).await;
        let requests = self.request(STUDIES, "").repeat(PIPELINED);
        stalled.write_all(requests.as_bytes()).await.unwrap();
        stalled
    }

    /// The status line and the body of an answer that is read at once.
    async fn read_from(&self, from: [u8; 4], path: &str) -> (String, String) {
        let mut stream = self.connect_from(from).await;
        let request = self.request(path, "connection: close\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.lines().next().unwrap_or_default();
        (status.to_owned(), body.to_owned())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_reads_nothing_is_refused_and_others_are_answered() {
    let mut config = config();
    config.gateway.max_unsent_bytes_by_address = 1 << 20;
    let mesh = TestMesh::with(config).await;
    let admin = mesh.admin().await;
    for _ in 0..4 {
        admin.post("/api/v1/studies", large()).await.unwrap();
    }
    let http = Http::new(&mesh).await;
    let (status, listed) = http.read_from([127, 0, 0, 1], STUDIES).await;
    assert_eq!(status, "HTTP/1.1 200 OK");
    assert!(listed.len() > 700 << 10, "{}", listed.len());

    let stalled = http.stall().await;
    eventually("the address is refused", || async {
        let (status, body) = http.read_from([127, 0, 0, 1], STUDIES).await;
        status.contains("429") && body.contains("UNREAD_ANSWERS")
    })
    .await;
    let (status, _) = http.read_from([127, 0, 0, 2], STUDIES).await;
    assert_eq!(status, "HTTP/1.1 200 OK", "another address");
    let (status, _) = http
        .read_from([127, 0, 0, 1], "/api/v1/orchestration/agents/state")
        .await;
    assert_eq!(status, "HTTP/1.1 200 OK", "for which there is room");
    drop(stalled);
    eventually("the address is answered again", || async {
        http.read_from([127, 0, 0, 1], STUDIES).await.0 == "HTTP/1.1 200 OK"
    })
    .await;
    mesh.mesh.stop().await;
}
