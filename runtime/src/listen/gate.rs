//! Places for connections, with a share for each address.
//!
//! A connection without a request is only a promise of one. So when an address has its share, one of its
//! waiting connections makes way for the newcomer; and when all places are taken, one of the address
//! that holds most. Half requests and silent handshakes do not keep honest peers out, from however many
//! addresses they come, or even from the same one.
//!
//! The connection that has waited longest goes, if that is longer than an honest peer needs. When
//! newcomers arrive so fast that none has waited that long, one goes at random: with `n` places and `r`
//! newcomers per second, a peer that needs `t` seconds stays with a probability of about
//! `exp(-r * t / n)`. Refusing newcomers would leave the places to those who take them fastest, and
//! displacing the oldest would end every connection that needs longer than `n / r`.

use crate::{
    network::bucket,
    shares::{Full, Place, Shares},
};
use parking_lot::Mutex;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The time within which an honest handshake or request head arrives: older ones are displaced first.
const UNDISTURBED: Duration = Duration::from_millis(500);

/// The places of one listener. Clones share them.
#[derive(Debug, Clone)]
pub struct Gate(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    places: Shares<u64>,
    waiting: Mutex<Waiting>,
}

/// The connections that wait for their peer, by address and in the order in which they began to wait;
/// never more than there are places taken.
#[derive(Debug)]
struct Waiting {
    chance: StdRng,
    next: u64,
    by_key: HashMap<u64, BTreeMap<u64, (Instant, Arc<Holder>)>>,
}

#[derive(Debug)]
struct Holder {
    place: Mutex<Option<Place<u64>>>,
    displaced: CancellationToken,
}

/// The place of one connection, released when it is dropped or displaced.
#[derive(Debug)]
#[must_use = "a place is given back when it is dropped"]
pub struct Seat {
    gate: Gate,
    key: u64,
    holder: Arc<Holder>,
    waiting: Mutex<Option<u64>>,
}

// === impl Gate ===

impl Gate {
    /// Creates a gate with this many places.
    pub fn new(places: usize) -> Self {
        Self::with_seed(places, rand::random())
    }

    fn with_seed(places: usize, seed: u64) -> Self {
        Self(Arc::new(Inner {
            places: Shares::new(places),
            waiting: Mutex::new(Waiting {
                chance: StdRng::seed_from_u64(seed),
                next: 0,
                by_key: HashMap::new(),
            }),
        }))
    }

    /// Takes a place for a connection from `addr`, whose address may hold `share` of them. The
    /// connection counts as waiting for its peer until [`Seat::set_busy`] is called.
    ///
    /// # Errors
    ///
    /// [`Full`] when neither a place is free nor another connection makes way.
    pub fn enter(&self, addr: IpAddr, share: usize) -> Result<Seat, Full> {
        let key = bucket(addr);
        let places = &self.0.places;
        let place = match places.take_fairly(key, share) {
            Err(full) if self.makes_room(full, key, share) => places.take(key, share)?,
            taken => taken?,
        };
        let seat = Seat {
            gate: self.clone(),
            key,
            holder: Arc::new(Holder {
                place: Mutex::new(Some(place)),
                displaced: CancellationToken::new(),
            }),
            waiting: Mutex::new(None),
        };
        seat.set_waiting();
        Ok(seat)
    }

    /// Displaces a connection in favour of a newcomer from `key`.
    fn makes_room(&self, full: Full, key: u64, share: usize) -> bool {
        let mut waiting = self.0.waiting.lock();
        let greedier = |waiting: &mut Waiting| {
            let newcomer = self.0.places.held(&key);
            let greediest = self.greediest(waiting);
            let greedier = greediest.filter(|(_, held)| *held > newcomer && newcomer < share);
            greedier.is_some_and(|(greediest, _)| waiting.displace(greediest))
        };
        match full {
            Full::Share => waiting.displace(key) || greedier(&mut waiting),
            Full::All => greedier(&mut waiting) || waiting.displace(key),
        }
    }

    /// Returns, of the addresses with a waiting connection, one that holds most, and how many.
    fn greediest(&self, waiting: &mut Waiting) -> Option<(u64, usize)> {
        let Waiting { chance, by_key, .. } = waiting;
        let held = by_key.keys().map(|key| (*key, self.0.places.held(key)));
        // Among equals, one at random: none of them always goes first.
        held.max_by_key(|(_, held)| (*held, chance.random::<u32>()))
    }
}

// === impl Waiting ===

impl Waiting {
    /// Displaces one waiting connection of `key`, if there is one.
    fn displace(&mut self, key: u64) -> bool {
        let Some(of_key) = self.by_key.get_mut(&key) else {
            return false;
        };
        let overdue = |(_, (since, _)): &(&u64, &(Instant, _))| since.elapsed() >= UNDISTURBED;
        let oldest = of_key.first_key_value().filter(overdue);
        let id = oldest.map(|(id, _)| *id).or_else(|| {
            let at = self.chance.random_range(0..of_key.len());
            of_key.keys().nth(at).copied()
        });
        let displaced = id.and_then(|id| of_key.remove(&id));
        if of_key.is_empty() {
            self.by_key.remove(&key);
        }
        let Some((_, holder)) = displaced else {
            return false;
        };
        holder.displaced.cancel();
        holder.place.lock().take();
        true
    }
}

// === impl Seat ===

impl Seat {
    /// Marks the connection as waiting for its peer: it may be displaced.
    pub(crate) fn set_waiting(&self) {
        let mut own = self.waiting.lock();
        if own.is_some() {
            return;
        }
        let mut waiting = self.gate.0.waiting.lock();
        let id = waiting.next;
        waiting.next += 1;
        let entry = (Instant::now(), Arc::clone(&self.holder));
        waiting
            .by_key
            .entry(self.key)
            .or_default()
            .insert(id, entry);
        *own = Some(id);
    }

    /// Marks the connection as busy: it makes way for nobody.
    pub(crate) fn set_busy(&self) {
        let Some(id) = self.waiting.lock().take() else {
            return;
        };
        let mut waiting = self.gate.0.waiting.lock();
        if let Some(of_key) = waiting.by_key.get_mut(&self.key) {
            of_key.remove(&id);
            if of_key.is_empty() {
                waiting.by_key.remove(&self.key);
            }
        }
    }

    /// Returns once the place has been given to another connection.
    pub async fn displaced(&self) {
        self.holder.displaced.cancelled().await;
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.set_busy();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;
    use tokio::time::advance;

    const ONE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const TWO: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));

    fn displaced(seat: &Seat) -> bool {
        seat.holder.displaced.is_cancelled()
    }

    fn ended(seats: &[Seat]) -> usize {
        seats.iter().filter(|seat| displaced(seat)).count()
    }

    #[tokio::test(start_paused = true)]
    async fn the_longest_waiting_makes_way_for_the_same_address() {
        let gate = Gate::new(10);
        let (first, second) = (gate.enter(ONE, 2).unwrap(), gate.enter(ONE, 2).unwrap());
        advance(UNDISTURBED).await;
        let third = gate.enter(ONE, 2).unwrap();
        assert!(displaced(&first) && !displaced(&second) && !displaced(&third));
        drop(first);
        assert_eq!(gate.0.places.taken(), 2, "its place was passed on once");
        drop((second, third));
        assert_eq!(gate.0.places.taken(), 0);
        assert!(gate.0.waiting.lock().by_key.is_empty(), "nothing is kept");
    }

    #[tokio::test(start_paused = true)]
    async fn a_busy_connection_and_one_of_another_address_do_not_make_way() {
        let gate = Gate::new(3);
        let seats = [gate.enter(ONE, 2).unwrap(), gate.enter(ONE, 2).unwrap()];
        seats[0].set_busy();
        advance(UNDISTURBED * 2).await;
        let other = gate.enter(TWO, 2).unwrap();
        assert!(seats.iter().all(|s| !displaced(s)));
        drop(gate.enter(ONE, 2).unwrap());
        assert!(!displaced(&seats[0]) && displaced(&seats[1]) && !displaced(&other));
    }

    #[tokio::test(start_paused = true)]
    async fn the_greediest_address_makes_way_when_there_is_no_place() {
        let gate = Gate::new(6);
        let seats: Vec<_> = (0..6).map(|_| gate.enter(ONE, 6).unwrap()).collect();
        let second = gate.enter(TWO, 3).unwrap();
        assert_eq!(ended(&seats), 1, "at once");
        let busy = seats.iter().find(|s| !displaced(s)).unwrap();
        busy.set_busy();
        advance(UNDISTURBED).await;
        let third = gate.enter(TWO, 3).unwrap();
        assert!(!displaced(busy), "a busy connection is left alone");
        assert_eq!((ended(&seats), displaced(&second)), (2, false));
        let fourth = gate.enter(TWO, 2).unwrap();
        assert!(displaced(&second), "past its share, at its own cost");
        assert_eq!(ended(&seats), 2);
        drop((seats, second, third, fourth));
        assert_eq!(gate.0.places.taken(), 0);
        assert!(gate.0.waiting.lock().by_key.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn the_greediest_goes_before_an_old_connection_of_the_newcomer() {
        let gate = Gate::new(6);
        let own = gate.enter(TWO, 3).unwrap();
        advance(UNDISTURBED * 2).await;
        let greedy: Vec<_> = (0..5).map(|_| gate.enter(ONE, 6).unwrap()).collect();
        let _second = gate.enter(TWO, 3).unwrap();
        assert_eq!((displaced(&own), ended(&greedy)), (false, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn among_equals_one_makes_way_for_another_address_at_once() {
        let gate = Gate::new(2);
        let seats = [gate.enter(ONE, 1).unwrap(), gate.enter(TWO, 1).unwrap()];
        let third = gate.enter(IpAddr::from([192, 0, 2, 3]), 1).unwrap();
        assert_eq!(ended(&seats), 1);
        let _again = gate.enter(IpAddr::from([192, 0, 2, 3]), 1).unwrap();
        assert!(displaced(&third), "past its share, at its own cost");
        assert_eq!(ended(&seats), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_busy_connection_is_not_displaced_at_any_rate() {
        let gate = Gate::new(8);
        let seats: Vec<_> = (0..4).map(|_| gate.enter(ONE, 4).unwrap()).collect();
        seats.iter().for_each(Seat::set_busy);
        assert_eq!(gate.enter(ONE, 4).unwrap_err(), Full::Share);
        assert_eq!(ended(&seats), 0);
    }

    /// Returns how many of a hundred honest newcomers that need `needs` each get through, while the same
    /// address opens one connection per millisecond and keeps it.
    async fn honest_under_attack(needs: u64) -> u32 {
        const SHARE: usize = 64;
        let gate = Gate::with_seed(2048, 7);
        let mut held = VecDeque::new();
        let mut attack = async |milliseconds| {
            for _ in 0..milliseconds {
                advance(Duration::from_millis(1)).await;
                held.push_back(gate.enter(ONE, SHARE).unwrap());
                held.retain(|seat| !displaced(seat));
                assert!(held.len() <= SHARE, "{}", held.len());
            }
        };
        attack(1000).await;
        let mut through = 0;
        for _ in 0..100 {
            let honest = gate.enter(ONE, SHARE).expect("no newcomer is refused");
            attack(needs).await;
            through += u32::from(!displaced(&honest));
        }
        through
    }

    #[tokio::test(start_paused = true)]
    async fn a_steady_rush_does_not_keep_out_an_honest_newcomer_of_the_same_address() {
        assert!(honest_under_attack(5).await >= 80);
        // Longer than it takes to fill the share anew: the oldest would never get through.
        assert!(honest_under_attack(80).await >= 10);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_waits_again_starts_over() {
        let gate = Gate::new(10);
        let (first, second) = (gate.enter(ONE, 2).unwrap(), gate.enter(ONE, 2).unwrap());
        advance(UNDISTURBED).await;
        first.set_busy();
        first.set_waiting();
        let _third = gate.enter(ONE, 2).unwrap();
        assert!(!displaced(&first) && displaced(&second));
    }
}
