//! The command line.

use crate::table::Gate;
use std::path::PathBuf;

pub(crate) struct Options {
    pub(crate) json: bool,
    pub(crate) quick: bool,
    pub(crate) seeds: u64,
    /// The only gate, as `ALGORITHM:WORLD`.
    pub(crate) only: Option<String>,
    /// The folder of the curves, and of what [`resume`](Self::resume) looks for.
    pub(crate) out: PathBuf,
    /// Whether to take results that are there.
    pub(crate) resume: bool,
    /// The folder to write the report to.
    pub(crate) report: Option<PathBuf>,
}

impl Options {
    pub(crate) fn read(mut arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut options = Self {
            json: false,
            quick: false,
            seeds: 10,
            only: None,
            out: PathBuf::from("target/gates"),
            resume: false,
            report: None,
        };
        while let Some(argument) = arguments.next() {
            let mut value = || {
                let value = arguments.next();
                value.ok_or_else(|| format!("{argument} needs a value"))
            };
            match argument.as_str() {
                "--json" => options.json = true,
                "--quick" => (options.quick, options.seeds) = (true, 2),
                "--resume" => options.resume = true,
                "--seeds" => options.seeds = number(&value()?)?,
                "--only" => options.only = Some(value()?),
                "--out" => options.out = value()?.into(),
                "--report" => options.report = Some(value()?.into()),
                other => return Err(format!("not an option: {other}")),
            }
        }
        Ok(options)
    }

    pub(crate) fn takes(&self, gate: &Gate) -> bool {
        let is_it = self.only.as_ref().is_none_or(|only| *only == gate.name());
        is_it && (gate.is_quick || !self.quick)
    }
}

fn number(text: &str) -> Result<u64, String> {
    match text.parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err(format!("not a number of seeds: {text}")),
    }
}
