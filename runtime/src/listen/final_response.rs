//! The final response to a peer whose connection ends before its request reached a handler.

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

/// Maximum number of final responses in progress. Beyond it, one of them makes way. Each costs a
/// descriptor.
pub(crate) const AT_ONCE: usize = 16;
/// The share of one address: beyond it, an address displaces its own, and nobody else's.
const BY_ADDRESS: usize = 2;
/// The share of a trusted proxy.
const BY_PROXY: usize = 8;
/// Maximum number of bytes that are read from one peer meanwhile; no honest body in transit has more.
const UNWANTED: usize = 1 << 20;
const PIECE: usize = 64 << 10;
/// How long a peer may take to read its response.
const MOST: Duration = Duration::from_secs(1);

/// A complete HTTP/1.1 response after which the connection ends. Like every response it carries a
/// trace id, a new one each time it is sent.
#[derive(Debug, Clone)]
pub struct FinalResponse {
    head: String,
    body: String,
}

impl FinalResponse {
    /// Creates a response; `retry` becomes its `Retry-After`, of at least one second.
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
pub(super) struct FinalResponses {
    room: Gate,
    proxies: Networks,
    tasks: TaskTracker,
}

impl FinalResponses {
    pub(super) fn new(proxies: Networks, tasks: TaskTracker) -> Self {
        Self {
            room: Gate::new(AT_ONCE),
            proxies,
            tasks,
        }
    }

    /// Sends a response to a peer and ends its connection, if there is room for that.
    pub(super) fn send(&self, tcp: TcpStream, from: IpAddr, final_response: &FinalResponse) {
        self.end(tcp, from, || final_response.render(fresh_trace_id()));
    }

    /// Ends a connection whose peer may still be sending, once the peer has had time to read the
    /// response that it was sent.
    pub(super) fn linger(&self, tcp: TcpStream, from: IpAddr) {
        self.end(tcp, from, String::new);
    }

    fn end(&self, tcp: TcpStream, from: IpAddr, last: impl FnOnce() -> String) {
        if let Ok(seat) = self.room.enter(from, self.share(from)) {
            let last = last();
            self.tasks.spawn(async move {
                tokio::select! {
                    // Polled first, so that a displaced peer has at least been sent its response.
                    biased;
                    _ = timeout(MOST, send_and_drain(tcp, last.as_bytes())) => {}
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

/// Closing a socket with unread input resets it, and the response in transit is lost: so what the peer
/// still sends is read and discarded, within bounds.
async fn send_and_drain(mut tcp: TcpStream, answer: &[u8]) -> std::io::Result<()> {
    tcp.write_all(answer).await?;
    tcp.shutdown().await?;
    // Large enough that a peer that keeps sending is read in few system calls.
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

    /// Returns how many peers that do not leave are still being served, once there are `at_most`.
    async fn left(final_responses: &FinalResponses, at_most: usize) -> usize {
        for _ in 0..1000 {
            if final_responses.tasks.len() <= at_most {
                break;
            }
            tokio::task::yield_now().await;
        }
        final_responses.tasks.len()
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_has_a_share_and_a_proxy_a_larger_one() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (mut clients, mut servers) = (Vec::new(), Vec::new());
        for _ in 0..3 * AT_ONCE {
            let (client, server) = pair(&listener).await;
            clients.push(client);
            servers.push(server);
        }
        let proxies = Networks::parse(&["192.0.2.9".to_owned()]).unwrap();
        let final_responses = FinalResponses::new(proxies, TaskTracker::new());
        // The clock stands still while any task can run.
        let mut linger = |times, host| {
            for tcp in servers.drain(..times) {
                final_responses.linger(tcp, [192, 0, 2, host].into());
            }
        };
        linger(1, 1);
        assert_eq!(left(&final_responses, 1).await, 1);
        linger(AT_ONCE, 2);
        assert_eq!(left(&final_responses, 1 + BY_ADDRESS).await, 1 + BY_ADDRESS);
        linger(AT_ONCE, 9);
        let with_proxy = left(&final_responses, 1 + BY_ADDRESS + BY_PROXY).await;
        assert!(with_proxy > 1 + 2 * BY_ADDRESS, "{with_proxy}");
        linger(1, 3);
        assert_eq!(left(&final_responses, with_proxy + 1).await, with_proxy + 1);
        drop(clients);
    }

    #[test]
    fn a_final_response_is_a_complete_response_with_a_trace_id() {
        let retry = Some(Duration::from_secs(2));
        let full = StatusCode::SERVICE_UNAVAILABLE;
        let final_response = FinalResponse::new(full, "text/plain", retry, "full".to_owned());
        let text = final_response.render(0xab);
        assert!(text.starts_with("HTTP/1.1 503 Service Unavailable\r\n"));
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let id = format!("x-trace-id: {:032x}", 0xab);
        for line in [id.as_str(), "content-length: 4", "retry-after: 2"] {
            assert!(head.lines().any(|l| l == line), "{line} in {head}");
        }
        assert_eq!(body, "full");
    }
}
