//! What was measured, as a table for people, as JSON, and as files.

use crate::{
    Failure,
    table::{Gate, Goal},
};
use serde::Serialize;
use serde_json::{Value, json};
use std::{fmt::Write, fs, path::Path};

/// A point of a learning curve.
#[derive(Debug, Clone)]
pub(crate) struct Point {
    pub(crate) steps: u64,
    /// The mean return, or the distance from an equilibrium.
    pub(crate) value: f64,
}

/// What one seed came to.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Seed {
    pub(crate) seed: u64,
    pub(crate) reached: bool,
    /// The best mean return, or the distance from an equilibrium.
    pub(crate) measured: f64,
    /// Whether what it ended with reaches the goal, too.
    pub(crate) reached_at_the_end: bool,
    #[serde(skip)]
    pub(crate) curve: Vec<Point>,
}

/// What a gate came to.
pub(crate) struct Row {
    gate: Gate,
    seeds: Vec<Seed>,
}

pub(crate) struct Report {
    pub(crate) rows: Vec<Row>,
    /// The seeds of each gate.
    pub(crate) seeds: u64,
}

impl Row {
    pub(crate) fn new(gate: &Gate, seeds: Vec<Seed>) -> Self {
        Self { gate: *gate, seeds }
    }

    fn count(&self, of: fn(&Seed) -> bool) -> u64 {
        self.seeds.iter().filter(|seed| of(seed)).count() as u64
    }

    fn needed(&self) -> u64 {
        self.gate.needed(self.seeds.len() as u64)
    }

    fn is_passed(&self) -> bool {
        self.count(|seed| seed.reached) >= self.needed()
    }

    fn word(&self) -> &'static str {
        match (self.gate.goal, self.is_passed()) {
            (Goal::Reported, _) => "reported",
            (_, true) => "passed",
            (_, false) => "missed",
        }
    }

    /// The least and the greatest of what was measured.
    fn range(&self) -> (f64, f64) {
        let measured = || self.seeds.iter().map(|seed| seed.measured);
        let least = measured().fold(f64::INFINITY, f64::min);
        (least, measured().fold(f64::NEG_INFINITY, f64::max))
    }

    pub(crate) fn describe(&self) -> String {
        let (name, reached) = (self.gate.name(), self.count(|seed| seed.reached));
        let (seeds, needed) = (self.seeds.len(), self.needed());
        format!(
            "{name}: {reached} of {seeds}, {needed} needed: {}",
            self.word()
        )
    }

    fn line(&self) -> String {
        let Gate {
            algorithm,
            world,
            steps,
            goal,
            ..
        } = self.gate;
        let goal = match goal {
            Goal::Return(goal) => format!("return ≥ {goal:.4}")
                .trim_end_matches('0')
                .trim_end_matches('.')
                .to_owned(),
            Goal::Equilibrium => "pure equilibrium".to_owned(),
            Goal::Reported => "NashConv, reported".to_owned(),
            Goal::Quantity(most) => format!("within {:.0} % of q*", most * 100.0),
        };
        let ((least, most), needed) = (self.range(), self.needed());
        let (reached, at_the_end) = (
            self.count(|s| s.reached),
            self.count(|s| s.reached_at_the_end),
        );
        format!(
            "| {algorithm} | {world} | {steps} | {goal} | {needed} | {reached} | {least:.3} to {most:.3} | {at_the_end} | {} |\n",
            self.word()
        )
    }

    fn json(&self) -> Value {
        json!({
            "algorithm": self.gate.algorithm,
            "world": self.gate.world,
            "steps": self.gate.steps,
            "needed": self.needed(),
            "reached": self.count(|seed| seed.reached),
            "reached_at_the_end": self.count(|seed| seed.reached_at_the_end),
            "passed": self.is_passed(),
            "seeds": self.seeds,
        })
    }

    /// The name of the curve's files.
    fn curve(&self) -> String {
        format!("{}-{}", self.gate.world, self.gate.algorithm)
    }

    /// What the curve is of.
    fn measures(&self) -> &'static str {
        match self.gate.goal {
            Goal::Return(_) => "mean_return",
            Goal::Equilibrium | Goal::Reported => "nash_conv",
            Goal::Quantity(_) => "deviation",
        }
    }

    /// The rows of the curve's points.
    fn points(&self) -> String {
        let Gate {
            algorithm, world, ..
        } = self.gate;
        let measure = self.measures();
        let of = |seed: &Seed| {
            let number = seed.seed;
            let row = move |Point { steps, value }: &Point| {
                format!("{world},{algorithm},{number},{steps},{measure},{value}\n")
            };
            seed.curve.iter().map(row).collect::<String>()
        };
        self.seeds.iter().map(of).collect()
    }
}

impl Report {
    pub(crate) fn json(&self) -> Value {
        let gates: Vec<Value> = self.rows.iter().map(Row::json).collect();
        json!({ "bench": "gates", "seeds": self.seeds, "missed": self.missed(), "gates": gates })
    }

    pub(crate) fn missed(&self) -> Vec<String> {
        let missed = self.rows.iter().filter(|row| !row.is_passed());
        missed.map(|row| row.gate.name()).collect()
    }

    pub(crate) fn markdown(&self) -> String {
        let lines: String = self.rows.iter().map(Row::line).collect();
        let head = HEAD.replace("{seeds}", &self.seeds.to_string());
        head + &lines
    }

    /// Writes the table and the curves, of which there are pictures in another folder.
    pub(crate) fn write(&self, folder: &Path, pictures: &Path) -> Result<(), Failure> {
        fs::create_dir_all(folder)?;
        let mut text = self.markdown() + CURVES;
        let mut csv = "world,algorithm,seed,steps,measure,value\n".to_owned();
        for row in &self.rows {
            let name = row.curve();
            let svg = format!("{name}.svg");
            // Games have numbers and no picture.
            if row.measures() == "mean_return" {
                fs::copy(pictures.join(&svg), folder.join(&svg))?;
                writeln!(text, "![{name}]({svg})")?;
            }
            csv += &row.points();
        }
        fs::write(folder.join("README.md"), text)?;
        fs::write(folder.join("curves.csv"), csv)?;
        Ok(())
    }
}

const HEAD: &str = "\
# Gates

<!-- Written by `cargo xtask bench gates`. -->

What each algorithm has to learn, with the presets of `engines/learn/src/presets.rs` and the seeds 1 to {seeds}. A world of
one agent is learned by `tars train`; a seed reaches the goal when the mean return of 100 episodes without exploring does,
in one of about 15 evaluations within the steps. *Range* is that of the best evaluation of each seed, which is chosen by
the episodes that it is measured on; *at the end* counts the seeds whose last evaluation reaches the goal as well. In
games all players learn at the same time, each for itself: the last ten rounds have to be pure equilibria of one round
(the range is that of NashConv), or the quantities within a share of the equilibrium's (the range is that of the
largest deviation). Rock-paper-scissors has a mixed equilibrium only, around which those who learn by their own returns
go: the distance of what they mix at the end is reported, and no goal.

| Algorithm | World | Steps | Goal | Needed | Reached | Range | At the end | |
|---|---|---|---|---|---|---|---|---|
";

const CURVES: &str = "
## Learning curves

The mean of the evaluations over the seeds, and their range; the numbers are in [curves.csv](curves.csv), and with them
the distance from an equilibrium (`nash_conv`, or `deviation` of quantities) while the players of a game learn.

";
