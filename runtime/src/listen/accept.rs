//! Accepts connections until the process stops, whatever the kernel says in between.

use rustix::net::sockopt::set_socket_send_buffer_size;
use std::{io, net::SocketAddr, time::Duration};
use tokio::{
    net::{TcpListener, TcpStream},
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

/// How long to wait when the kernel has no room, most often for want of a file descriptor: trying
/// at once again would spin.
const BACK_OFF: Duration = Duration::from_millis(50);
/// What the kernel may hold of a peer's answers, half of what it takes for that. By default it holds
/// some megabytes, which a peer that does not read costs in memory and in time to copy them there;
/// this keeps a connection of 100 ms busy at 5 MB/s.
const SEND_BUFFER: usize = 256 << 10;
/// Between two warnings of one listener.
const QUIET: Duration = Duration::from_secs(10);

/// A listener, and who is told about connections that could not be accepted.
#[derive(Debug)]
pub struct Acceptor<R> {
    listener: TcpListener,
    name: &'static str,
    refused: R,
    stop: CancellationToken,
    warned: Option<Instant>,
}

impl<R: Fn(&'static str)> Acceptor<R> {
    /// `refused` is told the reason, as a metric label.
    pub fn new(
        listener: TcpListener,
        name: &'static str,
        refused: R,
        stop: CancellationToken,
    ) -> Self {
        // Connections inherit it.
        if let Err(e) = set_socket_send_buffer_size(&listener, SEND_BUFFER) {
            tracing::warn!(listener = name, error = %e, "cannot bound the send buffers");
        }
        Self {
            listener,
            name,
            refused,
            stop,
            warned: None,
        }
    }

    /// Returns the next connection, or `None` once the process stops.
    pub async fn next(&mut self) -> Option<(TcpStream, SocketAddr)> {
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = self.stop.cancelled() => return None,
            };
            match accepted {
                // Without it every small answer waits for an acknowledgement.
                Ok((tcp, addr)) if tcp.set_nodelay(true).is_ok() => return Some((tcp, addr)),
                Ok(_) => (self.refused)("socket"),
                Err(e) if is_of_the_connection(&e) => (self.refused)("gone"),
                Err(e) => self.wait_for_room(&e).await?,
            }
        }
    }

    async fn wait_for_room(&mut self, error: &io::Error) -> Option<()> {
        (self.refused)("accept");
        if self.warned.is_none_or(|at| at.elapsed() > QUIET) {
            tracing::warn!(listener = self.name, error = %error, "cannot accept");
            self.warned = Some(Instant::now());
        }
        tokio::select! {
            () = sleep(BACK_OFF) => Some(()),
            () = self.stop.cancelled() => None,
        }
    }
}

/// The peer left before it was accepted; the next one may be well.
fn is_of_the_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionReset | Interrupted
    )
}
