//! `cargo xtask test`: everything.

use crate::{Outcome, lint, tools};

pub(crate) fn run() -> Outcome {
    tools::python()?;
    tools::redocly()?;
    lint::run()?;
    let mut tests = tools::cargo();
    tests.args(["test", "--workspace", "--locked", "--", "--include-ignored"]);
    tests.env("TARS_TEST_TOOLS", tools::dir());
    tools::run(&mut tests)
}
