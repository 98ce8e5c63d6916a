//! The report, as JSON and as Markdown.

use crate::{
    contest::{Contest, Player, Profile, TRAINED, UNTRAINED, baseline_names, baselines, with},
    equilibrium::{Deviation, deviations, nash_convs, regret},
    options::Options,
    spread::{Spread, spreads},
    training::ALGORITHMS,
};
use serde_json::{Map, Value, json};
use std::fmt::Write;
use tars_learn::comparison::{Difference, Verdict};

/// A comparison of one agent.
pub(crate) struct Row {
    pub(crate) agent: String,
    pub(crate) against: &'static str,
    ours: f64,
    theirs: f64,
    pub(crate) difference: Difference,
}

/// How far a profile is from an equilibrium.
struct Distance {
    name: &'static str,
    /// In empirical games of the next intervals, with the interval of the mean over the states.
    nash_conv: Difference,
    deviations: Vec<Deviation>,
}

pub(crate) struct Report {
    head: String,
    steps: u64,
    cpu_seconds: f64,
    seeds: u64,
    agents: Vec<String>,
    /// One trained agent among baselines.
    single: Vec<Row>,
    /// One trained agent among trained ones.
    among_trained: Vec<Row>,
    /// All trained against all baselines.
    joint: Vec<Row>,
    distances: Vec<Distance>,
    /// What other trainings say of the comparisons among rules.
    trainings: Vec<Spread>,
}

/// The report on the first training, and how far the others bear it out.
pub(crate) fn measure(contests: &mut [Contest], options: &Options) -> Report {
    let trainings = spreads(contests);
    let contest = &mut contests[0];
    let agents: Vec<String> = (0..4).map(|agent| contest.agent_name(agent)).collect();
    let states = if options.quick { 2 } else { 10 };
    Report {
        head: head(contest, options),
        steps: contest.trained.steps,
        cpu_seconds: contest.trained.cpu_seconds,
        seeds: options.seeds,
        single: against_rules(contest),
        among_trained: against_controllers(contest, TRAINED),
        joint: jointly(contest),
        distances: [
            ("untrained", UNTRAINED),
            ("baselines", baselines()),
            ("trained", TRAINED),
        ]
        .map(|(name, profile)| distance(contest, name, profile, states))
        .into(),
        agents,
        trainings,
    }
}

fn row(
    contest: &mut Contest,
    agent: usize,
    against: &'static str,
    of: Profile,
    to: Profile,
) -> Row {
    Row {
        agent: contest.agent_name(agent),
        against,
        ours: contest.mean(of, agent),
        theirs: contest.mean(to, agent),
        difference: contest.difference(of, to, agent),
    }
}

/// Every agent against each of its controllers and its own untrained network, while the others play as a profile says.
fn against_controllers(contest: &mut Contest, others: Profile) -> Vec<Row> {
    let mut rows = Vec::new();
    for agent in 0..4 {
        let of = with(others, agent, Player::Trained);
        let mut players = contest.controllers(agent);
        players.push(Player::Untrained);
        for player in players {
            let to = with(others, agent, player);
            rows.push(row(contest, agent, player.name(), of, to));
        }
    }
    rows
}

/// Every agent while rules act for the others.
pub(crate) fn against_rules(contest: &mut Contest) -> Vec<Row> {
    against_controllers(contest, baselines())
}

/// All four trained against all four rules: each of them, and at last their mean.
pub(crate) fn jointly(contest: &mut Contest) -> Vec<Row> {
    let mut rows: Vec<Row> = (0..ALGORITHMS.len())
        .map(|agent| {
            row(
                contest,
                agent,
                baseline_names()[agent],
                TRAINED,
                baselines(),
            )
        })
        .collect();
    let mean = |rewards: &[Vec<f64>]| -> Vec<f64> {
        let seeds = 0..rewards[0].len();
        let of = |seed: usize| rewards.iter().map(|r| r[seed]).sum::<f64>() / rewards.len() as f64;
        seeds.map(of).collect()
    };
    let ours = mean(contest.rewards(TRAINED));
    let theirs = mean(contest.rewards(baselines()));
    let average = |all: &[f64]| all.iter().sum::<f64>() / all.len() as f64;
    rows.push(Row {
        agent: "mean of all".into(),
        against: "all four",
        ours: average(&ours),
        theirs: average(&theirs),
        difference: Difference::paired(&ours, &theirs),
    });
    rows
}

fn distance(
    contest: &mut Contest,
    name: &'static str,
    profile: Profile,
    states: usize,
) -> Distance {
    let convs = nash_convs(contest, profile, states);
    let zeros = vec![0.0; convs.len()];
    Distance {
        name,
        nash_conv: Difference::paired(&convs, &zeros),
        deviations: deviations(contest, profile),
    }
}

fn head(contest: &Contest, options: &Options) -> String {
    format!(
        "The four learned together in the world `mesh` with the shipped calibration, for {} steps of the control\n\
         interval (training seed {}, {:.0} s of CPU time): policy by DQN, consensus by A2C, ethical by PPO, resource by\n\
         DDPG, with the presets of `engines/learn/src/presets.rs`. Their last policies are compared, without exploration,\n\
         by the mean reward of a step in one episode of 200 steps for each of {} seeds, {} to {}. Nothing was\n\
         tuned on these seeds: the mesh was tuned on 0 to 39, the presets on other seeds and with other training seeds.\n\n\
         The agents of a running mesh start with the defaults of their algorithms, with which some stay worse than their\n\
         rules. `tars training start --preset --steps N` trains them as it was done here; fewer steps show less.",
        contest.trained.steps,
        options.training_seed,
        contest.trained.cpu_seconds,
        options.seeds,
        options.held_out().start,
        options.held_out().end - 1,
    )
}

pub(crate) fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Better => "better",
        Verdict::Worse => "worse",
        Verdict::Undecided => "undecided",
    }
}

/// The least favourable of an agent's verdicts over its controllers.
fn conclusion(verdicts: impl Iterator<Item = Verdict>) -> &'static str {
    let verdicts: Vec<Verdict> = verdicts.collect();
    if verdicts.contains(&Verdict::Worse) {
        "no: something else is better"
    } else if verdicts.contains(&Verdict::Undecided) {
        "not shown: something else is as good"
    } else {
        "yes: it is better than all else"
    }
}

fn concluded(rows: &[Row], agent: &str) -> &'static str {
    let of = rows.iter().filter(|row| row.agent == agent);
    conclusion(of.map(|row| row.difference.verdict()))
}

impl Row {
    fn json(&self) -> Value {
        json!({
            "agent": self.agent,
            "against": self.against,
            "trained": self.ours,
            "other": self.theirs,
            "difference": self.difference.mean,
            "low": self.difference.low,
            "high": self.difference.high,
            "verdict": word(self.difference.verdict()),
        })
    }

    fn markdown(&self) -> String {
        let Difference { mean, low, high } = self.difference;
        format!(
            "| {} | {} | {:.3} | {:.3} | {mean:+.4} | {low:+.4} to {high:+.4} | {} |",
            self.agent,
            self.against,
            self.ours,
            self.theirs,
            word(self.difference.verdict()),
        )
    }
}

impl Distance {
    fn json(&self) -> Value {
        json!({
            "nash_conv": self.nash_conv.mean,
            "low": self.nash_conv.low.max(0.0),
            "high": self.nash_conv.high,
            "episode_regret": regret(&self.deviations),
        })
    }

    fn markdown(&self) -> String {
        let best = |one: &Deviation| match one.gain.mean > 0.0 {
            true => format!("{} {:+.3}", one.player.name(), one.gain.mean),
            false => "none".to_owned(),
        };
        let best: Vec<String> = self.deviations.iter().map(best).collect();
        let Difference { mean, low, high } = self.nash_conv;
        format!(
            "| {} | {mean:.3} ({:.3} to {high:.3}) | {:.3} | {} |",
            self.name,
            low.max(0.0),
            regret(&self.deviations),
            best.join(" | "),
        )
    }
}

impl Report {
    pub(crate) fn json(&self) -> Value {
        let rows = |rows: &[Row]| rows.iter().map(Row::json).collect::<Vec<_>>();
        let distances = self.distances.iter();
        let distances: Map<_, _> = distances.map(|d| (d.name.to_owned(), d.json())).collect();
        json!({
            "steps": self.steps,
            "cpu_seconds": self.cpu_seconds,
            "seeds": self.seeds,
            "single": rows(&self.single),
            "among_trained": rows(&self.among_trained),
            "joint": rows(&self.joint),
            "nash": distances,
            "trainings": self.trainings.iter().map(Spread::json).collect::<Vec<_>>(),
        })
    }

    pub(crate) fn markdown(&self) -> String {
        let mut text = format!("{TITLE}\n{}\n\n{METHOD}\n", self.head);
        text.push_str("\n## Does learning beat the rules?\n\n");
        text.push_str(
            "| Agent | Algorithm | Among rules | Among the trained | Among rules, over all trainings |\n|---|---|---|---|---|\n",
        );
        for (agent, algorithm) in self.agents.iter().zip(ALGORITHMS) {
            let among_rules = concluded(&self.single, agent);
            let among_trained = concluded(&self.among_trained, agent);
            let of = self
                .trainings
                .iter()
                .filter(|spread| spread.agent == *agent);
            let over_all = conclusion(of.map(|spread| spread.over.verdict()));
            let _ = writeln!(
                text,
                "| {agent} | {algorithm} | {among_rules} | {among_trained} | {over_all} |"
            );
        }
        let others = baseline_names().join("`, `");
        self.add_rows(
            &mut text,
            &format!("One trained agent, the others `{others}`"),
            &self.single,
        );
        self.add_rows(
            &mut text,
            "One trained agent, the others trained too",
            &self.among_trained,
        );
        self.add_rows(
            &mut text,
            "All four trained against all four rules",
            &self.joint,
        );
        text.push_str(TRAININGS);
        for spread in &self.trainings {
            text.push_str(&spread.markdown());
            text.push('\n');
        }
        text.push_str(DISTANCE);
        for distance in &self.distances {
            text.push_str(&distance.markdown());
            text.push('\n');
        }
        text
    }

    fn add_rows(&self, text: &mut String, title: &str, rows: &[Row]) {
        let _ = write!(text, "\n## {title}\n\n{COLUMNS}\n");
        for row in rows {
            text.push_str(&row.markdown());
            text.push('\n');
        }
    }
}

const TITLE: &str = "# Learned agents against rules

<!-- Written by `cargo xtask bench learning`. -->
";

const METHOD: &str = "\
Differences are paired by seed: both sides meet the same load, bursts and proposals. The interval is Student's 95 %
interval of the mean difference. *Better* means that all of it is above zero, *worse* that all of it is below; no
correction is made for the number of comparisons. It covers the luck of episodes, not that of training. *untrained* is
the network as it was initialised; that of resource puts out nearly what the rule *half* does, whatever it observes.
*half* keeps half of the range between the least and the most replicas.";

const COLUMNS: &str = "\
| Agent | Against | Trained | Other | Difference | 95 % interval | Trained is |
|---|---|---|---|---|---|---|";

const TRAININGS: &str = "
## Over several trainings

All tables but this one are about the first training. The four were trained once more from each of the seeds that
follow its own. *Difference* is the mean over all trainings of their mean differences, among rules; its interval is
Student's 95 % interval over the trainings, which covers the luck of training. The next column has the least and the
largest of them; *better* and *worse* count the trainings of which that is shown by their episodes alone.

| Agent | Against | Difference | 95 % interval | Least to largest | Better | Worse | Over all |
|---|---|---|---|---|---|---|---|
";

const DISTANCE: &str = "
## Distance from an equilibrium

*NashConv* is the sum of what each agent would gain, in mean reward, by its best among five actions, with the others
fixed: in the empirical game from the state after 60 steps of an episode (8 rollouts of 30 steps with common random
numbers, the action taken for 5 steps, after which each of the four does what it would do), the mean over the first
seeds and its 95 % interval. *Regret* is the sum of what each agent would gain in whole episodes if the best of its
rules, its trained or its untrained policy acted for it instead; the last columns name that and the gain. Lower is
nearer to an equilibrium.

| All four | NashConv | Regret | policy | consensus | ethical | resource |
|---|---|---|---|---|---|---|
";
