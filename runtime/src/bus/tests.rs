use super::*;
use crate::{clock::Clock, config};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use std::time::Duration;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    time::{Instant, sleep, timeout},
};
use tokio_util::task::AbortOnDropHandle;

const TOPIC: Topic = "test.changes";
const MILLISECOND: Duration = Duration::from_millis(1);

/// A bus whose connection the test plays.
fn bus(state: State) -> Bus {
    Bus(Arc::new(Shared::new(state)))
}

async fn waited(follower: &mut Follower, position: u64) -> (Wake, Duration) {
    let since = Instant::now();
    (follower.wait(position).await, since.elapsed())
}

#[tokio::test(start_paused = true)]
async fn a_hint_wakes_every_follower_of_its_topic_at_once() {
    let bus = Bus::local();
    let (mut one, mut other) = (bus.follow(TOPIC), bus.clone().follow(TOPIC));
    let mut unrelated = bus.follow("test.unrelated");
    bus.publish(TOPIC, 1);
    assert_eq!(waited(&mut one, 0).await, (Wake::Hint, Duration::ZERO));
    assert_eq!(waited(&mut other, 0).await, (Wake::Hint, Duration::ZERO));
    assert_eq!(unrelated.wait(0).await, Wake::Interval);
    let waiting = tokio::spawn(async move { waited(&mut one, 1).await });
    sleep(7 * MILLISECOND).await;
    bus.publish(TOPIC, 2);
    assert_eq!(waiting.await.unwrap(), (Wake::Hint, 7 * MILLISECOND));
}

#[tokio::test(start_paused = true)]
async fn a_hint_of_what_was_read_already_is_ignored() {
    let bus = Bus::local();
    let mut follower = bus.follow(TOPIC);
    for sequence in [5, 3, 0] {
        bus.publish(TOPIC, sequence);
    }
    assert_eq!(follower.wait(5).await, Wake::Interval);
    for sequence in [7, 6] {
        bus.publish(TOPIC, sequence);
    }
    assert_eq!(follower.wait(6).await, Wake::Hint, "the newest counts");
}

#[tokio::test(start_paused = true)]
async fn without_hints_a_table_is_read_within_a_second_and_more_often_while_the_bus_is_down() {
    let second = Duration::from_secs(1);
    for state in [State::Local, State::Up(0)] {
        let (wake, after) = waited(&mut bus(state).follow(TOPIC), 0).await;
        assert_eq!(wake, Wake::Interval);
        assert!(after < second && after > second / 2, "{after:?}");
    }
    let (wake, after) = waited(&mut bus(State::Down).follow(TOPIC), 0).await;
    assert_eq!((wake, after), (Wake::Interval, 250 * MILLISECOND));
}

#[tokio::test(start_paused = true)]
async fn a_bus_that_goes_down_shortens_a_wait_and_one_that_returns_ends_it() {
    let bus = bus(State::Up(0));
    let mut follower = bus.follow(TOPIC);
    let change = async |state, after| {
        sleep(after).await;
        bus.0.state.send_replace(state);
    };
    let (waited_for, ()) = tokio::join!(
        waited(&mut follower, 0),
        change(State::Down, 100 * MILLISECOND)
    );
    assert_eq!(waited_for, (Wake::Interval, 250 * MILLISECOND));
    let (waited_for, ()) = tokio::join!(
        waited(&mut follower, 0),
        change(State::Up(1), 10 * MILLISECOND)
    );
    assert_eq!(waited_for, (Wake::Reconnected, 10 * MILLISECOND));
    // Down and up again while the follower was reading.
    bus.0.state.send_replace(State::Down);
    bus.0.state.send_replace(State::Up(2));
    assert_eq!(
        waited(&mut follower, 0).await,
        (Wake::Reconnected, Duration::ZERO)
    );
    assert_eq!(follower.wait(0).await, Wake::Interval);
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_wrong_numbers_does_not_make_a_follower_read_without_pause() {
    let bus = Bus::local();
    let mut follower = bus.follow(TOPIC);
    let flooding = bus.clone();
    let _flood = AbortOnDropHandle::new(tokio::spawn(async move {
        loop {
            flooding.0.deliver(TOPIC, u64::MAX);
            sleep(MILLISECOND).await;
        }
    }));
    let mut reads = 0;
    let reading = async {
        loop {
            follower.wait(0).await;
            reads += 1;
        }
    };
    timeout(Duration::from_secs(10), reading).await.unwrap_err();
    assert!((10..=201).contains(&reads), "{reads}");
}

#[tokio::test]
async fn messages_published_while_the_server_is_away_are_one_number_for_each_topic() {
    let bus = bus(State::Down);
    let mut follower = bus.follow(TOPIC);
    for sequence in (1..=10_000).rev() {
        bus.publish(TOPIC, sequence);
        bus.publish("test.unrelated", 1);
    }
    let outgoing = bus.0.outgoing.lock().clone();
    assert_eq!(outgoing, [(TOPIC, 10_000), ("test.unrelated", 1)].into());
    assert_eq!(follower.wait(9_999).await, Wake::Hint);
    let local = Bus::local();
    local.publish(TOPIC, 1);
    assert!(local.0.outgoing.lock().is_empty());
}

#[test]
fn followers_that_are_gone_leave_nothing_behind() {
    let bus = Bus::local();
    for _ in 0..1000 {
        drop(bus.follow(TOPIC));
    }
    let _follower = bus.follow(TOPIC);
    assert_eq!(bus.0.mailboxes.lock()[TOPIC].len(), 1);
    assert_eq!(*bus.0.topics.borrow(), [TOPIC]);
}

/// Answers as Redis does, and sends a message without an end to whoever subscribes. Returns how much of it
/// was taken before the connection was closed.
async fn send_endless(listener: TcpListener) -> usize {
    const SUBSCRIBED: &[u8] = b">3\r\n$9\r\nsubscribe\r\n$17\r\ntars:test.changes\r\n:1\r\n";
    const MESSAGE: &[u8] = b">3\r\n$7\r\nmessage\r\n$17\r\ntars:test.changes\r\n$4000000000\r\n";
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut buffer = vec![b'9'; 64 * 1024];
    loop {
        let received = stream.read(&mut buffer).await.unwrap();
        let text = String::from_utf8_lossy(&buffer[..received]).into_owned();
        for word in text.split("\r\n") {
            let answer: &[u8] = match word {
                "HELLO" => b"%1\r\n+server\r\n+redis\r\n",
                "PING" => b"+PONG\r\n",
                "SUBSCRIBE" => SUBSCRIBED,
                _ => b"",
            };
            stream.write_all(answer).await.unwrap();
        }
        if text.contains("SUBSCRIBE") {
            break;
        }
    }
    stream.write_all(MESSAGE).await.unwrap();
    let mut sent = 0;
    while sent < ENDLESS {
        match stream.write(&buffer).await {
            Ok(taken) => sent += taken,
            Err(_) => return sent,
        }
    }
    sent
}

/// More than the buffers of the two sockets hold.
const ENDLESS: usize = 64 << 20;

#[tokio::test]
async fn a_message_without_an_end_ends_the_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let settings = config::Redis {
        url: Some(format!("redis://{}", listener.local_addr().unwrap())),
        ..config::Redis::default()
    };
    let server = Server::of(&settings, None).unwrap().unwrap();
    let condition = Condition::new(Clock::system());
    let (bus, link) = Bus::over(server, condition.clone(), Seeds::counted(1));
    let _follower = bus.follow(TOPIC);
    let _link = AbortOnDropHandle::new(tokio::spawn(link));
    let sent = timeout(Duration::from_secs(60), send_endless(listener));
    assert!(sent.await.unwrap() < ENDLESS);
}

/// A table of numbered changes: when each was committed.
#[derive(Default)]
struct Table(Mutex<Vec<Instant>>);

impl Table {
    fn commit(&self) -> u64 {
        let mut rows = self.0.lock();
        rows.push(Instant::now());
        rows.len() as u64
    }

    fn after(&self, position: u64) -> Vec<Instant> {
        self.0.lock()[position as usize..].to_vec()
    }
}

const CHANGES: u64 = 200;
const LONGEST_READ: Duration = Duration::from_millis(40);

fn up_to(rng: &mut StdRng, most: Duration) -> Duration {
    most.mul_f64(rng.random())
}

/// Commits changes, and sends their hints over a network that loses, repeats, delays and so reorders
/// them, invents some, and goes down and up.
async fn write(bus: Bus, table: Arc<Table>, mut rng: StdRng) {
    let mut connections = 0;
    for _ in 0..CHANGES {
        let pause = Duration::from_millis([1, 50, 3000][rng.random_range(0..3)]);
        sleep(up_to(&mut rng, pause)).await;
        let sequence = table.commit();
        let copies = rng.random_range(0..4);
        for _ in 0..copies {
            let hint = match rng.random_range(0..20) {
                0 => u64::MAX,
                1 => rng.random_range(0..=sequence),
                _ => sequence,
            };
            let (bus, delay) = (bus.clone(), up_to(&mut rng, Duration::from_secs(2)));
            tokio::spawn(async move {
                sleep(delay).await;
                bus.0.deliver(TOPIC, hint);
            });
        }
        if rng.random_range(0..10) == 0 {
            connections += 1;
            let states = [State::Down, State::Up(connections), State::Local];
            bus.0.state.send_replace(states[rng.random_range(0..3)]);
        }
    }
}

/// Reads every change, and returns how long the latest of them took to arrive, without what reads that
/// failed have cost.
async fn read(bus: Bus, table: Arc<Table>, mut rng: StdRng) -> Duration {
    let mut follower = bus.follow(TOPIC);
    let (mut position, mut failures, mut longest) = (0, 0, Duration::ZERO);
    while position < CHANGES {
        match failures {
            0 => follower.wait(position).await,
            _ => follower.wait_after_failure(position).await,
        };
        let rows = table.after(position);
        sleep(up_to(&mut rng, LONGEST_READ)).await;
        if rng.random_range(0..20) == 0 {
            failures += 1;
            continue;
        }
        position += rows.len() as u64;
        let cost = std::mem::take(&mut failures) * (250 * MILLISECOND + LONGEST_READ);
        let latest = rows.iter().map(Instant::elapsed).max();
        longest = longest.max(latest.unwrap_or_default().saturating_sub(cost));
    }
    longest
}

#[tokio::test(start_paused = true)]
async fn every_change_arrives_in_under_a_second_whatever_happens_to_its_hint() {
    for seed in 0..50 {
        let (bus, table) = (bus(State::Up(0)), Arc::<Table>::default());
        let [for_writer, for_reader] = [0, 1].map(|n| StdRng::seed_from_u64(seed * 2 + n));
        let writing = tokio::spawn(write(bus.clone(), Arc::clone(&table), for_writer));
        let longest = read(bus, table, for_reader).await;
        writing.await.unwrap();
        assert!(longest < Duration::from_secs(1), "seed {seed}: {longest:?}");
    }
}

#[test]
fn hints_that_were_not_sent_are_put_back_and_newer_ones_stay() {
    let bus = bus(State::Down);
    let outgoing = || bus.0.outgoing.lock().clone();
    bus.publish(TOPIC, 3);
    bus.publish("test.other", 7);
    let unsent = Unsent::take(&bus.0);
    assert!(outgoing().is_empty());
    bus.publish(TOPIC, 5);
    drop(unsent);
    assert_eq!(outgoing(), BTreeMap::from([(TOPIC, 5), ("test.other", 7)]));
    Unsent::take(&bus.0).sent();
    assert!(outgoing().is_empty());
}
