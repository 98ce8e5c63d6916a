//! Notices when a server begins to speak HTTP/2.
//!
//! In TLS 1.3 the client's handshake is complete before the server has verified the client's certificate. A
//! server that refuses it would take a call with it, of which nobody knows whether it was processed. What
//! the server sends first shows that it has accepted the connection; until then no call is sent.

use tokio::{io::AsyncRead, sync::oneshot};
use tokio_util::io::InspectReader;

/// A connection whose first received byte is reported.
pub(super) type Greeted<T> = InspectReader<T, Box<dyn FnMut(&[u8]) + Send>>;

/// Returns the connection, and what receives a value with its first byte, or an error when it is dropped
/// before.
pub(super) fn greeted<T: AsyncRead>(connection: T) -> (Greeted<T>, oneshot::Receiver<()>) {
    let (greeting, greeted) = oneshot::channel();
    let mut greeting = Some(greeting);
    let inspect = move |received: &[u8]| {
        if !received.is_empty() {
            // Nobody waits where the attempt took too long.
            greeting.take().map(|greeting| greeting.send(()));
        }
    };
    (InspectReader::new(connection, Box::new(inspect)), greeted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    #[tokio::test]
    async fn the_first_byte_is_reported_and_an_end_without_one_is_not() {
        let (client, mut server) = duplex(16);
        let (mut stream, mut greeting) = greeted(client);
        stream.write_all(b"preface").await.unwrap();
        assert!(greeting.try_recv().is_err());
        server.write_all(b"ab").await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), b'a');
        greeting.try_recv().unwrap();

        let (client, server) = duplex(16);
        let (mut stream, greeting) = greeted(client);
        drop(server);
        assert_eq!(stream.read(&mut [0; 4]).await.unwrap(), 0);
        drop(stream);
        assert!(greeting.await.is_err());
    }
}
