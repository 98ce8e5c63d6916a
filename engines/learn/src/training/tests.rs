use super::seats::Seats;
use super::*;
use crate::{hyper::Value, size::Extent};
use std::cell::Cell;
use tars_worlds::world::BadSnapshot;
use tars_worlds::{AgentSpace, Controller, Observations, TimeStep, WorldSpec, make_world};

/// What happened, and when to interfere.
#[derive(Default)]
struct Owner {
    reports: Vec<Progress>,
    stop_at: Option<u64>,
    checkpoint_at: Option<u64>,
    checkpoint: Option<Vec<u8>>,
    reload: Option<Values>,
}

impl Control for Owner {
    fn report(&mut self, progress: Progress) {
        self.reports.push(progress);
    }

    fn poll(&mut self, step: u64) -> Command {
        if self.stop_at == Some(step) {
            Command::Stop
        } else if self.checkpoint_at == Some(step) {
            Command::Checkpoint
        } else {
            Command::Continue
        }
    }

    fn checkpoint(&mut self, checkpoint: Option<Vec<u8>>) {
        self.checkpoint = checkpoint;
    }

    fn take_reload(&mut self, _: usize) -> Option<Values> {
        self.reload.take()
    }
}

fn numbers(pairs: &[(&str, f64)]) -> Values {
    let owned = |(name, n): &(&str, f64)| ((*name).to_owned(), Value::Number(*n));
    pairs.iter().map(owned).collect()
}

fn learns(algorithm: &str) -> Member {
    Member::Learns {
        algorithm: algorithm.into(),
        values: numbers(&[("hidden_dim", 16.0), ("batch_size", 16.0)]),
        start: None,
    }
}

fn training(world: &'static str, members: Vec<Member>) -> Training {
    Training {
        world: Arc::new(move || make_world(world).unwrap()),
        members,
        copies: 2,
        seed: 3,
        steps: 1200,
        reports: 6,
        evaluate_every: 400,
        evaluation_episodes: 3,
    }
}

/// One learner, all agents at once, and one against fixed others.
fn trainings() -> Vec<Training> {
    let against = vec![Member::Plays(Player::Hold), learns("ddpg")];
    let mesh = make_world("mesh").unwrap().spec().agents.clone();
    let rule = |agent| Member::Plays(Player::baseline(agent));
    let mut among_rules: Vec<Member> = mesh.iter().map(rule).collect();
    among_rules[0] = learns("dqn");
    vec![
        training("taxi", vec![learns("dqn")]),
        training("pendulum", vec![learns("ddpg")]),
        training("cournot_2", vec![learns("ddpg"), learns("ddpg")]),
        training("rock_paper_scissors", vec![learns("dqn"), learns("dqn")]),
        training("cournot_2", against),
        training("mesh", among_rules),
    ]
}

#[test]
fn a_resumed_training_ends_as_an_undisturbed_one_to_the_bit() {
    for training in trainings() {
        let mut whole = Owner {
            checkpoint_at: Some(500),
            ..Owner::default()
        };
        let outcome = training.execute(None, &mut whole).unwrap().unwrap();
        let checkpoint = whole.checkpoint.unwrap();
        let mut rest = Owner::default();
        let resumed = training.execute(Some(&checkpoint), &mut rest).unwrap();
        assert_eq!(resumed.unwrap(), outcome);
        assert_eq!(whole.reports[2..], rest.reports);
        assert_eq!(outcome.evaluations.len(), 3);
        let cut = &checkpoint[..checkpoint.len() - 1];
        assert!(training.execute(Some(cut), &mut rest).is_err());
        let other = Training {
            seed: 4,
            ..training.clone()
        };
        assert!(other.execute(Some(&checkpoint), &mut rest).is_err());
    }
}

/// Stops a training when it was asked so often whether it is stopped.
struct Impatient {
    asked: Cell<u32>,
    steps: u64,
}

impl Control for Impatient {
    fn report(&mut self, _: Progress) {}

    fn poll(&mut self, step: u64) -> Command {
        self.steps = step;
        Command::Continue
    }

    fn is_stopped(&self) -> bool {
        self.asked.set(self.asked.get() + 1);
        self.asked.get() > 500
    }
}

#[test]
fn a_long_update_ends_before_its_next_gradient_step() {
    let long = [
        ("gradient_steps", 1000.0),
        ("learning_starts", 16.0),
        ("warmup_steps", 16.0),
        ("n_epochs", 100.0),
        ("n_steps", 128.0),
    ];
    for (world, algorithm) in [("taxi", "dqn"), ("pendulum", "ddpg"), ("cartpole", "ppo")] {
        let mut member = learns(algorithm);
        if let Member::Learns { values, .. } = &mut member {
            let spec = &algorithm::find(algorithm).unwrap().spec;
            let defaults = spec.defaults();
            let known = |(name, _): &&(&str, f64)| defaults.contains_key(*name);
            let known: Vec<(&str, f64)> = long.iter().filter(known).copied().collect();
            values.extend(numbers(&known));
        }
        let training = training(world, vec![member]);
        let mut control = Impatient {
            asked: Cell::new(0),
            steps: 0,
        };
        assert_eq!(training.execute(None, &mut control).unwrap(), None);
        let asked = control.asked.get();
        assert!((501..=502).contains(&asked), "{algorithm}: {asked}");
        assert!(control.steps < 300, "most of it was asked within an update");
    }
}

#[test]
fn a_stopped_training_has_no_outcome_and_reports_come_at_even_steps() {
    let mut owner = Owner {
        stop_at: Some(700),
        ..Owner::default()
    };
    let training = training("cartpole", vec![learns("dqn")]);
    assert_eq!(training.execute(None, &mut owner).unwrap(), None);
    let steps: Vec<u64> = owner.reports.iter().map(|p| p.step).collect();
    assert_eq!(steps, [200, 400, 600]);
}

#[test]
fn a_reload_takes_effect_and_a_refused_one_ends_the_training() {
    let training = training("cartpole", vec![learns("dqn")]);
    let mut plain = Owner::default();
    training.execute(None, &mut plain).unwrap();
    let reload = |values| Owner {
        reload: Some(values),
        ..Owner::default()
    };
    let mut changed = reload(numbers(&[("epsilon_decay", 0.9)]));
    training.execute(None, &mut changed).unwrap();
    let last = |owner: &Owner| owner.reports[5].agents[0].exploration;
    assert!(last(&changed) < last(&plain));
    let mut fixed = reload(numbers(&[("hidden_dim", 99.0)]));
    training.execute(None, &mut fixed).unwrap();
    assert_eq!(fixed.reports, plain.reports, "it is fixed at the start");
    let mut refused = reload(numbers(&[("gamma", 99.0)]));
    let error = training.execute(None, &mut refused).unwrap_err();
    assert!(matches!(error, TrainingError::Hyperparameters(_)));
}

#[test]
fn members_that_do_not_fit_the_world_are_refused() {
    let policy = training("cartpole", vec![learns("dqn")])
        .execute(None, &mut Owner::default())
        .unwrap()
        .unwrap()
        .learned
        .remove(0)
        .policy;
    let frozen = || Member::Plays(Player::Policy(policy.clone()));
    for (world, members) in [
        ("cartpole", vec![]),
        ("cartpole", vec![Member::Plays(Player::Hold)]),
        ("cartpole", vec![learns("dqn"), learns("dqn")]),
        ("cartpole", vec![learns("ddpg")]),
        ("cartpole", vec![learns("nothing")]),
        ("pendulum", vec![learns("dqn")]),
        ("rock_paper_scissors", vec![learns("dqn"), frozen()]),
    ] {
        let refused = training(world, members).execute(None, &mut Owner::default());
        assert!(refused.is_err(), "{world}");
    }
}

/// CartPole whose rewards are not numbers.
struct Broken(Box<dyn World>);

impl World for Broken {
    fn spec(&self) -> &WorldSpec {
        self.0.spec()
    }

    fn reset(&mut self, rng: &mut Generator, observations: &mut Observations) {
        self.0.reset(rng, observations);
    }

    fn step(
        &mut self,
        actions: &[Action],
        rng: &mut Generator,
        observations: &mut Observations,
        steps: &mut [TimeStep],
    ) {
        self.0.step(actions, rng, observations, steps);
        steps[0].reward = f32::NAN;
    }

    fn observe(&self, observations: &mut Observations) {
        self.0.observe(observations);
    }

    fn snapshot(&self) -> Option<Vec<u8>> {
        None
    }

    fn restore(&mut self, _: &[u8]) -> Result<(), BadSnapshot> {
        Err(BadSnapshot)
    }
}

#[test]
fn a_world_that_gives_no_numbers_ends_the_training() {
    let broken = Training {
        world: Arc::new(|| Box::new(Broken(make_world("cartpole").unwrap()))),
        ..training("cartpole", vec![learns("dqn")])
    };
    let ended = broken.execute(None, &mut Owner::default());
    assert_eq!(ended, Err(TrainingError::World));
}

/// A world that runs elsewhere: every so many steps the other process fails, and at the end it is gone.
struct Remote {
    world: Box<dyn World>,
    steps: u32,
    fails_every: u32,
    gone_after: u32,
    soundness: Soundness,
}

impl World for Remote {
    fn spec(&self) -> &WorldSpec {
        self.world.spec()
    }

    fn reset(&mut self, rng: &mut Generator, observations: &mut Observations) {
        self.world.reset(rng, observations);
    }

    fn step(
        &mut self,
        actions: &[Action],
        rng: &mut Generator,
        observations: &mut Observations,
        steps: &mut [TimeStep],
    ) {
        self.steps += 1;
        self.soundness = if self.steps > self.gone_after {
            Soundness::Lost
        } else if self.steps.is_multiple_of(self.fails_every) {
            Soundness::Interrupted
        } else {
            self.world.step(actions, rng, observations, steps);
            return self.soundness = Soundness::Sound;
        };
        steps.fill(TimeStep {
            truncated: true,
            ..TimeStep::default()
        });
    }

    fn observe(&self, observations: &mut Observations) {
        self.world.observe(observations);
    }

    fn soundness(&self) -> Soundness {
        self.soundness
    }

    fn snapshot(&self) -> Option<Vec<u8>> {
        None
    }

    fn restore(&mut self, _: &[u8]) -> Result<(), BadSnapshot> {
        Err(BadSnapshot)
    }
}

fn remote(fails_every: u32, gone_after: u32) -> Training {
    let world = move || -> Box<dyn World> {
        Box::new(Remote {
            world: make_world("gridworld").unwrap(),
            steps: 0,
            fails_every,
            gone_after,
            soundness: Soundness::Sound,
        })
    };
    Training {
        world: Arc::new(world),
        ..training("gridworld", vec![learns("dqn")])
    }
}

#[test]
fn a_world_that_fails_now_and_then_is_learned_in_and_measured_by_whole_episodes_only() {
    let outcome = remote(70, u32::MAX).execute(None, &mut Owner::default());
    let outcome = outcome.unwrap().unwrap();
    assert_eq!(outcome.steps, 1200);
    // An episode of the grid ends at the goal, with a reward of 1, or after 50 steps of -0.01.
    let returns = outcome.evaluations.iter().flat_map(|e| &e.returns[0]);
    for value in returns {
        let timed_out = (value + 0.5).abs() < 1e-4;
        assert!(
            timed_out || *value > 0.5,
            "{value} is of a part of an episode"
        );
    }
}

#[test]
fn a_world_that_is_gone_ends_the_training_with_an_error() {
    let ended = remote(70, 300).execute(None, &mut Owner::default());
    assert_eq!(ended, Err(TrainingError::WorldLost));
    let evaluated_first = Training {
        evaluate_every: 2,
        ..remote(u32::MAX, 20)
    };
    let ended = evaluated_first.execute(None, &mut Owner::default());
    assert_eq!(ended, Err(TrainingError::WorldLost));
}

/// Counts the steps of its episode, and acts by the count.
struct Counting(u8);

impl Controller for Counting {
    fn reset(&mut self) {
        self.0 = 0;
    }

    fn act(&mut self, _: &[f32], action: &mut Action) {
        *action = Action::Discrete(self.0.into());
        self.0 += 1;
    }

    fn save(&self) -> Vec<u8> {
        vec![self.0]
    }

    fn restore(&mut self, saved: &[u8]) -> Result<(), BadSnapshot> {
        let [count] = saved else {
            return Err(BadSnapshot);
        };
        self.0 = *count;
        Ok(())
    }
}

#[test]
fn each_copy_has_a_rule_of_its_own_which_forgets_at_the_end_of_its_episode() {
    let counting = Player::Rule(Arc::new(|| Box::new(Counting(0))));
    let take = |seats: &mut Seats, copy: usize, mask: &[bool]| {
        let mut action = Action::Discrete(9);
        seats.act(copy, &[], mask, &mut action);
        action.index()
    };
    let mut seats = Seats::new(&counting, 2);
    assert_eq!([0, 0, 1].map(|copy| take(&mut seats, copy, &[])), [0, 1, 0]);
    let saved = seats.save();
    seats.reset(0);
    assert_eq!([0, 1].map(|copy| take(&mut seats, copy, &[])), [0, 1]);
    let mut restored = Seats::new(&counting, 2);
    restored.restore(&saved).unwrap();
    assert_eq!([0, 1].map(|copy| take(&mut restored, copy, &[])), [2, 1]);
    assert_eq!(take(&mut restored, 1, &[false, true, false]), 1, "masked");
    for other in [&saved[..1], &[vec![1], vec![]], &[]] {
        assert_eq!(restored.restore(other), None);
    }
    assert_eq!(Seats::new(&Player::Hold, 2).restore(&saved), None);
}

#[test]
fn an_agent_that_holds_takes_the_first_action_that_it_may() {
    let mut action = Action::Discrete(0);
    let mut hold = |mask: &[bool]| {
        Seats::new(&Player::Hold, 1).act(0, &[], mask, &mut action);
        action.clone()
    };
    assert_eq!(hold(&[false, true, true]), Action::Discrete(1));
    assert_eq!(hold(&[true, true, true]), Action::Discrete(0));
    let mut lowest = Action::Continuous(vec![-1.0]);
    Seats::new(&Player::Hold, 1).act(0, &[], &[], &mut lowest);
    assert_eq!(lowest, Action::Continuous(vec![-1.0]));
}

/// What the learners of a training may come to.
fn sizes(training: &Training) -> u64 {
    let world = (training.world)();
    let extent = Extent {
        copies: training.copies,
        steps: training.steps,
    };
    let of = |(space, member): (&AgentSpace, &Member)| match member {
        Member::Plays(_) => 0,
        Member::Learns {
            algorithm, values, ..
        } => {
            let size = find(algorithm).unwrap().size(space, values, extent);
            size.unwrap().checkpoint()
        }
    };
    let agents = world.spec().agents.iter();
    agents.zip(&training.members).map(of).sum()
}

#[test]
fn a_checkpoint_is_no_larger_than_its_learners_and_its_worlds_may_be() {
    // The worlds, what rules remember, and the evaluations.
    const ROOM: u64 = 64 << 10;
    let mut trainings = trainings();
    let mesh = ["dqn", "a2c", "ppo", "ddpg"];
    let mut all = training("mesh", mesh.map(learns_by_default).to_vec());
    all.copies = 8;
    trainings.push(all);
    for training in trainings {
        let most = sizes(&training) + ROOM;
        let last = training.steps - training.copies as u64;
        let mut owner = Owner {
            checkpoint_at: Some(last),
            ..Owner::default()
        };
        training.execute(None, &mut owner).unwrap();
        let saved = owner.checkpoint.unwrap().len() as u64;
        assert!(saved <= most, "{saved} {most}");
    }
}

fn learns_by_default(algorithm: &str) -> Member {
    Member::Learns {
        algorithm: algorithm.into(),
        values: Values::new(),
        start: None,
    }
}
