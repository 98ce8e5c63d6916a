use super::*;
use std::sync::atomic::Ordering;

/// Far longer than a test.
const LONG: u64 = 1 << 40;

fn owner(class: Class, caller: &str) -> Owner {
    Owner {
        class,
        caller: caller.to_owned(),
    }
}

fn start(learners: &Learners, class: Class, caller: &str, steps: u64) -> Running {
    learners
        .start(owner(class, caller), Task::for_tests(steps), None)
        .unwrap()
}

async fn ended(mut running: Running) -> bool {
    while let Some(event) = running.next().await {
        if let Event::Ended(Ok(Some(_))) = event {
            return true;
        }
    }
    false
}

#[tokio::test]
async fn verifications_do_not_wait_behind_trainings_and_searches() {
    let learners = Learners::new(1, 8);
    let trainings: Vec<_> = (0..2)
        .map(|_| start(&learners, Class::Training, "ada", LONG))
        .collect();
    let searches: Vec<_> = (0..2)
        .map(|_| start(&learners, Class::Search, "bob", LONG))
        .collect();
    assert_eq!(trainings[0].stop().position(), None, "it runs");
    assert_eq!(
        searches[0].stop().position(),
        None,
        "its class has a thread of its own"
    );
    assert_eq!(trainings[1].stop().position(), Some(1));
    assert_eq!(searches[1].stop().position(), Some(1));
    assert!(ended(start(&learners, Class::Verification, "eve", 100)).await);
    assert_eq!(trainings[1].stop().position(), Some(1), "and still waits");
}

#[tokio::test]
async fn the_queue_is_bounded_in_total_and_for_each_caller() {
    let learners = Learners::new(1, 8);
    let refused = |caller: &str| {
        let tried = learners.start(owner(Class::Training, caller), Task::for_tests(LONG), None);
        matches!(tried, Err(OrchestrationError::QueueFull))
    };
    let mut held = vec![start(&learners, Class::Training, "ada", LONG)];
    for _ in 0..2 {
        held.push(start(&learners, Class::Training, "ada", LONG));
    }
    assert!(refused("ada"), "two of eight places are one caller's share");
    for caller in ["bob", "eve", "joe"] {
        held.push(start(&learners, Class::Training, caller, LONG));
        held.push(start(&learners, Class::Training, caller, LONG));
    }
    assert!(refused("zoe"), "all places are taken");
    held.push(start(&learners, Class::Search, "ada", LONG));
    held.push(start(&learners, Class::Search, "ada", LONG));
}

#[tokio::test]
async fn a_caller_with_fewer_running_runs_goes_first() {
    let learners = Learners::new(2, 16);
    let _running = [
        start(&learners, Class::Training, "ada", LONG),
        start(&learners, Class::Training, "ada", LONG),
    ];
    let own = start(&learners, Class::Training, "ada", LONG);
    let other = start(&learners, Class::Training, "bob", LONG);
    assert_eq!(other.stop().position(), Some(1));
    assert_eq!(own.stop().position(), Some(2));
}

#[tokio::test]
async fn a_run_stopped_in_the_queue_ends_at_once_and_frees_its_place() {
    let learners = Learners::new(1, 1);
    let _running = start(&learners, Class::Training, "ada", LONG);
    let mut waits = start(&learners, Class::Training, "ada", LONG);
    waits.stop().stop();
    assert!(waits.next().await.is_none());
    assert_eq!(waits.stop().position(), None);
    let again = start(&learners, Class::Training, "ada", LONG);
    drop(again);
    start(&learners, Class::Training, "ada", LONG);
}

#[tokio::test]
async fn other_work_takes_its_turn_and_is_stopped_when_nobody_waits() {
    let learners = Learners::new(1, 4);
    let own = || owner(Class::Search, "ada");
    let sum = learners.compute(own(), |_| 1 + 1).unwrap();
    assert_eq!(sum.result().await.unwrap(), 2);
    // The result comes before the thread is free.
    let is_idle = async {
        while !learners.is_idle() {
            tokio::task::yield_now().await;
        }
    };
    let waited = tokio::time::timeout(std::time::Duration::from_secs(60), is_idle);
    waited.await.unwrap();
    let (sender, ended) = oneshot::channel();
    let endless = move |stop: &AtomicBool| {
        while !stop.load(Ordering::Relaxed) {
            std::thread::yield_now();
        }
        sender.send(()).ok();
    };
    let running = learners.compute(own(), endless).unwrap();
    let queued = learners.compute(own(), |_| ()).unwrap();
    drop(running);
    ended.await.unwrap();
    queued.result().await.unwrap();
    let broken = learners.compute(own(), |_| panic!("a test")).unwrap();
    let lost: Result<(), _> = broken.result().await;
    assert!(matches!(lost, Err(OrchestrationError::Worker(_))));
}

#[tokio::test]
async fn a_released_thread_runs_the_next_run() {
    let learners = Learners::new(1, 4);
    let first = start(&learners, Class::Training, "ada", LONG);
    let second = start(&learners, Class::Training, "ada", 50);
    first.stop().stop();
    assert!(ended(second).await);
}

#[tokio::test]
async fn a_run_paused_in_the_queue_ends_at_once() {
    let learners = Learners::new(1, 1);
    let _running = start(&learners, Class::Training, "ada", LONG);
    let mut waits = start(&learners, Class::Training, "ada", LONG);
    waits.stop().pause();
    assert!(waits.next().await.is_none());
    assert!(waits.stop().is_stopped());
    start(&learners, Class::Training, "ada", LONG);
}

#[tokio::test]
async fn callers_take_turns_however_many_runs_each_has_waiting() {
    let learners = Learners::new(1, 16);
    let mut runs: Vec<Running> = ["ada", "ada", "ada", "bob", "bob", "eve"]
        .map(|caller| start(&learners, Class::Training, caller, LONG))
        .into();
    // By their positions in the list.
    for expected in [3, 5, 1, 4, 2] {
        let (running, waits): (Vec<_>, Vec<_>) = (0..runs.len())
            .filter(|at| !runs[*at].stop().is_stopped())
            .partition(|at| runs[*at].stop().position().is_none());
        assert_eq!(running.len(), 1, "{waits:?} wait");
        let before = running[0];
        runs[before].stop().stop();
        while runs[before].next().await.is_some() {}
        let next = runs[expected].next().await;
        assert!(matches!(next, Some(Event::Began)), "{next:?}");
    }
}
