//! The last words to a peer whose connection ends before a request of it was read: an answer that is
//! written without a handler.

use super::Gate;
use crate::{
    network::Networks,
    trace::{TRACE_ID, fresh_trace_id},
};
use http::StatusCode;
use std::{net::IpAddr, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_util::task::TaskTracker;

/// Peers that are being told at once; past these, one of them makes way. Each costs a descriptor.
pub(crate) const AT_ONCE: usize = 16;
/// Of these, peers of one address: past its part it cuts itself short, and nobody else.
const BY_ADDRESS: usize = 2;
/// And peers behind one proxy.
const BY_PROXY: usize = 8;
/// What one of them may send meanwhile; more is no honest body that was on its way.
const UNWANTED: usize = 1 << 20;
const PIECE: usize = 64 << 10;
/// How long one of them may take to read it.
const MOST: Duration = Duration::from_secs(1);

/// A whole HTTP/1.1 answer after which the connection ends. Like every answer it has a trace id; that
/// is a new one each time it is said.
#[derive(Debug, Clone)]
pub struct Farewell {
    head: String,
    body: String,
}

impl Farewell {
    pub fn new(
        status: StatusCode,
        content_type: &str,
        retry: Option<Duration>,
        body: String,
    ) -> Self {
        let retry = retry.map_or_else(String::new, |after| {
            format!("retry-after: {}\r\n", after.as_secs().max(1))
        });
        let reason = status.canonical_reason().unwrap_or_default();
        let length = body.len();
        let head = format!(
            "HTTP/1.1 {} {reason}\r\ncontent-type: {content_type}\r\ncontent-length: {length}\r\n\
             cache-control: no-store\r\nx-content-type-options: nosniff\r\n{retry}connection: close\r\n",
            status.as_u16(),
        );
        Self { head, body }
    }

    fn render(&self, trace_id: u128) -> String {
        let Self { head, body } = self;
        format!("{head}{TRACE_ID}: {trace_id:032x}\r\n\r\n{body}")
    }
}

#[derive(Debug, Clone)]
pub(super) struct Farewells {
    room: Gate,
    proxies: Networks,
    tasks: TaskTracker,
}

impl Farewells {
    pub(super) fn new(proxies: Networks, tasks: TaskTracker) -> Self {
        Self {
            room: Gate::new(AT_ONCE),
            proxies,
            tasks,
        }
    }

    /// Tells a peer why its connection ends, if there is room for that.
    pub(super) fn say(&self, tcp: TcpStream, from: IpAddr, farewell: &Farewell) {
        self.end(tcp, from, || farewell.render(fresh_trace_id()));
    }

    /// Leaves a peer that may still be sending the time to read what it was answered.
    pub(super) fn linger(&self, tcp: TcpStream, from: IpAddr) {
        self.end(tcp, from, String::new);
    }

    fn end(&self, tcp: TcpStream, from: IpAddr, last: impl FnOnce() -> String) {
        if let Ok(seat) = self.room.enter(from, self.share(from)) {
            let last = last();
            self.tasks.spawn(async move {
                tokio::select! {
                    // First, so that whoever makes way is at least told.
                    biased;
                    _ = timeout(MOST, tell(tcp, last.as_bytes())) => {}
                    () = seat.displaced() => {}
                }
            });
        }
    }

    fn share(&self, from: IpAddr) -> usize {
        if self.proxies.contains(from) {
            BY_PROXY
        } else {
            BY_ADDRESS
        }
    }
}

/// Closing a socket whose input was not read resets it, and the answer is lost on the way: so what
/// the peer still sends is read, and thrown away, within bounds.
async fn tell(mut tcp: TcpStream, answer: &[u8]) -> std::io::Result<()> {
    tcp.write_all(answer).await?;
    tcp.shutdown().await?;
    // A peer that goes on sending is read in few calls of the kernel.
    let mut piece = vec![0; PIECE];
    let mut left = UNWANTED;
    while left > 0 {
        match tcp.read(&mut piece).await? {
            0 => break,
            read => left = left.saturating_sub(read),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    async fn pair(listener: &TcpListener) -> (TcpStream, TcpStream) {
        let addr = listener.local_addr().unwrap();
        let (client, server) = tokio::join!(TcpStream::connect(addr), listener.accept());
        (client.unwrap(), server.unwrap().0)
    }

    /// How many are left of those that are told something and do not go, once it is `at_most`.
    async fn left(farewells: &Farewells, at_most: usize) -> usize {
        for _ in 0..1000 {
            if farewells.tasks.len() <= at_most {
                break;
            }
            tokio::task::yield_now().await;
        }
        farewells.tasks.len()
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_has_a_part_of_the_room_and_a_proxy_a_larger_one() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (mut clients, mut servers) = (Vec::new(), Vec::new());
        for _ in 0..3 * AT_ONCE {
            let (client, server) = pair(&listener).await;
            clients.push(client);
            servers.push(server);
        }
        let proxies = Networks::parse(&["192.0.2.9".to_owned()]).unwrap();
        let farewells = Farewells::new(proxies, TaskTracker::new());
        // The clock stands still while something can run.
        let mut linger = |times, host| {
            for tcp in servers.drain(..times) {
                farewells.linger(tcp, [192, 0, 2, host].into());
            }
        };
        linger(1, 1);
        assert_eq!(left(&farewells, 1).await, 1);
        linger(AT_ONCE, 2);
        assert_eq!(left(&farewells, 1 + BY_ADDRESS).await, 1 + BY_ADDRESS);
        linger(AT_ONCE, 9);
        let with_proxy = left(&farewells, 1 + BY_ADDRESS + BY_PROXY).await;
        assert!(with_proxy > 1 + 2 * BY_ADDRESS, "{with_proxy}");
        linger(1, 3);
        assert_eq!(left(&farewells, with_proxy + 1).await, with_proxy + 1);
        drop(clients);
    }

    #[test]
    fn a_farewell_is_a_whole_answer_with_a_trace_id() {
        let retry = Some(Duration::from_secs(2));
        let full = StatusCode::SERVICE_UNAVAILABLE;
        let farewell = Farewell::new(full, "text/plain", retry, "full".to_owned());
        let text = farewell.render(0xab);
        assert!(text.starts_with("HTTP/1.1 503 Service Unavailable\r\n"));
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let id = format!("x-trace-id: {:032x}", 0xab);
        for line in [id.as_str(), "content-length: 4", "retry-after: 2"] {
            assert!(head.lines().any(|l| l == line), "{line} in {head}");
        }
        assert_eq!(body, "full");
    }
}
