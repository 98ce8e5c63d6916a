//! Accepts connections until the process stops, whatever errors the kernel returns.

use rustix::net::sockopt::set_socket_send_buffer_size;
use std::{io, net::SocketAddr, time::Duration};
use tokio::{
    net::{TcpListener, TcpStream},
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

/// How long to wait when the kernel has no resources, most often no file descriptor: trying again at
/// once would spin.
const RETRY_DELAY: Duration = Duration::from_millis(50);
/// Maximum size of the kernel's send buffer, of which it uses half for data. By default it holds some
/// megabytes, which cost memory and the time to copy them when a peer does not read. This size keeps a
/// connection with a round trip of 100 ms busy at 5 MB/s.
const SEND_BUFFER: usize = 256 << 10;
/// The minimum time between two warnings of one listener.
const WARNING_INTERVAL: Duration = Duration::from_secs(10);

/// A listener that reports connections it could not accept.
#[derive(Debug)]
pub struct Acceptor<R> {
    listener: TcpListener,
    name: &'static str,
    refused: R,
    stop: CancellationToken,
    warned: Option<Instant>,
}

impl<R: Fn(&'static str)> Acceptor<R> {
    /// Creates the acceptor; `refused` receives the reason as a metric label.
    pub fn new(
        listener: TcpListener,
        name: &'static str,
        refused: R,
        stop: CancellationToken,
    ) -> Self {
        // Connections inherit the setting.
        if let Err(e) = set_socket_send_buffer_size(&listener, SEND_BUFFER) {
            tracing::warn!(listener = name, error = %e, "cannot limit the send buffers");
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
                // Without it every small response waits for an acknowledgement.
                Ok((tcp, addr)) if tcp.set_nodelay(true).is_ok() => return Some((tcp, addr)),
                Ok(_) => (self.refused)("socket"),
                Err(e) if is_connection_error(&e) => (self.refused)("gone"),
                Err(e) => self.wait_for_room(&e).await?,
            }
        }
    }

    async fn wait_for_room(&mut self, error: &io::Error) -> Option<()> {
        (self.refused)("accept");
        if self.warned.is_none_or(|at| at.elapsed() > WARNING_INTERVAL) {
            tracing::warn!(listener = self.name, error = %error, "cannot accept");
            self.warned = Some(Instant::now());
        }
        tokio::select! {
            () = sleep(RETRY_DELAY) => Some(()),
            () = self.stop.cancelled() => None,
        }
    }
}

/// Whether the peer left before it was accepted, which says nothing about the next one.
fn is_connection_error(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionReset | Interrupted
    )
}
