use super::super::{offer::tests::offer, packed::Dtype};
use super::*;

const MESSAGE: usize = 1 << 20;

fn idle() -> Idle {
    Idle::open(Some(Message::Hello(offer())), MESSAGE).unwrap()
}

fn reset(copies: &[u32]) -> Work {
    let copies = copies.to_vec();
    Work::Reset { copies, seed: 7 }
}

fn step(copies: &[u32]) -> Work {
    let copies = copies.to_vec();
    let actions = Vec::new();
    Work::Step { copies, actions }
}

fn numbers(shape: &[usize], value: f32) -> Option<Packed> {
    let length = shape.iter().product();
    Some(Packed::numbers(shape, std::iter::repeat_n(value, length)))
}

fn flags(shape: &[u32], data: &[u8]) -> Option<Packed> {
    Some(Packed {
        dtype: Dtype::Bool,
        shape: shape.to_vec(),
        data: data.to_vec(),
    })
}

/// An answer for two copies in which no episode ends.
fn stepped(id: u64) -> Answer {
    let agent = |components| AgentAnswer {
        observations: numbers(&[2, components], 0.5),
        rewards: numbers(&[2], 1.0),
        terminated: flags(&[2], &[0, 0]),
        truncated: flags(&[2], &[0, 0]),
        ..AgentAnswer::default()
    };
    let agents = vec![agent(2), agent(1)];
    Answer { id, agents }
}

fn began(id: u64) -> Answer {
    let agent = |components| AgentAnswer {
        observations: numbers(&[2, components], 0.5),
        ..AgentAnswer::default()
    };
    let agents = vec![agent(2), agent(1)];
    Answer { id, agents }
}

/// What a step of two copies comes to when the answer is changed.
fn after(change: impl FnOnce(&mut Answer)) -> Result<Vec<AgentRows>, Fault> {
    let mut answer = stepped(1);
    change(&mut answer);
    let (asked, _) = idle().ask(step(&[0, 1]));
    asked.answer(Message::Step(answer)).map(|(_, rows)| rows)
}

fn refused(change: impl FnOnce(&mut Answer)) -> String {
    after(change).unwrap_err().to_string()
}

#[test]
fn a_session_opens_with_a_hello_only() {
    for first in [
        None,
        Some(Message::Reset(began(1))),
        Some(Message::Step(stepped(1))),
    ] {
        let fault = Idle::open(first, MESSAGE).unwrap_err();
        assert_eq!(
            fault,
            Fault::Unexpected("the first request must be a hello")
        );
    }
    assert_eq!(idle().offer().name, "my-env");
}

#[test]
fn an_idle_session_ends_with_whatever_it_is_sent() {
    let second = idle().interrupt(&Message::Hello(offer()));
    assert_eq!(second, Fault::Unexpected("a session has one hello"));
    for unasked in [Message::Reset(began(0)), Message::Step(stepped(1))] {
        let fault = idle().interrupt(&unasked);
        assert_eq!(fault, Fault::Unexpected("nothing was asked"));
    }
}

#[test]
fn orders_are_numbered_and_answered_in_turn() {
    let (asked, order) = idle().ask(reset(&[0, 1]));
    assert_eq!(order.id, 1);
    let (idle, rows) = asked.answer(Message::Reset(began(1))).unwrap();
    assert_eq!(rows[0].batch.observations, [0.5; 4]);
    let (asked, order) = idle.ask(step(&[0, 1]));
    assert_eq!(order.id, 2);
    let (_, rows) = asked.answer(Message::Step(stepped(2))).unwrap();
    assert_eq!(rows[1].batch.rewards, [1.0, 1.0]);
    assert!(rows[0].masks.is_empty());
}

#[test]
fn a_session_that_asked_ends_with_anything_but_the_answer() {
    let unexpected = |message| {
        let (asked, _) = idle().ask(step(&[0, 1]));
        let fault = asked.answer(message).unwrap_err();
        assert!(matches!(fault, Fault::Unexpected(_)), "{fault}");
    };
    unexpected(Message::Hello(offer()));
    unexpected(Message::Reset(began(1)));
    unexpected(Message::Step(stepped(0)));
    unexpected(Message::Step(stepped(2)));
}

#[test]
fn a_session_that_asked_ends_with_its_deadline() {
    let limit = Duration::from_secs(5);
    assert_eq!(idle().ask(reset(&[0])).0.expire(limit), Fault::Late(limit));
}

#[test]
fn arrays_have_the_shapes_that_the_spaces_and_the_copies_say() {
    let missing = refused(|a| a.agents[1].rewards = None);
    assert_eq!(missing, "agents[1].rewards is missing");
    assert!(refused(|a| drop(a.agents.pop())).starts_with("agents has 1 items"));
    let one_copy = refused(|a| a.agents[0].observations = numbers(&[1, 2], 0.0));
    assert!(
        one_copy.contains("[1, 2]; [2, 2] is required"),
        "{one_copy}"
    );
    let flat = refused(|a| a.agents[0].observations = numbers(&[4], 0.0));
    assert!(
        flat.starts_with("agents[0].observations has the shape"),
        "{flat}"
    );
    let three = refused(|a| a.agents[0].terminated = flags(&[3], &[0, 0, 0]));
    assert!(three.starts_with("agents[0].terminated"), "{three}");
}

#[test]
fn rewards_and_observations_are_finite() {
    for bad in [f32::NAN, f32::INFINITY] {
        let text = refused(|a| a.agents[0].rewards = numbers(&[2], bad));
        assert!(text.starts_with("agents[0].rewards"), "{text}");
        let text = refused(|a| a.agents[1].observations = numbers(&[2, 1], bad));
        assert!(text.starts_with("agents[1].observations"), "{text}");
    }
}

#[test]
fn an_episode_ends_for_all_agents_with_final_observations() {
    let end = |a: &mut Answer| {
        a.agents[0].terminated = flags(&[2], &[1, 0]);
        a.agents[0].final_observations = numbers(&[2, 2], 9.0);
    };
    assert_eq!(refused(end), "agents end an episode at different steps");
    let without = |a: &mut Answer| a.agents[0].truncated = flags(&[2], &[0, 1]);
    assert!(refused(without).starts_with("agents[0].final_observations"));
    let rows = after(|a| {
        end(a);
        a.agents[1].truncated = flags(&[2], &[1, 0]);
        a.agents[1].final_observations = numbers(&[2, 1], 8.0);
    });
    let rows = rows.unwrap();
    assert_eq!(rows[0].batch.terminated, [true, false]);
    assert_eq!(rows[1].batch.truncated, [true, false]);
    assert_eq!(rows[0].batch.final_observations, [9.0; 4]);
    let both = refused(|a| {
        a.agents[0].terminated = flags(&[2], &[1, 0]);
        a.agents[0].truncated = flags(&[2], &[1, 0]);
    });
    assert!(both.contains("together with terminated"), "{both}");
}

#[test]
fn masks_leave_an_action_and_belong_to_discrete_agents() {
    let masks = flags(&[2, 3], &[0, 1, 0, 1, 1, 1]);
    let rows = after(|a| a.agents[0].masks.clone_from(&masks)).unwrap();
    assert_eq!(rows[0].masks[..3], [false, true, false]);
    let nothing = refused(|a| a.agents[0].masks = flags(&[2, 3], &[0, 0, 0, 1, 1, 1]));
    assert!(nothing.contains("no action"), "{nothing}");
    let continuous = refused(|a| a.agents[1].masks = flags(&[2, 1], &[1, 1]));
    assert!(continuous.starts_with("agents[1].masks"), "{continuous}");
}
