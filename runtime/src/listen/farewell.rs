//! The last words to a peer whose connection ends before a request of it was read: an answer made
//! once, written without a handler.

use bytes::Bytes;
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
/// How long one of them may take to read it.
const MOST: Duration = Duration::from_secs(1);

/// Renders a whole HTTP/1.1 answer after which the connection ends.
pub fn answer(
    status: StatusCode,
    content_type: &str,
    retry: Option<Duration>,
    body: &str,
) -> Bytes {
    let retry = retry.map_or_else(String::new, |after| {
        format!("retry-after: {}\r\n", after.as_secs().max(1))
    });
    let reason = status.canonical_reason().unwrap_or_default();
    let length = body.len();
    format!(
        "HTTP/1.1 {} {reason}\r\ncontent-type: {content_type}\r\ncontent-length: {length}\r\n\
         cache-control: no-store\r\nx-content-type-options: nosniff\r\n{retry}connection: close\r\n\r\n{body}",
        status.as_u16(),
    )
    .into()
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
    pub(super) fn say(&self, tcp: TcpStream, answer: Bytes) {
        if let Ok(room) = Arc::clone(&self.room).try_acquire_owned() {
            self.tasks.spawn(async move {
                timeout(MOST, tell(tcp, &answer)).await.ok();
                drop(room);
            });
        }
    }
}

/// Closing a socket whose input was not read resets it, and the answer is lost on the way: so what
/// the peer still sends is read, and thrown away.
async fn tell(mut tcp: TcpStream, answer: &[u8]) -> std::io::Result<()> {
    tcp.write_all(answer).await?;
    tcp.shutdown().await?;
    let mut rest = [0; 1024];
    while tcp.read(&mut rest).await? > 0 {}
    Ok(())
}
