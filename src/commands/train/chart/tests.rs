use super::*;

fn labels(axis: Axis) -> Vec<String> {
    axis.ticks().map(|tick| axis.label(tick)).collect()
}

fn curve(ys: &[(f64, f64, f64)]) -> Vec<Point> {
    let point = |(at, (low, y, high)): (usize, &(f64, f64, f64))| Point {
        x: 5000.0 * (at + 1) as f64,
        y: *y,
        low: *low,
        high: *high,
    };
    ys.iter().enumerate().map(point).collect()
}

fn svg(points: &[Point], band: bool) -> String {
    Chart {
        title: "a < b & c",
        subtitle: "two seeds",
        horizontal: "steps",
        vertical: "return",
        points,
        band,
    }
    .svg()
}

/// The points of the path of a class.
fn path_of(svg: &str, class: &str) -> Vec<(f64, f64)> {
    let start = format!("<path class=\"{class}\" d=\"");
    let data = svg.split(&start).nth(1).unwrap().split('"').next().unwrap();
    let points = data.trim_end_matches('Z').split(['M', 'L']).skip(1);
    let numbers = |point: &str| {
        let (x, y) = point.split_once(' ').unwrap();
        (x.parse().unwrap(), y.parse().unwrap())
    };
    points.map(numbers).collect()
}

#[test]
fn ticks_are_round_numbers_around_the_values() {
    let around = |low, high| labels(Axis::around(low, high));
    assert_eq!(around(8.3, 497.0), ["0", "100", "200", "300", "400", "500"]);
    assert_eq!(around(0.1, 0.42), ["0.1", "0.2", "0.3", "0.4", "0.5"]);
    assert_eq!(around(500.0, 500.0), ["400", "500", "600"]);
    assert_eq!(around(0.0, 0.0), ["\u{2212}0.2", "0", "0.2"]);
    let negative = around(-1480.0, -160.0);
    assert_eq!(negative[0], "\u{2212}1500");
    assert_eq!(negative.last().unwrap(), "0");
}

#[test]
fn steps_are_labelled_in_thousands_and_millions_and_end_where_they_end() {
    assert_eq!(
        labels(Axis::up_to(100_000.0)),
        ["0", "20k", "40k", "60k", "80k", "100k"]
    );
    assert_eq!(
        labels(Axis::up_to(2_400_000.0)),
        ["0", "0.5M", "1.0M", "1.5M", "2.0M"]
    );
    assert_eq!(Axis::up_to(104_992.0).to, 104_992.0);
}

#[test]
fn the_line_runs_from_the_lowest_to_the_highest_value_within_the_frame() {
    let svg = svg(
        &curve(&[
            (0.0, 0.0, 50.0),
            (20.0, 100.0, 300.0),
            (200.0, 300.0, 300.0),
        ]),
        true,
    );
    let line = path_of(&svg, "line");
    let third = (RIGHT - LEFT) / 3.0;
    assert_eq!(line[0], (((LEFT + third) * 10.0).round() / 10.0, BOTTOM));
    assert_eq!(line[2], (RIGHT, TOP));
    let band = path_of(&svg, "band");
    assert_eq!(band.len(), 6);
    assert_eq!(
        (band[0].0, band[5].0),
        (line[0].0, line[0].0),
        "there and back"
    );
    for ((x, y), (_, high)) in line.iter().zip(&band[..3]) {
        assert!((LEFT..=RIGHT).contains(x) && (TOP..=BOTTOM).contains(y));
        assert!(high <= y, "the upper bound is above the line");
    }
}

#[test]
fn one_seed_has_no_band_and_one_evaluation_is_a_point() {
    let svg = svg(&curve(&[(7.0, 7.0, 7.0)]), false);
    assert!(!svg.contains("class=\"band\""));
    assert_eq!(svg.matches("<circle").count(), 1);
    assert!(!svg.contains("NaN") && !svg.contains("inf"));
}

#[test]
fn the_document_is_balanced_and_what_it_names_is_escaped() {
    let svg = svg(&curve(&[(-3.0, 1.0, 2.0), (1.0, 2.0, 3.0)]), true);
    assert!(svg.contains("<title>a &lt; b &amp; c</title>"));
    let mut open = Vec::new();
    for tag in svg.split('<').skip(1) {
        let tag = tag.split('>').next().unwrap();
        let name = tag.split([' ', '/']).find(|part| !part.is_empty()).unwrap();
        match (tag.starts_with('/'), tag.ends_with('/')) {
            (true, _) => assert_eq!(open.pop(), Some(name)),
            (false, true) => {}
            (false, false) => open.push(name),
        }
    }
    assert!(open.is_empty(), "{open:?}");
}
