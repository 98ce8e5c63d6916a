//! Compares the solver with nashpy and Gambit on seeded games of every class: how many are solved, and
//! in how much processor time. Each game is given to all solvers in turn, and every certificate of
//! this solver is confirmed by a checker in another language.
//!
//! `cargo xtask bench nash` installs the other solvers and runs this example.

#![expect(clippy::disallowed_types, reason = "a benchmark measures real time")]

use serde_json::{Map, Value, json};
use std::{
    error::Error,
    io::{BufRead, BufReader, Write},
    path::PathBuf,
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{self, Receiver},
    time::{Duration, Instant},
};
use tars_games::{
    Algorithm, Concept, Control, Game, NeverStop, Objective, Options, Process, Solution,
};

type Failure = Box<dyn Error>;

/// A splitmix64 stream.
struct Stream(u64);

impl Stream {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn below(&mut self, n: u64) -> f64 {
        (self.next() % n) as f64
    }
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    /// Uniform payoffs in 0..1.
    Random,
    /// Integer payoffs with many ties.
    Degenerate,
    /// Integer payoffs with many ties, mostly opposed: few of these games have a pure equilibrium.
    DegenerateOpposed,
    /// Opposed payoffs with a perturbation of a tenth.
    NearlyOpposed,
    /// Two players with opposed payoffs.
    ZeroSum,
    /// All payoffs of a joint action sum to zero.
    ConstantSum,
}

impl Kind {
    fn draw(self, stream: &mut Stream, out: &mut [f64]) {
        match self {
            Self::Random => out.iter_mut().for_each(|v| *v = stream.unit()),
            Self::Degenerate => out.iter_mut().for_each(|v| *v = stream.below(4)),
            Self::DegenerateOpposed => {
                out[0] = stream.below(3);
                let other = stream.below(10);
                out[1] = if other < 1.0 {
                    stream.below(3)
                } else {
                    2.0 - out[0]
                };
            }
            Self::NearlyOpposed => {
                out[0] = stream.unit();
                out[1] = 0.1 * stream.unit() - out[0];
            }
            Self::ZeroSum => {
                out[0] = stream.unit();
                out[1] = -out[0];
            }
            Self::ConstantSum => {
                out.iter_mut().for_each(|v| *v = stream.unit());
                let mean = out.iter().sum::<f64>() / out.len() as f64;
                out.iter_mut().for_each(|v| *v -= mean);
            }
        }
    }
}

struct Class {
    name: &'static str,
    kind: Kind,
    shape: &'static [usize],
    peers: &'static [&'static str],
}

const TWO: &[&str] = &["nashpy_lemke_howson", "gambit_lcp", "gambit_pure_lcp"];
const SMALL: &[&str] = &[
    "nashpy_support_enumeration",
    "nashpy_lemke_howson",
    "gambit_lcp",
    "gambit_pure_lcp",
];
const ZERO: &[&str] = &["nashpy_linear_program", "gambit_lp", "gambit_lcp"];
const MORE: &[&str] = &["gambit_ipa", "gambit_pure_ipa", "gambit_logit"];

const fn class(
    name: &'static str,
    kind: Kind,
    shape: &'static [usize],
    peers: &'static [&'static str],
) -> Class {
    Class {
        name,
        kind,
        shape,
        peers,
    }
}

const CLASSES: &[Class] = &[
    class("random_3x3", Kind::Random, &[3, 3], SMALL),
    class("random_5x5", Kind::Random, &[5, 5], SMALL),
    class("random_10x10", Kind::Random, &[10, 10], TWO),
    class("random_20x20", Kind::Random, &[20, 20], TWO),
    class("random_50x50", Kind::Random, &[50, 50], TWO),
    class("random_5x12", Kind::Random, &[5, 12], TWO),
    class("random_1x20", Kind::Random, &[1, 20], TWO),
    class("zero_sum_3x3", Kind::ZeroSum, &[3, 3], ZERO),
    class("zero_sum_10x10", Kind::ZeroSum, &[10, 10], ZERO),
    class("zero_sum_20x20", Kind::ZeroSum, &[20, 20], ZERO),
    class("zero_sum_50x50", Kind::ZeroSum, &[50, 50], ZERO),
    class("degenerate_5x5", Kind::Degenerate, &[5, 5], SMALL),
    class("degenerate_10x10", Kind::Degenerate, &[10, 10], TWO),
    class("degenerate_20x20", Kind::Degenerate, &[20, 20], TWO),
    class(
        "degenerate_opposed_10x10",
        Kind::DegenerateOpposed,
        &[10, 10],
        TWO,
    ),
    class(
        "degenerate_opposed_20x20",
        Kind::DegenerateOpposed,
        &[20, 20],
        TWO,
    ),
    class("nearly_opposed_5x5", Kind::NearlyOpposed, &[5, 5], SMALL),
    class("nearly_opposed_10x10", Kind::NearlyOpposed, &[10, 10], TWO),
    class("nearly_opposed_20x20", Kind::NearlyOpposed, &[20, 20], TWO),
    class("nearly_opposed_50x50", Kind::NearlyOpposed, &[50, 50], TWO),
    class("random_3_players_3", Kind::Random, &[3, 3, 3], MORE),
    class("random_4_players_3", Kind::Random, &[3, 3, 3, 3], MORE),
    class("random_4_players_5", Kind::Random, &[5, 5, 5, 5], MORE),
    class("random_5_players_3", Kind::Random, &[3, 3, 3, 3, 3], MORE),
    class("degenerate_3_players_3", Kind::Degenerate, &[3, 3, 3], MORE),
    class(
        "degenerate_4_players_3",
        Kind::Degenerate,
        &[3, 3, 3, 3],
        MORE,
    ),
    class(
        "constant_sum_3_players_3",
        Kind::ConstantSum,
        &[3, 3, 3],
        MORE,
    ),
    class(
        "constant_sum_3_players_5",
        Kind::ConstantSum,
        &[5, 5, 5],
        MORE,
    ),
    class(
        "constant_sum_4_players_5",
        Kind::ConstantSum,
        &[5, 5, 5, 5],
        MORE,
    ),
    class(
        "constant_sum_5_players_3",
        Kind::ConstantSum,
        &[3, 3, 3, 3, 3],
        MORE,
    ),
];

struct Drawn {
    game: Game,
    line: String,
}

impl Class {
    fn draw(&self, seed: u64) -> Result<Drawn, Failure> {
        let mut stream = Stream(seed);
        let cells: usize = self.shape.iter().product();
        let mut payoffs = vec![Vec::with_capacity(cells); self.shape.len()];
        let mut cell = vec![0.0; self.shape.len()];
        for _ in 0..cells {
            self.kind.draw(&mut stream, &mut cell);
            payoffs.iter_mut().zip(&cell).for_each(|(t, v)| t.push(*v));
        }
        let line = json!({ "shape": self.shape, "payoffs": payoffs }).to_string();
        let game = Game::new(self.shape.to_vec(), payoffs)?;
        Ok(Drawn { game, line })
    }
}

/// A child process that answers one line with one line. It is killed when an answer takes too long.
struct Talker {
    command: fn(&str) -> Command,
    name: &'static str,
    running: Option<(Child, ChildStdin, Receiver<String>)>,
}

impl Talker {
    fn new(name: &'static str, command: fn(&str) -> Command) -> Self {
        Self {
            command,
            name,
            running: None,
        }
    }

    fn start(&self) -> Result<(Child, ChildStdin, Receiver<String>), Failure> {
        let mut child = (self.command)(self.name)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err("a child without pipes".into());
        };
        let (sender, answers) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Ok((child, stdin, answers))
    }

    /// `None` when there was no answer in time, or the process died.
    fn ask(&mut self, line: &str, limit: Duration) -> Result<Option<String>, Failure> {
        let (mut child, mut stdin, answers) = match self.running.take() {
            Some(running) => running,
            None => self.start()?,
        };
        let asked = writeln!(stdin, "{line}").and_then(|()| stdin.flush());
        match asked.ok().and_then(|()| answers.recv_timeout(limit).ok()) {
            Some(answer) => {
                self.running = Some((child, stdin, answers));
                Ok(Some(answer))
            }
            None => {
                child.kill()?;
                child.wait()?;
                Ok(None)
            }
        }
    }
}

impl Drop for Talker {
    fn drop(&mut self) {
        if let Some((mut child, stdin, _)) = self.running.take() {
            drop(stdin);
            child.kill().ok();
            child.wait().ok();
        }
    }
}

fn scripts() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/games")
}

fn peer_command(name: &str) -> Command {
    let python = std::env::var_os("TARS_PEERS_PYTHON").unwrap_or_else(|| "python3".into());
    let mut command = Command::new(python);
    // One thread, as this solver uses.
    command
        .env("OPENBLAS_NUM_THREADS", "1")
        .env("OMP_NUM_THREADS", "1");
    command.arg(scripts().join("peers.py")).arg(name);
    command
}

fn checker_command(_: &str) -> Command {
    let mut command = Command::new("python3");
    command.arg(scripts().join("check.py"));
    command
}

fn cpu_time() -> Duration {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(
        u64::try_from(t.tv_sec).unwrap_or(0),
        u32::try_from(t.tv_nsec).unwrap_or(0),
    )
}

/// The median of three solves, in microseconds.
fn ours(game: &Game) -> Result<(Solution, f64), Failure> {
    let mut times = Vec::with_capacity(3);
    let mut last = None;
    for _ in 0..3 {
        let started = cpu_time();
        let solution = game.solve(&Options::default(), &NeverStop)?;
        times.push((cpu_time() - started).as_secs_f64() * 1e6);
        last = Some(solution);
    }
    times.sort_by(f64::total_cmp);
    Ok((last.ok_or("no solve")?, times[1]))
}

#[derive(Default)]
struct Tally {
    games: u32,
    solved: u32,
    unanswered: u32,
    waited: Duration,
    times: Vec<f64>,
}

impl Tally {
    fn percentile(&self, share: f64) -> f64 {
        Self::percentile_of(&self.times, share)
    }

    fn percentile_of(times: &[f64], share: f64) -> f64 {
        let mut sorted = times.to_vec();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len().saturating_sub(1) as f64;
        sorted
            .get((last * share).ceil() as usize)
            .map_or(f64::NAN, |t| (t * 10.0).round() / 10.0)
    }

    fn take(&mut self, game: &Game, tolerance: f64, answer: Option<String>) -> Result<(), Failure> {
        self.games += 1;
        let Some(answer) = answer else {
            self.unanswered += 1;
            return Ok(());
        };
        let answer: Value = serde_json::from_str(&answer)?;
        if let Some(us) = answer["us"].as_f64() {
            self.times.push(us);
        }
        let profile: Option<Vec<Vec<f64>>> = serde_json::from_value(answer["profile"].clone())?;
        let verified = profile.and_then(|p| game.verify(&p, tolerance).ok());
        if verified.is_some_and(|v| v.converged()) {
            self.solved += 1;
        }
        Ok(())
    }
}

struct Settings {
    games: u32,
    peer_games: u32,
    limit: Duration,
    seed: u64,
}

fn claim(drawn: &Drawn, solution: &Solution) -> Result<String, Failure> {
    let mut claim: Value = serde_json::from_str(&drawn.line)?;
    claim["profile"] = json!(solution.profile);
    claim["regret"] = json!(solution.regret);
    claim["expected"] = json!(solution.payoffs);
    claim["nash_conv"] = json!(solution.nash_conv());
    claim["relative_regret"] = json!(solution.relative_regret);
    claim["tolerance"] = json!(solution.tolerance);
    claim["converged"] = json!(solution.converged());
    Ok(claim.to_string())
}

/// A solver that gave no answer this often is left out of the rest of the class.
const GIVEN_UP: u32 = 3;
/// As is one that has taken this long in total.
const PATIENCE: Duration = Duration::from_secs(10);

fn run(class: &Class, settings: &Settings, checker: &mut Talker) -> Result<Value, Failure> {
    let mut own = Tally::default();
    let mut confirmed = 0;
    let mut peers: Vec<(Talker, Tally)> = class
        .peers
        .iter()
        .map(|name| (Talker::new(name, peer_command), Tally::default()))
        .collect();
    for (talker, _) in &mut peers {
        // Warm-up: the first call of a solver loads its libraries.
        let first = class.draw(settings.seed ^ 0xF1F1)?;
        talker.ask(&first.line, settings.limit * 4)?;
    }
    for index in 0..settings.games {
        let seed = settings.seed.wrapping_mul(0x1_0001) + u64::from(index);
        let drawn = class.draw(seed)?;
        let (solution, us) = ours(&drawn.game)?;
        own.games += 1;
        own.solved += u32::from(solution.converged());
        own.times.push(us);
        let answer = checker.ask(&claim(&drawn, &solution)?, Duration::from_secs(60))?;
        match answer.as_deref() {
            Some("ok") => confirmed += 1,
            other => eprintln!("{} seed {seed}: {other:?}", class.name),
        }
        if index >= settings.peer_games {
            continue;
        }
        for (talker, tally) in &mut peers {
            if tally.unanswered < GIVEN_UP && tally.waited < PATIENCE {
                let asked = Instant::now();
                let answer = talker.ask(&drawn.line, settings.limit)?;
                tally.waited += asked.elapsed();
                tally.take(&drawn.game, solution.tolerance, answer)?;
            }
        }
    }
    Ok(report(class, &own, confirmed, &peers))
}

fn report(class: &Class, own: &Tally, confirmed: u32, peers: &[(Talker, Tally)]) -> Value {
    // The fastest of those that solve at least half of their games.
    let fastest = peers
        .iter()
        .filter(|(_, t)| t.solved * 2 >= t.games && !t.times.is_empty())
        .min_by(|(_, a), (_, b)| a.percentile(0.5).total_cmp(&b.percentile(0.5)));
    let (p50, p99) = (own.percentile(0.5), own.percentile(0.99));
    let peer_p50 = fastest.map(|(_, t)| t.percentile(0.5));
    // On the games that the other solver was given too.
    let same = fastest.map_or(0, |(_, t)| (t.games as usize).min(own.times.len()));
    let own_p50 = Tally::percentile_of(&own.times[..same], 0.5);
    let ratio = peer_p50.map(|p| (p / own_p50 * 10.0).round() / 10.0);
    let name = fastest.map(|(t, _)| t.name);
    eprintln!(
        "{:26} {:3}/{:3} solved  p50 {p50:8.1} us  p99 {p99:9.1} us   {} {} us, ratio {}",
        class.name,
        own.solved,
        own.games,
        name.unwrap_or("no peer"),
        peer_p50.unwrap_or(f64::NAN),
        ratio.unwrap_or(f64::NAN),
    );
    let all: Map<String, Value> = peers
        .iter()
        .map(|(talker, t)| {
            let own = json!({
                "games": t.games, "solved": t.solved, "unanswered": t.unanswered,
                "p50_us": t.percentile(0.5), "p99_us": t.percentile(0.99),
            });
            (talker.name.to_owned(), own)
        })
        .collect();
    json!({
        "solved": own.solved, "games": own.games, "confirmed": confirmed,
        "p50_us": p50, "p99_us": p99,
        "peer": name, "peer_p50_us": peer_p50, "ratio": ratio, "peers": all,
    })
}

/// Stops at a moment of the thread's processor time.
struct At(Duration);

impl Control for At {
    fn is_stopped(&self) -> bool {
        cpu_time() >= self.0
    }
}

/// The largest supported games, and the algorithms that solve them.
const LARGE: &[(Kind, &[usize])] = &[
    (Kind::ZeroSum, &[128, 128]),
    (Kind::NearlyOpposed, &[128, 128]),
    (Kind::ConstantSum, &[35, 35, 35]),
    (Kind::ConstantSum, &[13, 13, 13, 13]),
    (Kind::ConstantSum, &[2; 13]),
];
const ALGORITHMS: [Algorithm; 5] = [
    Algorithm::Automatic,
    Algorithm::SupportEnumeration,
    Algorithm::IteratedPolymatrix,
    Algorithm::LogitHomotopy,
    Algorithm::Learning(Process::RegretMatchingPlus),
];

/// Processor time between a stop and the answer, in microseconds.
fn cancel(settings: &Settings) -> Result<Value, Failure> {
    let mut times = Vec::new();
    let mut worst = (0.0, String::new());
    let mut note = |name: String, at: Duration| {
        let us = cpu_time().saturating_sub(at).as_secs_f64() * 1e6;
        times.push(us);
        if us > worst.0 {
            worst = (us, name);
        }
    };
    for (kind, shape) in LARGE {
        let drawn = class("large", *kind, shape, &[]).draw(settings.seed)?;
        for algorithm in ALGORITHMS {
            let options = Options {
                algorithm,
                tolerance: Some(0.0),
                rounds: u64::MAX,
                ..Options::default()
            };
            for stop in [1, 3, 5, 10, 20, 40, 80, 160] {
                let at = cpu_time() + Duration::from_millis(stop);
                drawn.game.solve(&options, &At(at))?;
                note(format!("{algorithm:?} of {kind:?} {shape:?}"), at);
            }
        }
        for stop in [1, 5, 20, 80] {
            let at = cpu_time() + Duration::from_millis(stop);
            drawn.game.equilibria(&Options::default(), &At(at));
            note(format!("all of {kind:?} {shape:?}"), at);
        }
    }
    let drawn = class("correlated", Kind::Random, &[25, 25], &[]).draw(settings.seed)?;
    for stop in [5, 20, 80, 160] {
        let at = cpu_time() + Duration::from_millis(stop);
        let (options, objective) = (Options::default(), Objective::Welfare);
        drawn
            .game
            .correlated(Concept::Correlated, &objective, &options, &At(at))?;
        note("correlated of Random [25, 25]".to_owned(), at);
    }
    let (p50, p99) = (
        Tally::percentile_of(&times, 0.5),
        Tally::percentile_of(&times, 0.99),
    );
    eprintln!("cancel                     p50 {p50} us  p99 {p99} us, worst {worst:?}");
    Ok(json!({
        "p50_us": p50, "p99_us": p99, "max_us": worst.0.round(), "worst": worst.1, "runs": times.len(),
    }))
}

fn main() -> Result<(), Failure> {
    let args: Vec<String> = std::env::args().collect();
    let has = |flag: &str| args.iter().any(|a| a == flag);
    let value = |flag: &str| {
        let at = args.iter().position(|a| a == flag)?;
        args.get(at + 1).cloned()
    };
    let quick = has("--quick");
    let settings = Settings {
        games: if quick { 25 } else { 200 },
        peer_games: if quick { 8 } else { 40 },
        limit: Duration::from_secs(if quick { 2 } else { 4 }),
        seed: value("--seed").map_or(Ok(20_261_122), |s| s.parse())?,
    };
    let only = value("--class");
    let mut checker = Talker::new("check", checker_command);
    let mut out = Map::new();
    for class in CLASSES {
        if only
            .as_ref()
            .is_none_or(|o| class.name.contains(o.as_str()))
        {
            let result = run(class, &settings, &mut checker)?;
            out.insert(class.name.to_owned(), result);
        }
    }
    if only.as_ref().is_none_or(|o| o == "cancel") {
        out.insert("cancel".to_owned(), cancel(&settings)?);
    }
    if has("--json") {
        println!("{}", Value::Object(out));
    }
    Ok(())
}
