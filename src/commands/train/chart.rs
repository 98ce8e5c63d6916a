//! A learning curve as an SVG: a line, and a band around it.
//!
//! A chart needs two axes, a path and some text, which is less than the interface of a plotting library. The
//! colours follow the reader's preference for light or dark where the viewer reports one, and are those for
//! light otherwise.

/// The size of the picture and the frame of the plot in it, in CSS pixels.
const SIZE: (f64, f64) = (720.0, 420.0);
const LEFT: f64 = 76.0;
const RIGHT: f64 = 650.0;
const TOP: f64 = 74.0;
const BOTTOM: f64 = 362.0;

/// How many ticks an axis has, about.
const TICKS: f64 = 6.0;

const STYLE: &str = "\
text { font: 12px system-ui, sans-serif; fill: #59636e; }
.title { font-size: 16px; font-weight: 600; fill: #1f2328; }
.last { font-weight: 600; fill: #0969da; }
.back { fill: #ffffff; }
.grid { stroke: #d9dfe5; }
.axis { stroke: #818b98; }
.band { fill: #0969da; fill-opacity: 0.18; }
.line { fill: none; stroke: #0969da; stroke-width: 2; stroke-linejoin: round; }
.dot { fill: #0969da; }
@media (prefers-color-scheme: dark) {
text { fill: #9198a1; }
.title { fill: #f0f6fc; }
.last { fill: #58a6ff; }
.back { fill: #0d1117; }
.grid { stroke: #262c34; }
.axis { stroke: #656c76; }
.band { fill: #58a6ff; fill-opacity: 0.22; }
.line { stroke: #58a6ff; }
.dot { fill: #58a6ff; }
}
";

/// What is drawn. The horizontal axis begins at 0.
#[derive(Debug, Clone)]
pub(super) struct Chart<'a> {
    pub(super) title: &'a str,
    pub(super) subtitle: &'a str,
    pub(super) horizontal: &'a str,
    pub(super) vertical: &'a str,
    /// In the order of `x`; at least one, and finite.
    pub(super) points: &'a [Point],
    /// Whether the band is drawn.
    pub(super) band: bool,
}

/// A point of the line, and the band's bounds there.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Point {
    pub(super) x: f64,
    pub(super) y: f64,
    pub(super) low: f64,
    pub(super) high: f64,
}

/// An axis: the values at its ends and how far its ticks are apart.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Axis {
    from: f64,
    to: f64,
    tick: f64,
}

impl Axis {
    /// The axis on which numbers from `low` to `high` fit. Its ends are ticks.
    fn around(low: f64, high: f64) -> Self {
        let span = high - low;
        let span = if span > 0.0 { span } else { low.abs().max(1.0) };
        let tick = round_up(span / TICKS);
        let from = (low / tick).floor() * tick;
        let to = (high / tick).ceil() * tick;
        match from < to {
            true => Self { from, to, tick },
            false => Self {
                from: from - tick,
                to: to + tick,
                tick,
            },
        }
    }

    /// As [`around`](Self::around), but it ends at `high`.
    fn up_to(high: f64) -> Self {
        Self {
            to: high,
            ..Self::around(0.0, high)
        }
    }

    fn ticks(self) -> impl Iterator<Item = f64> {
        // A tick that rounding puts beyond the end belongs to the axis.
        let count = ((self.to - self.from) / self.tick + 1e-6).floor() as u32;
        (0..=count).map(move |n| self.from + f64::from(n) * self.tick)
    }

    /// Where a value is between two pixels.
    fn scale(self, value: f64, first: f64, last: f64) -> f64 {
        first + (value - self.from) / (self.to - self.from) * (last - first)
    }

    /// A number as a label of this axis: with the decimals that its ticks have, and in thousands or
    /// millions.
    fn label(self, value: f64) -> String {
        let largest = self.from.abs().max(self.to.abs());
        let (unit, suffix) = match largest {
            n if n >= 2e6 => (1e6, "M"),
            n if n >= 1e4 => (1e3, "k"),
            _ => (1.0, ""),
        };
        let ticks = (value / self.tick).round();
        if ticks == 0.0 {
            return "0".to_owned();
        }
        let tick = self.tick / unit;
        let exact = |places: &usize| is_whole(tick * 10f64.powf(*places as f64));
        let places = (0..9).find(exact).unwrap_or(9);
        let value = ticks * tick;
        format!("{value:.places$}{suffix}").replace('-', "\u{2212}")
    }
}

/// The next larger of 1, 2, 2.5 and 5 times a power of ten.
fn round_up(number: f64) -> f64 {
    let power = 10f64.powf(number.log10().floor());
    let steps = [1.0, 2.0, 2.5, 5.0].map(|step| step * power);
    let enough = steps
        .into_iter()
        .find(|step| *step >= number * (1.0 - 1e-9));
    enough.unwrap_or(10.0 * power)
}

fn is_whole(number: f64) -> bool {
    (number - number.round()).abs() < 1e-6 * number.abs().max(1.0)
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

impl Chart<'_> {
    /// The document.
    pub(super) fn svg(&self) -> String {
        let (x, y) = self.axes();
        let (width, height) = SIZE;
        let parts = [
            format!(
                "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
                 width=\"{width}\" height=\"{height}\" role=\"img\">\n"
            ),
            format!("<title>{}</title>\n", escaped(self.title)),
            format!("<style>\n{STYLE}</style>\n"),
            "<rect class=\"back\" width=\"100%\" height=\"100%\"/>\n".to_owned(),
            self.words(),
            grid(x, y),
            self.curve(x, y),
            "</svg>\n".to_owned(),
        ];
        parts.concat()
    }

    fn axes(&self) -> (Axis, Axis) {
        let points = self.points.iter();
        let low = points.clone().map(|p| p.low).fold(f64::INFINITY, f64::min);
        let high = points
            .clone()
            .map(|p| p.high)
            .fold(f64::NEG_INFINITY, f64::max);
        let last = points.map(|p| p.x).fold(0.0, f64::max);
        (Axis::up_to(last), Axis::around(low, high))
    }

    /// The title and the names of the axes.
    fn words(&self) -> String {
        let middle = ((LEFT + RIGHT) / 2.0, (TOP + BOTTOM) / 2.0);
        [
            text("title", LEFT, 30.0, "start", self.title),
            text("note", LEFT, 50.0, "start", self.subtitle),
            text("name", middle.0, BOTTOM + 42.0, "middle", self.horizontal),
            format!(
                "<g transform=\"rotate(-90 20 {0})\">{1}</g>\n",
                middle.1,
                text("name", 20.0, middle.1, "middle", self.vertical).trim_end()
            ),
        ]
        .concat()
    }

    /// The band, the line with its points, and the last value.
    fn curve(&self, x: Axis, y: Axis) -> String {
        let at = |point: &Point, value: f64| {
            let to = x.scale(point.x, LEFT, RIGHT);
            (to, y.scale(value, BOTTOM, TOP))
        };
        let mut svg = String::new();
        if self.band {
            let there = self.points.iter().map(|p| at(p, p.high));
            let back = self.points.iter().rev().map(|p| at(p, p.low));
            let path = path(there.chain(back));
            svg += &format!("<path class=\"band\" d=\"{path}Z\"/>\n");
        }
        let line = path(self.points.iter().map(|p| at(p, p.y)));
        svg += &format!("<path class=\"line\" d=\"{line}\"/>\n");
        for point in self.points {
            let (cx, cy) = at(point, point.y);
            svg += &format!("<circle class=\"dot\" cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"2.5\"/>\n");
        }
        if let Some(last) = self.points.last() {
            let (to, height) = at(last, last.y);
            svg += &text("last", to + 8.0, height + 4.0, "start", &short(last.y));
        }
        svg
    }
}

/// A number with one decimal; whole numbers have none.
fn short(number: f64) -> String {
    let number = (number * 10.0).round() / 10.0;
    number.to_string().replace('-', "\u{2212}")
}

fn path(points: impl Iterator<Item = (f64, f64)>) -> String {
    let commands = std::iter::once('M').chain(std::iter::repeat('L'));
    let each = commands.zip(points);
    each.map(|(command, (x, y))| format!("{command}{x:.1} {y:.1}"))
        .collect()
}

fn text(class: &str, x: f64, y: f64, anchor: &str, words: &str) -> String {
    let words = escaped(words);
    format!(
        "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{words}</text>\n"
    )
}

fn line(class: &str, (x1, y1): (f64, f64), (x2, y2): (f64, f64)) -> String {
    format!("<path class=\"{class}\" d=\"M{x1:.1} {y1:.1}L{x2:.1} {y2:.1}\"/>\n")
}

/// Lines at the vertical axis' ticks, the horizontal axis, and the labels of both.
fn grid(x: Axis, y: Axis) -> String {
    let mut svg = String::new();
    for tick in y.ticks() {
        let at = y.scale(tick, BOTTOM, TOP);
        svg += &line("grid", (LEFT, at), (RIGHT, at));
        svg += &text("tick", LEFT - 8.0, at + 4.0, "end", &y.label(tick));
    }
    svg += &line("axis", (LEFT, BOTTOM), (RIGHT, BOTTOM));
    for tick in x.ticks() {
        let at = x.scale(tick, LEFT, RIGHT);
        svg += &line("axis", (at, BOTTOM), (at, BOTTOM + 5.0));
        svg += &text("tick", at, BOTTOM + 20.0, "middle", &x.label(tick));
    }
    svg
}

#[cfg(test)]
mod tests;
