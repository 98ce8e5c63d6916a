//! The end of a connection whose peer is refused.
//!
//! In TLS 1.3 a client completes its handshake before the server has verified its certificate, and sends its
//! first requests right after. A socket that is closed before they are read is reset, and a client whose
//! kernel has received the reset never sees the alert that explains the refusal.

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Maximum number of bytes that are read from a refused peer: more than the initial windows of HTTP/2.
const UNWANTED: usize = 256 << 10;
const PIECE: usize = 4 << 10;

/// Shuts down `stream`, then reads and discards what the peer still sends until it shuts down its side, or
/// has sent too much. The caller bounds the time.
pub(super) async fn lingering_close<T: AsyncRead + AsyncWrite + Unpin>(mut stream: T) {
    // Flushes the alert of TLS.
    if stream.shutdown().await.is_err() {
        return;
    }
    let (mut piece, mut left) = ([0; PIECE], UNWANTED);
    while let Ok(read @ 1..) = stream.read(&mut piece).await {
        if read >= left {
            return;
        }
        left -= read;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::{io::duplex, time::timeout};

    #[tokio::test]
    async fn a_peer_is_read_until_it_shuts_down() {
        let (near, mut far) = duplex(64);
        let lingering = tokio::spawn(lingering_close(near));
        far.write_all(&[7; 4096]).await.unwrap();
        assert_eq!(
            far.read(&mut [0]).await.unwrap(),
            0,
            "this side has shut down"
        );
        assert!(!lingering.is_finished());
        drop(far);
        lingering.await.unwrap();
    }

    #[tokio::test]
    async fn a_peer_that_never_shuts_down_is_read_up_to_a_limit() {
        let (near, mut far) = duplex(64);
        let lingering = tokio::spawn(lingering_close(near));
        let sending = async { while far.write_all(&[7; PIECE]).await.is_ok() {} };
        timeout(Duration::from_secs(20), sending).await.unwrap();
        lingering.await.unwrap();
    }
}
