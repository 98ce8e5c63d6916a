use super::{offer::tests::offer, *};

const MESSAGE: usize = 1 << 20;

fn terms() -> Terms {
    Terms {
        patience: Duration::from_millis(20),
        of_one_caller: 2,
        of_all: 3,
        ..Terms::default()
    }
}

fn lend(hosts: &Hosts, owner: &str, name: &str) -> Result<Conversation, Fault> {
    let mut offer = offer();
    offer.name = name.into();
    let opened = hosts.open(owner, Some(Message::Hello(offer)), MESSAGE);
    opened.map(|(_, conversation)| conversation)
}

#[test]
fn only_its_owner_finds_an_environment_and_only_while_it_is_lent() {
    let hosts = Hosts::new(terms(), Clock::system());
    let session = lend(&hosts, "a", "maze").unwrap();
    assert_eq!(hosts.environments("a"), ["external/maze"]);
    assert_eq!(hosts.spec("a", "external/maze").unwrap().agents.len(), 2);
    assert_eq!(hosts.external("a", "external/maze").unwrap().free_copies, 4);
    for name in ["maze", "external/", "external/other", "EXTERNAL/maze"] {
        assert!(hosts.spec("a", name).is_none(), "{name}");
    }
    assert!(hosts.environments("b").is_empty());
    assert!(hosts.spec("b", "external/maze").is_none());
    assert!(hosts.external("b", "external/maze").is_none());
    drop(session);
    assert!(hosts.spec("a", "external/maze").is_none());
}

#[test]
fn sessions_are_bounded_by_name_by_caller_and_in_total() {
    let hosts = Hosts::new(terms(), Clock::system());
    let refusal = |owner: &str, name: &str| lend(&hosts, owner, name).unwrap_err();
    let first = lend(&hosts, "a", "x").unwrap();
    assert_eq!(refusal("a", "x"), Fault::NameTaken("x".into()));
    let _second = lend(&hosts, "a", "y").unwrap();
    assert_eq!(refusal("a", "z"), Fault::CallerFull);
    let _third = lend(&hosts, "b", "x").unwrap();
    assert_eq!(refusal("b", "y"), Fault::Full);
    drop(first);
    lend(&hosts, "b", "y").unwrap();
}

#[test]
fn a_host_that_comes_back_is_found_if_its_spaces_are_the_same() {
    let hosts = Hosts::new(terms(), Clock::system());
    let session = lend(&hosts, "a", "x").unwrap();
    let offer = Arc::clone(&hosts.find("a", "external/x").unwrap().offer);
    drop(session);
    assert!(hosts.wait_for("a", &offer).is_none());
    let _again = lend(&hosts, "a", "x").unwrap();
    assert!(hosts.wait_for("a", &offer).is_some());
    assert!(hosts.wait_for("b", &offer).is_none());
    let mut other = Accepted::clone(&offer);
    other.spec.max_steps = None;
    assert!(hosts.wait_for("a", &other).is_none());
}

#[test]
fn a_host_that_comes_back_wakes_who_waits_for_it() {
    let patient = Terms {
        patience: Duration::from_secs(30),
        ..terms()
    };
    let hosts = Hosts::new(patient, Clock::system());
    let session = lend(&hosts, "a", "x").unwrap();
    let offer = Arc::clone(&hosts.find("a", "external/x").unwrap().offer);
    drop(session);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| hosts.wait_for("a", &offer).is_some());
        let _again = lend(&hosts, "a", "x").unwrap();
        assert!(waiting.join().unwrap());
    });
}
