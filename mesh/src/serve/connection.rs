//! One connection, from the handshake to its end.

use super::{
    Admission, Handler, Reply, ServeOptions, answer,
    calls::Calls,
    excess::{ExcessSignal, Refusals},
    handshake::{ServerIdentity, key_exchange, reason},
    lingering::lingering_close,
    places::{Held, Places},
    streams::Streams,
    wire::Wire,
};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{net::SocketAddr, pin::pin, sync::Arc, time::Duration};
use tars_certs::{
    PeerClass,
    peer::{HandshakeObservation, PeerInfo, observe_handshake},
    tls,
    trust::{Side, VerifyError},
};
use tars_runtime::listen::{PacedStream, Seat};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::{Instant, sleep_until, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

pub(super) struct Connection {
    pub(super) options: ServeOptions,
    pub(super) addr: SocketAddr,
    pub(super) own: ServerIdentity,
    pub(super) places: Places,
    pub(super) refusals: Refusals,
    pub(super) stop: CancellationToken,
    pub(super) force: CancellationToken,
}

/// The transport below TLS: writes fail when the peer does not read.
type Tcp = PacedStream<TcpStream>;

/// The state of a connection until its peer speaks HTTP/2: it occupies the place of a handshake.
struct Opening {
    opened: CancellationToken,
    slot: Seat,
    most: Instant,
    signal: ExcessSignal,
}

/// What ends a connection.
enum End {
    /// The peer, or the connection itself, ended it.
    Closed,
    /// At once: nothing more is sent to a revoked peer.
    Revoked,
    /// At once: the peer never spoke HTTP/2.
    Silent,
    /// After GOAWAY: the peer sent too many frames or refused requests.
    Excessive,
    /// With GOAWAY, then until the instant for streams in progress.
    Gracefully(Instant),
}

impl Connection {
    pub(super) async fn run<S: Handler<B>, B: Reply>(self, tcp: TcpStream, slot: Seat, service: S) {
        let most = Instant::now() + self.options.limits.handshake_timeout();
        let tcp = PacedStream::new(tcp, self.options.times.write_pace());
        let unread = tcp.unread();
        let accepted = tokio::select! {
            accepted = self.accept(tcp) => accepted,
            () = sleep_until(most) => return self.refused("timeout"),
            () = slot.displaced() => return self.refused("displaced"),
            () = self.stop.cancelled() => return,
        };
        let (stream, seen) = match accepted {
            Ok(accepted) => accepted,
            Err((reason, tcp)) => return self.close_refused(reason, tcp, &slot, most).await,
        };
        let (peer, held) = match self.admit(&stream, seen) {
            Ok(admitted) => admitted,
            Err(reason) => return self.close_refused(reason, stream, &slot, most).await,
        };
        let metrics = self.options.metrics.clone();
        let signal = ExcessSignal::default();
        let stream = Wire::new(stream, self.options.clock.clone(), signal.clone());
        let opening = Opening {
            opened: stream.opened(),
            slot,
            most,
            signal,
        };
        self.serve(stream, peer, opening, service).await;
        drop(held);
        if unread.is_set() {
            metrics.cut("write");
        }
    }

    fn refused(&self, reason: &'static str) {
        tracing::debug!(service = self.options.service, addr = %self.addr, reason, "handshake refused");
        self.options.metrics.refuse(reason);
    }

    /// Refuses a peer, and gives it a moment to read the alert: as long as its handshake may take, and only
    /// while nobody else needs the place.
    async fn close_refused<T>(&self, reason: &'static str, stream: T, slot: &Seat, most: Instant)
    where
        T: AsyncRead + AsyncWrite + Unpin,
    {
        self.refused(reason);
        tokio::select! {
            () = lingering_close(stream) => {}
            () = sleep_until(most.min(Instant::now() + FINAL_MOMENT)) => {}
            () = slot.displaced() => {}
            () = self.stop.cancelled() => {}
        }
    }

    async fn accept(
        &self,
        tcp: Tcp,
    ) -> Result<(TlsStream<Tcp>, HandshakeObservation), (&'static str, Tcp)> {
        let accepting = TlsAcceptor::from(Arc::clone(&self.own.config)).accept(tcp);
        match observe_handshake(accepting.into_fallible()).await {
            (Ok(stream), seen) => Ok((stream, seen)),
            (Err((e, tcp)), seen) => Err((seen.refusal.unwrap_or_else(|| reason(&e)), tcp)),
        }
    }

    /// Decides about a peer that has completed its handshake, and takes its places.
    fn admit(
        &self,
        stream: &TlsStream<Tcp>,
        seen: HandshakeObservation,
    ) -> Result<(PeerInfo, Held), &'static str> {
        let (_, session) = stream.get_ref();
        if session.alpn_protocol() != Some(tls::ALPN) {
            return Err("no_h2");
        }
        let group = key_exchange(session.negotiated_key_exchange_group());
        self.options.metrics.record_handshake(group);
        let peer = PeerInfo {
            class: self.classify(&seen)?,
            verified: seen.peer,
            addr: self.addr,
            closing: CancellationToken::new(),
        };
        let held = self.places.take(&peer)?;
        Ok((peer, held))
    }

    fn classify(&self, seen: &HandshakeObservation) -> Result<Option<PeerClass>, &'static str> {
        match (self.options.admission, &seen.peer) {
            (Admission::Mutual, None) => Err("no_certificate"),
            (Admission::Mutual, Some(peer)) => {
                Ok(self.options.classes.classify(&peer.certificate.id))
            }
            (Admission::Joiners, _) => Ok(Some(PeerClass::Joiner)),
        }
    }

    async fn serve<S: Handler<B>, B: Reply>(
        self,
        stream: Wire<TlsStream<Tcp>>,
        peer: PeerInfo,
        opening: Opening,
        service: S,
    ) {
        let (this, peer) = (Arc::new(self), Arc::new(peer));
        let metrics = &this.options.metrics;
        let _counted = metrics.connected();
        let _listed = this.options.table.enter(this.options.service, "in", &peer);
        let signal = opening.signal.clone();
        let refusals = this.refusals.budget(&peer, signal.clone());
        let calls = Calls::new(&this.options, Arc::clone(&peer), refusals, service);
        let handler = service_fn(move |request| calls.answer(request));
        let io = TokioIo::new(stream);
        let mut connection = pin!(this.builder().serve_connection(io, handler));
        match this.watch(connection.as_mut(), &peer, opening).await {
            End::Closed => {}
            // The wire sends GOAWAY and fails as soon as it is read.
            End::Excessive => drop(timeout(FINAL_MOMENT, connection).await),
            End::Revoked => return metrics.cut("revoked"),
            End::Silent => return metrics.cut("silent"),
            End::Gracefully(last) => {
                connection.as_mut().graceful_shutdown();
                this.finish(connection, &peer, last).await;
            }
        }
        this.report_excess(&peer, &signal);
    }

    /// Runs a connection until something ends it.
    async fn watch(
        self: &Arc<Self>,
        connection: impl Future,
        peer: &Arc<PeerInfo>,
        opening: Opening,
    ) -> End {
        // In a task of its own: this one is woken for every frame, and should not poll each time
        // everything else that can end a connection.
        let (this, by) = (Arc::clone(self), Arc::clone(peer));
        let end = tokio::spawn(async move { this.end(&by, opening).await });
        tokio::select! {
            biased;
            _ = connection => End::Closed,
            end = AbortOnDropHandle::new(end) => end.unwrap_or(End::Closed),
        }
    }

    /// Gives streams in progress time until `last`.
    async fn finish(&self, connection: impl Future, peer: &PeerInfo, last: Instant) {
        // Open streams are notified shortly before the end, so that they end with a status.
        let notice = last - (last.saturating_duration_since(Instant::now()) / 10).min(FINAL_MOMENT);
        let expired = async {
            sleep_until(notice).await;
            peer.closing.cancel();
            sleep_until(last).await;
        };
        let metrics = &self.options.metrics;
        tokio::select! {
            _ = connection => {}
            () = expired => metrics.cut("grace"),
            () = self.revoked(peer) => metrics.cut("revoked"),
            () = self.force.cancelled() => metrics.cut("drain"),
        }
    }

    /// Counts and logs a connection that was cut for an excess.
    fn report_excess(&self, peer: &PeerInfo, signal: &ExcessSignal) {
        let Some(excess) = signal.why() else { return };
        let reason = excess.reason();
        self.options.metrics.cut(reason);
        let service = self.options.service;
        if self.refusals.may_warn() {
            tracing::warn!(service, peer = peer.name(), addr = %self.addr, reason, "a connection is cut");
        } else {
            tracing::debug!(service, peer = peer.name(), addr = %self.addr, reason, "a connection is cut");
        }
    }

    /// Waits for the first thing that ends this connection.
    async fn end(&self, peer: &PeerInfo, opening: Opening) -> End {
        let grace = Duration::from_secs(self.options.limits.max_age_grace_seconds);
        let certificates = self.certificates_end(peer);
        let last_by_now = |grace| (Instant::now() + grace).min(self.instant(certificates));
        let goaway = self.goaway_before(certificates, peer, grace);
        let signal = opening.signal.clone();
        tokio::select! {
            // Polled first: a revoked peer gets no grace.
            biased;
            () = self.revoked(peer) => End::Revoked,
            () = opening.failed() => End::Silent,
            () = signal.raised() => End::Excessive,
            () = sleep_until(self.age()) => End::Gracefully(last_by_now(grace)),
            () = self.options.clock.sleep_until(goaway) => End::Gracefully(self.instant(certificates)),
            () = self.until_refused(peer, |_| true) => End::Gracefully(last_by_now(grace)),
            () = self.stop.cancelled() => End::Gracefully(self.instant(certificates)),
        }
    }

    /// Returns once the peer is revoked, by a pushed revocation or a mounted list.
    async fn revoked(&self, peer: &PeerInfo) {
        let Some(verified) = &peer.verified else {
            return std::future::pending().await;
        };
        tokio::select! {
            () = self.options.revocations.until_denied(verified) => {}
            () = self.until_refused(peer, VerifyError::is_revocation) => {}
        }
    }

    /// Returns once this process's current roots and lists refuse the peer's chain, for a reason that
    /// `counts`.
    async fn until_refused(&self, peer: &PeerInfo, counts: impl Fn(&VerifyError) -> bool) {
        let Some(verified) = &peer.verified else {
            return std::future::pending().await;
        };
        let (now, clock) = (&self.options.identity, &self.options.clock);
        now.until_refused(&self.own.identity, verified, Side::Client, clock, counts)
            .await;
    }

    /// The wall-clock time at which the first of the two certificates expires: a clock that is set, or a
    /// machine that wakes, must not make a connection outlive it.
    fn certificates_end(&self, peer: &PeerInfo) -> Duration {
        let own = self.own.identity.leaf().not_after;
        let theirs = peer.verified.as_ref().map(|v| v.certificate.not_after);
        theirs.map_or(own, |t| t.min(own))
    }

    /// Converts a wall-clock time to an instant of the timers.
    fn instant(&self, wall: Duration) -> Instant {
        Instant::now() + wall.saturating_sub(self.options.clock.now())
    }

    /// When to send GOAWAY: early enough for streams in progress, but not before half of the remaining life
    /// has passed.
    fn goaway_before(&self, end: Duration, peer: &PeerInfo, grace: Duration) -> Duration {
        let own = self.own.identity.leaf().lifetime();
        let life = peer
            .verified
            .as_ref()
            .map_or(own, |v| v.certificate.lifetime().min(own));
        let left = end.saturating_sub(self.options.clock.now());
        end.saturating_sub(grace.min(life / 4).min(left / 2))
    }

    fn builder(&self) -> hyper::server::conn::http2::Builder<Streams> {
        let limits = &self.options.limits;
        let streams = Streams {
            stall: Duration::from_secs(limits.stream_stall_seconds),
            metrics: self.options.metrics.clone(),
        };
        let mut builder = hyper::server::conn::http2::Builder::new(streams);
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(limits.max_streams)
            .max_send_buf_size(SEND_BUFFER)
            .max_header_list_size(answer::READ_HEADERS)
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(4 << 20)
            .keep_alive_interval(Duration::from_secs(self.options.times.ping_seconds))
            .keep_alive_timeout(Duration::from_secs(self.options.times.ping_timeout_seconds));
        builder
    }

    /// The end of the connection's life, varied by a tenth so that clients do not reconnect all at once.
    fn age(&self) -> Instant {
        let age = Duration::from_secs(self.options.limits.max_age_seconds);
        let age = match self.options.admission {
            Admission::Mutual => age,
            Admission::Joiners => age.min(JOINING_AGE),
        };
        Instant::now() + varied(age, self.addr)
    }
}

impl Opening {
    /// Returns when the preface did not arrive in time, or when the place was needed for another peer;
    /// releases the place once the preface has arrived.
    async fn failed(self) {
        let opened = tokio::select! {
            biased;
            () = self.opened.cancelled() => true,
            () = sleep_until(self.most) => false,
            () = self.slot.displaced() => false,
        };
        drop(self.slot);
        if opened {
            std::future::pending::<()>().await;
        }
    }
}

/// Maximum age of a joiner's connection: joining takes one call.
const JOINING_AGE: Duration = Duration::from_secs(60);

/// Maximum number of bytes of one response in h2, however much window the peer has opened.
const SEND_BUFFER: usize = 64 << 10;

/// Maximum time between notifying streams and the end, and for a refused peer to read why.
const FINAL_MOMENT: Duration = Duration::from_secs(1);

/// A time that differs by up to a tenth from connection to connection.
fn varied(time: Duration, addr: SocketAddr) -> Duration {
    time.mul_f64(0.9 + 0.2 * jitter(addr))
}

/// A number in 0..1 that follows from the peer's address and port: clients behind one address are spread as well, and
/// no randomness is needed.
fn jitter(addr: SocketAddr) -> f64 {
    use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
    let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(addr);
    (hash >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ages_of_connections_are_spread_over_a_fifth() {
        let age = Duration::from_secs(1000);
        let addr = |port| SocketAddr::from(([192, 0, 2, 1], port));
        let mut ages: Vec<u64> = (1000..3000)
            .map(|port| varied(age, addr(port)).as_secs())
            .collect();
        ages.sort_unstable();
        assert!(ages[0] >= 900 && ages[1999] <= 1100, "{ages:?}");
        for tenth in 0..10 {
            let (from, to) = (900 + 20 * tenth, 920 + 20 * tenth);
            let within = ages.iter().filter(|age| (from..to).contains(*age)).count();
            assert!((100..300).contains(&within), "{within} of 2000 from {from}");
        }
        assert_eq!(varied(age, addr(7)), varied(age, addr(7)));
    }
}
