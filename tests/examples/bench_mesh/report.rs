//! What a run says: medians over slices, ratios of slices of the same round with their spread.

use crate::{outside::Done, variants::Measured};
use serde_json::{Map, Value, json};
use std::{collections::BTreeMap, fmt::Write, time::Duration};
use tars_search::quantile;

/// One slice, without its calls.
#[derive(Debug, Clone, Copy)]
struct Figures {
    rate: f64,
    server_us: f64,
    total_us: f64,
    p50_us: f64,
    p99_us: f64,
}

/// What the baseline is called, and each of the mesh's own.
const BASELINE: &str = "mtls";
const FULL: &str = "full_1pct";
const TRACED: &str = "full_100pct";

/// Of each kind of load and variant, its slices in their order.
#[derive(Debug, Default)]
pub(crate) struct Rounds {
    names: Vec<&'static str>,
    slices: BTreeMap<(String, &'static str), Vec<Figures>>,
    idle: BTreeMap<&'static str, f64>,
    /// Calls a second of the open loop.
    pub(crate) open_rate: f64,
}

impl From<Measured> for Figures {
    fn from(measured: Measured) -> Self {
        let mut times: Vec<f64> = micros(&measured.slice.times);
        times.sort_by(f64::total_cmp);
        let at = |q: f64| {
            let last = times.len().saturating_sub(1);
            times.get((q * last as f64).round() as usize).copied()
        };
        Self {
            rate: measured.rate(),
            server_us: measured.server_us(),
            total_us: measured.total_us(),
            p50_us: at(0.5).unwrap_or(f64::NAN),
            p99_us: at(0.99).unwrap_or(f64::NAN),
        }
    }
}

fn micros(times: &[Duration]) -> Vec<f64> {
    times.iter().map(|t| t.as_secs_f64() * 1e6).collect()
}

impl Rounds {
    pub(crate) fn new(names: Vec<&'static str>) -> Self {
        Self {
            names,
            ..Self::default()
        }
    }

    fn push(&mut self, load: String, name: &'static str, figures: Figures) {
        self.slices.entry((load, name)).or_default().push(figures);
    }

    pub(crate) fn closed(&mut self, name: &'static str, callers: usize, measured: Measured) {
        self.push(format!("closed_{callers}"), name, measured.into());
    }

    pub(crate) fn open(&mut self, name: &'static str, measured: Measured) {
        self.push("open".to_owned(), name, measured.into());
    }

    pub(crate) fn streams(&mut self, name: &'static str, measured: Measured) {
        self.push("streams".to_owned(), name, measured.into());
    }

    pub(crate) fn handshakes(&mut self, name: &'static str, measured: Measured) {
        self.push("handshakes".to_owned(), name, measured.into());
    }

    pub(crate) fn idle(&mut self, name: &'static str, bytes: f64) {
        self.idle.insert(name, bytes);
    }

    /// A slice of an outside client, whose own CPU time is not counted.
    pub(crate) fn outside(
        &mut self,
        client: &str,
        name: &'static str,
        (done, used): (Done, Duration),
    ) {
        let server_us = used.as_secs_f64() * 1e6 / done.calls as f64;
        let figures = Figures {
            rate: f64::NAN,
            server_us,
            total_us: f64::NAN,
            p50_us: f64::NAN,
            p99_us: done.p99_ms.map_or(f64::NAN, |ms| ms * 1e3),
        };
        self.push(client.to_owned(), name, figures);
    }

    /// The capacity of the slowest variant that speaks to a server of this program alone.
    pub(crate) fn least_rate(&self, callers: usize) -> f64 {
        let rates = self
            .names
            .iter()
            .filter_map(|name| self.median(&format!("closed_{callers}"), name, |f| f.rate));
        rates.fold(f64::INFINITY, f64::min)
    }

    fn of(&self, load: &str, name: &'static str) -> Option<&Vec<Figures>> {
        self.slices.get(&(load.to_owned(), name))
    }

    fn median(&self, load: &str, name: &'static str, of: fn(&Figures) -> f64) -> Option<f64> {
        let values: Vec<f64> = self.of(load, name)?.iter().map(of).collect();
        quantile::median(values).filter(|v| v.is_finite())
    }

    /// The median of one variant's figure by another's, slice by slice, and its quartiles.
    fn ratio(
        &self,
        load: &str,
        (upper, lower): (&'static str, &'static str),
        of: fn(&Figures) -> f64,
    ) -> Option<[f64; 3]> {
        let pairs = self.of(load, upper)?.iter().zip(self.of(load, lower)?);
        let mut ratios: Vec<f64> = pairs.map(|(a, b)| of(a) / of(b)).collect();
        ratios.sort_by(f64::total_cmp);
        let last = ratios.len().checked_sub(1)? as f64;
        let at = |q: f64| ratios[(q * last).round() as usize];
        let all = [quantile::median(ratios.clone())?, at(0.25), at(0.75)];
        all.iter().all(|v| v.is_finite()).then_some(all)
    }

    /// The ratios that the aims are about: CPU time of a call, both ends; of handshakes and of clients that others
    /// wrote, of the server alone.
    fn ratios(&self) -> Map<String, Value> {
        let mut all = Map::new();
        let main = "closed_64";
        let mut put = |name: &str, ratio: Option<[f64; 3]>| {
            all.insert(name.to_owned(), json!(ratio.map(|r| r[0])));
            let spread = ratio.map(|r| [r[1], r[2]]);
            all.insert(name.replace("_ratio", "_spread"), json!(spread));
        };
        let total = |f: &Figures| f.total_us;
        let server = |f: &Figures| f.server_us;
        let rate = |f: &Figures| f.rate;
        let p99 = |f: &Figures| f.p99_us;
        put("full_1pct_ratio", self.ratio(main, (BASELINE, FULL), total));
        put(
            "full_100pct_ratio",
            self.ratio(main, (BASELINE, TRACED), total),
        );
        put("naive_ratio", self.ratio(main, ("naive", FULL), total));
        put("sidecar_ratio", self.ratio(main, ("sidecar", FULL), total));
        put("plain_ratio", self.ratio(main, ("plain", FULL), total));
        put(
            "grpc_go_ratio",
            self.ratio("ghz", ("grpc_go", FULL), server),
        );
        put(
            "k6_grpc_go_ratio",
            self.ratio("k6", ("grpc_go", FULL), server),
        );
        put(
            "server_1pct_ratio",
            self.ratio(main, (BASELINE, FULL), server),
        );
        put(
            "throughput_1pct_ratio",
            self.ratio(main, (FULL, BASELINE), rate),
        );
        put(
            "throughput_100pct_ratio",
            self.ratio(main, (TRACED, BASELINE), rate),
        );
        put(
            "stream_1pct_ratio",
            self.ratio("streams", (BASELINE, FULL), total),
        );
        put(
            "handshake_1pct_ratio",
            self.ratio("handshakes", (BASELINE, FULL), server),
        );
        put("p99_ratio", self.ratio("open", (FULL, BASELINE), p99));
        put("p99_closed_ratio", self.ratio(main, (FULL, BASELINE), p99));
        all
    }

    /// The medians of every kind of load and variant.
    fn medians(&self) -> Map<String, Value> {
        let mut loads = Map::new();
        for (load, name) in self.slices.keys() {
            let median = |of| {
                self.median(load, name, of)
                    .map(|v| (v * 100.0).round() / 100.0)
            };
            let figures = json!({
                "per_s": median(|f| f.rate),
                "server_cpu_us": median(|f| f.server_us),
                "cpu_us": median(|f| f.total_us),
                "p50_us": median(|f| f.p50_us),
                "p99_us": median(|f| f.p99_us),
            });
            let of_load = loads.entry(load.clone()).or_insert_with(|| json!({}));
            of_load[*name] = figures;
        }
        loads
    }

    pub(crate) fn json(&self) -> Value {
        let mut report = json!({
            "bench": "mesh",
            "baseline": "bare tonic over its own mutual TLS, same handler, same client",
            "cpu": "of all processes of a variant, and of the client; server_cpu_us without the client",
            "open_per_s": self.open_rate.round(),
            "idle_connection_bytes": self.idle.iter().map(|(n, b)| ((*n).to_owned(), json!(b.round()))).collect::<Map<_, _>>(),
            "loads": self.medians(),
        });
        if let Some(all) = report.as_object_mut() {
            all.extend(self.ratios());
        }
        report
    }

    pub(crate) fn table(&self) -> String {
        let mut text = String::new();
        let figure = |v: Option<f64>| v.map_or("-".to_owned(), |v| format!("{v:.1}"));
        let mut line = |cells: [String; 7]| {
            let [load, name, rest @ ..] = cells;
            let rest: String = rest.iter().map(|c| format!("{c:>12}")).collect();
            // A String takes all that is written to it.
            writeln!(text, "{load:<12} {name:<12}{rest}").ok();
        };
        line(
            [
                "load",
                "server",
                "a second",
                "CPU us",
                "server us",
                "p50 us",
                "p99 us",
            ]
            .map(str::to_owned),
        );
        for (load, name) in self.slices.keys() {
            let median = |of| figure(self.median(load, name, of));
            line([
                load.clone(),
                (*name).to_owned(),
                median(|f| f.rate),
                median(|f| f.total_us),
                median(|f| f.server_us),
                median(|f| f.p50_us),
                median(|f| f.p99_us),
            ]);
        }
        for (name, bytes) in &self.idle {
            writeln!(
                text,
                "an idle connection of {name}: {:.1} KiB",
                bytes / 1024.0
            )
            .ok();
        }
        for (name, value) in self.ratios() {
            writeln!(text, "{name}: {value}").ok();
        }
        text
    }
}
