//! Places for connections, with a share for each address.
//!
//! A connection without a request is only a hope for one, so when an address has its share, the one
//! of its connections that has waited longest makes way for the newcomer; and when places run out
//! for everybody, one of the address that holds most. Half requests and silent handshakes do not
//! keep out honest ones, from however many addresses they come, or even from the same one.

use crate::{
    network::bucket,
    shares::{Full, Place, Shares},
};
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Nobody makes way sooner: an honest handshake or request head is there by then, and a crowd of
/// honest newcomers must not push each other out.
const UNDISTURBED: Duration = Duration::from_millis(500);

/// Clones share the places.
#[derive(Debug, Clone)]
pub struct Gate(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    places: Shares<u64>,
    waiting: Mutex<Waiting>,
}

/// Those that wait for their peer, by address and in the order in which they began to. No more
/// entries than places taken.
#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    by_key: HashMap<u64, BTreeMap<u64, (Instant, Arc<Holder>)>>,
}

#[derive(Debug)]
struct Holder {
    place: Mutex<Option<Place<u64>>>,
    displaced: CancellationToken,
}

/// A place of one connection, given back when it is dropped or when it had to make way.
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
    pub fn new(places: usize) -> Self {
        Self(Arc::new(Inner {
            places: Shares::new(places),
            waiting: Mutex::default(),
        }))
    }

    /// Takes a place for a connection from `addr`, whose address may hold `share` of them. The
    /// connection counts as waiting for its peer until [`Seat::works`] is called.
    ///
    /// # Errors
    ///
    /// [`Full`] when neither a place is free nor another connection of the address makes way.
    pub fn enter(&self, addr: IpAddr, share: usize) -> Result<Seat, Full> {
        let key = bucket(addr);
        let places = &self.0.places;
        let place = match places.take_fairly(key, share) {
            Err(_) if self.own_makes_way(key) => places.take(key, share)?,
            Err(_) if places.held(&key) < share && self.greediest_makes_way(key) => {
                places.take(key, share)?
            }
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
        seat.waits();
        Ok(seat)
    }

    /// Displaces the connection of `key` that has waited longest, if that is long enough.
    fn own_makes_way(&self, key: u64) -> bool {
        self.0.waiting.lock().displace(key, false)
    }

    /// Displaces a connection of the address that holds most, at once if that is more than the
    /// newcomer will hold.
    fn greediest_makes_way(&self, newcomer: u64) -> bool {
        let mut waiting = self.0.waiting.lock();
        let held = |key: &u64| self.0.places.held(key);
        let Some(greediest) = waiting.by_key.keys().copied().max_by_key(held) else {
            return false;
        };
        let greedy = held(&greediest) > held(&newcomer) + 1;
        waiting.displace(greediest, greedy)
    }
}

// === impl Waiting ===

impl Waiting {
    fn displace(&mut self, key: u64, at_once: bool) -> bool {
        let Some(of_key) = self.by_key.get_mut(&key) else {
            return false;
        };
        let oldest = of_key.first_entry();
        let long_enough = |since: &Instant| at_once || since.elapsed() >= UNDISTURBED;
        let Some(oldest) = oldest.filter(|e| long_enough(&e.get().0)) else {
            return false;
        };
        let (_, holder) = oldest.remove();
        if of_key.is_empty() {
            self.by_key.remove(&key);
        }
        holder.displaced.cancel();
        holder.place.lock().take();
        true
    }
}

// === impl Seat ===

impl Seat {
    /// From here on the connection only waits for its peer.
    pub fn waits(&self) {
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

    /// From here on the connection has something to do, and makes way for nobody.
    pub fn works(&self) {
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

    /// Returns once the place was given to somebody else.
    pub async fn displaced(&self) {
        self.holder.displaced.cancelled().await;
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.works();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::advance;

    const ONE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const TWO: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));

    fn displaced(seat: &Seat) -> bool {
        seat.holder.displaced.is_cancelled()
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_waited_longest_makes_way_for_the_same_address() {
        let gate = Gate::new(10);
        let (first, second) = (gate.enter(ONE, 2).unwrap(), gate.enter(ONE, 2).unwrap());
        assert_eq!(gate.enter(ONE, 2).unwrap_err(), Full::Share, "too soon");
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
    async fn nobody_makes_way_for_another_address_or_while_it_works() {
        let gate = Gate::new(3);
        let seats = [gate.enter(ONE, 2).unwrap(), gate.enter(ONE, 2).unwrap()];
        seats[0].works();
        advance(UNDISTURBED * 2).await;
        let other = gate.enter(TWO, 2).unwrap();
        assert!(seats.iter().all(|s| !displaced(s)));
        drop(gate.enter(ONE, 2).unwrap());
        assert!(!displaced(&seats[0]) && displaced(&seats[1]) && !displaced(&other));
    }

    #[tokio::test(start_paused = true)]
    async fn the_greediest_address_makes_way_when_there_is_no_place() {
        let gate = Gate::new(6);
        let seats: Vec<_> = std::iter::from_fn(|| gate.enter(ONE, 6).ok()).collect();
        assert_eq!(seats.len(), 6);
        let second = gate.enter(TWO, 3).unwrap();
        assert!(displaced(&seats[0]), "at once");
        seats[1].works();
        let third = gate.enter(TWO, 3).unwrap();
        assert!(displaced(&seats[2]), "whoever works is left alone");
        assert_eq!(gate.enter(TWO, 2).unwrap_err(), Full::All, "its share");
        drop((seats, second, third));
        assert_eq!(gate.0.places.taken(), 0);
        assert!(gate.0.waiting.lock().by_key.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn among_equals_whoever_waited_makes_way() {
        let gate = Gate::new(2);
        let one = gate.enter(ONE, 1).unwrap();
        let two = gate.enter(TWO, 1).unwrap();
        let three = IpAddr::from([192, 0, 2, 3]);
        assert!(
            gate.enter(three, 1).is_err(),
            "nobody is greedy, nobody is old"
        );
        advance(UNDISTURBED).await;
        let _third = gate.enter(three, 1).unwrap();
        assert!(displaced(&one) != displaced(&two));
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_works_again_waits_from_then_on() {
        let gate = Gate::new(10);
        let (first, second) = (gate.enter(ONE, 2).unwrap(), gate.enter(ONE, 2).unwrap());
        advance(UNDISTURBED).await;
        first.works();
        first.waits();
        let _third = gate.enter(ONE, 2).unwrap();
        assert!(!displaced(&first) && displaced(&second));
    }
}
