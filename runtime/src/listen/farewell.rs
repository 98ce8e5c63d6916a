//! The last words to a peer whose connection ends before a request of it was read: an answer that is
//! written without a handler.

use crate::trace::{TRACE_ID, fresh_trace_id};
use http::StatusCode;
use std::{sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Semaphore,
    time::timeout,
};
use tokio_util::task::TaskTracker;

/// Peers that are being told at once; past these, a connection just ends. Each costs a descriptor.
pub(crate) const AT_ONCE: usize = 16;
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
    room: Arc<Semaphore>,
    tasks: TaskTracker,
}

impl Farewells {
    pub(super) fn new(tasks: TaskTracker) -> Self {
        Self {
            room: Arc::new(Semaphore::new(AT_ONCE)),
            tasks,
        }
    }

    /// Tells a peer why its connection ends, if there is room for that.
    pub(super) fn say(&self, tcp: TcpStream, farewell: &Farewell) {
        self.end(tcp, || farewell.render(fresh_trace_id()));
    }

    /// Leaves a peer that may still be sending the time to read what it was answered.
    pub(super) fn linger(&self, tcp: TcpStream) {
        self.end(tcp, String::new);
    }

    fn end(&self, tcp: TcpStream, last: impl FnOnce() -> String) {
        if let Ok(room) = Arc::clone(&self.room).try_acquire_owned() {
            let last = last();
            self.tasks.spawn(async move {
                timeout(MOST, tell(tcp, last.as_bytes())).await.ok();
                drop(room);
            });
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
