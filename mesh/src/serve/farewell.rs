//! The end of a connection whose peer is not let in.
//!
//! In TLS 1.3 a client is done with its handshake before the server has looked at its certificate,
//! and sends its first requests behind it. A socket that is closed before they were read is reset,
//! and a client whose kernel has seen the reset never sees the alert that says why.

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// What a refused peer may send until it has seen the end: more than the first windows of HTTP/2.
const UNWANTED: usize = 256 << 10;
const PIECE: usize = 4 << 10;

/// Ends the own side of `stream`, then reads and drops what the peer still sends until it ends its
/// side, or has sent too much. The caller bounds the time.
pub(super) async fn linger<T: AsyncRead + AsyncWrite + Unpin>(mut stream: T) {
    // Flushes what TLS has to say.
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
    async fn a_peer_is_read_until_it_ends() {
        let (near, mut far) = duplex(64);
        let lingering = tokio::spawn(linger(near));
        far.write_all(&[7; 4096]).await.unwrap();
        assert_eq!(
            far.read(&mut [0]).await.unwrap(),
            0,
            "the own side has ended"
        );
        assert!(!lingering.is_finished());
        drop(far);
        lingering.await.unwrap();
    }

    #[tokio::test]
    async fn a_peer_that_never_ends_is_read_for_so_much() {
        let (near, mut far) = duplex(64);
        let lingering = tokio::spawn(linger(near));
        let sending = async { while far.write_all(&[7; PIECE]).await.is_ok() {} };
        timeout(Duration::from_secs(20), sending).await.unwrap();
        lingering.await.unwrap();
    }
}
