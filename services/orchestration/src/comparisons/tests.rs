use super::*;
use tars_learn::comparison::Verdict;

fn rewards(names: &[&str], rewards: &[Vec<f64>]) -> Option<Comparison> {
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    let incumbent = Incumbent {
        version: 3,
        rule: None,
    };
    compared(&names, rewards, incumbent, "shipped".to_owned(), 7)
}

#[test]
fn the_version_is_compared_with_each_of_the_others_seed_by_seed() {
    let own = vec![1.0, 2.0, 3.0];
    let others = [
        vec![0.5, 1.5, 2.5],
        vec![1.0, 2.0, 3.0],
        vec![9.0, 9.0, 9.0],
    ];
    let found = rewards(
        &["version", "the ACTIVE version 3", "hold", "mpc"],
        &[&[own][..], &others].concat(),
    );
    let found = found.unwrap();
    assert_eq!((found.seeds, found.mean), (3, 2.0));
    assert_eq!(found.with_incumbent.verdict(), Verdict::Better);
    assert_eq!(found.with_incumbent.difference.low, 0.5);
    let verdicts: Vec<Verdict> = found.with_rules.iter().map(Against::verdict).collect();
    assert_eq!(verdicts, [Verdict::Undecided, Verdict::Worse]);
    assert!(found.with_rules[1].is_worse() && !found.with_rules[0].is_worse());
}

#[test]
fn rewards_that_are_not_finite_are_no_comparison() {
    for wrong in [f64::NAN, f64::INFINITY] {
        for at in 0..2 {
            let mut all = vec![vec![1.0, 2.0], vec![1.0, 2.0]];
            all[at][1] = wrong;
            assert_eq!(rewards(&["version", "hold"], &all), None);
        }
    }
}

struct Fixed(usize);

impl Controller for Fixed {
    fn act(&mut self, _: &[f32], action: &mut Action) {
        *action = Action::Discrete(self.0);
    }
}

fn approvals() -> Contest {
    let mesh = MeshEnv::shipped();
    let space: &AgentSpace = &mesh.spec().agents[1];
    let majority = Answerer::Rule(Rule::find(space, "majority_quorum").unwrap());
    let majority = Served::boxed(majority, Shield::of_mesh(space));
    Contest {
        agent: 1,
        players: vec![
            ("version".to_owned(), Box::new(Fixed(2))),
            ("hold".to_owned(), Box::new(Fixed(0))),
            ("again".to_owned(), Box::new(Fixed(2))),
            ("majority_quorum".to_owned(), majority),
        ],
        mesh,
        seeds: 5..8,
    }
}

#[test]
fn players_meet_the_same_episodes_and_take_one_part() {
    let Played::Rewards(all) = approvals().play(&AtomicBool::new(false)) else {
        panic!("nobody stopped it")
    };
    assert_eq!(all.iter().map(Vec::len).collect::<Vec<_>>(), [3; 4]);
    assert_eq!(all[0], all[2], "the same player earns the same");
    assert_ne!(all[0], all[1]);
    assert_ne!(all[1], all[3]);
}

#[test]
fn a_contest_that_nobody_waits_for_stops() {
    let stopped = approvals().play(&AtomicBool::new(true));
    assert_eq!(stopped, Played::Stopped);
}
