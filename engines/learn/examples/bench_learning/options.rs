//! The command line.

use std::collections::BTreeMap;
use tars_learn::hyper::{Value, Values};

/// The seeds of the episodes that presets are compared on begin here. Those below 40 were used to tune
/// the mesh itself, those from 5,000 to tune presets.
const FIRST_SEED: u64 = 10_000;

pub(crate) struct Options {
    pub(crate) json: bool,
    pub(crate) quick: bool,
    /// The steps of the joint training.
    pub(crate) steps: u64,
    /// The seed of the first training.
    pub(crate) training_seed: u64,
    /// How often the four are trained, each time from the next seed.
    pub(crate) trainings: u64,
    pub(crate) first_seed: u64,
    /// Episodes of each comparison.
    pub(crate) seeds: u64,
    /// Where to write the report.
    pub(crate) report: Option<String>,
    /// By algorithm what replaces its preset.
    pub(crate) values: BTreeMap<String, Values>,
}

impl Options {
    pub(crate) fn read(arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut options = Self {
            json: false,
            quick: false,
            steps: 2_000_000,
            training_seed: 1,
            trainings: 5,
            first_seed: FIRST_SEED,
            seeds: 30,
            report: None,
            values: BTreeMap::new(),
        };
        let mut arguments = arguments.peekable();
        while let Some(argument) = arguments.next() {
            let mut number = || next_number(&argument, arguments.next());
            match argument.as_str() {
                "--json" => options.json = true,
                "--quick" => {
                    options.quick = true;
                    (options.steps, options.trainings) = (40_000, 2);
                }
                "--steps" => options.steps = number()?,
                "--training-seed" | "--seed" => options.training_seed = number()?,
                "--trainings" => options.trainings = number()?.max(1),
                "--first-seed" => options.first_seed = number()?,
                "--seeds" => options.seeds = number()?.max(1),
                "--report" => options.report = arguments.next(),
                pair => options.set(pair)?,
            }
        }
        Ok(options)
    }

    /// The seeds of the episodes.
    pub(crate) fn held_out(&self) -> std::ops::Range<u64> {
        self.first_seed..self.first_seed + self.seeds
    }

    /// The seeds of the trainings.
    pub(crate) fn training_seeds(&self) -> std::ops::Range<u64> {
        self.training_seed..self.training_seed + self.trainings
    }

    fn set(&mut self, pair: &str) -> Result<(), String> {
        let wrong = || format!("not an option: {pair}");
        let (name, value) = pair.split_once('=').ok_or_else(wrong)?;
        let (algorithm, name) = name.split_once('.').ok_or_else(wrong)?;
        let value = match value.parse() {
            Ok(flag) => Value::Flag(flag),
            Err(_) => Value::Number(value.parse().map_err(|_| wrong())?),
        };
        let values = self.values.entry(algorithm.to_owned()).or_default();
        values.insert(name.to_owned(), value);
        Ok(())
    }
}

fn next_number(option: &str, argument: Option<String>) -> Result<u64, String> {
    let number = argument.and_then(|argument| argument.parse().ok());
    number.ok_or_else(|| format!("{option} needs a number"))
}
