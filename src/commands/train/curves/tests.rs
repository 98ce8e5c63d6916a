use super::*;
use tars_learn::{
    Update,
    training::{AgentProgress, Statistics},
};

const AGENT: usize = 1;

fn report(step: u64, mean_return: Option<f64>) -> Record {
    Record::Training(Progress {
        step,
        episodes: 4,
        agents: vec![AgentProgress {
            agent: AGENT,
            mean_return,
            update: Update {
                gradient_steps: 8,
                loss: Some(0.5),
                gradient_norm: Some(2.0),
                ..Update::default()
            },
            exploration: 0.25,
            statistics: Statistics::default(),
        }],
    })
}

fn evaluation(step: u64, returns: &[f64]) -> Record {
    let returns = vec![vec![-1.0; returns.len()], returns.to_vec()];
    Record::Evaluation(Evaluation { step, returns })
}

fn records(last: f64) -> Vec<Record> {
    vec![
        report(100, None),
        report(200, Some(9.5)),
        evaluation(200, &[10.0, 20.0]),
        evaluation(400, &[last]),
    ]
}

#[test]
fn every_record_is_a_row_with_a_cell_for_each_column() {
    let records = records(1.5);
    let seed = Seed {
        seed: 7,
        records: &records,
    };
    let text = csv(&[seed], AGENT);
    let rows: Vec<&str> = text.lines().collect();
    let columns = rows[0].split(',').count();
    assert!(rows.iter().all(|row| row.split(',').count() == columns));
    assert_eq!(rows[1], "7,100,training,4,,,,,0.25,8,0.5,,,,,,,,2");
    assert_eq!(rows[2], "7,200,training,4,9.5,,,,0.25,8,0.5,,,,,,,,2");
    assert!(rows[3].starts_with("7,200,evaluation,2,15,7.07106781186547"));
    assert!(rows[3].ends_with(",10,20,,,,,,,,,,,"), "{}", rows[3]);
    assert_eq!(rows[4], "7,400,evaluation,1,1.5,0,1.5,1.5,,,,,,,,,,,");
    assert_eq!(rows.len(), 5);
}

#[test]
fn points_are_the_mean_and_the_range_of_the_seeds() {
    let all = [records(1.0), records(4.0), records(-2.0)];
    let seed = |(n, records)| Seed { seed: n, records };
    let seeds: Vec<Seed<'_>> = (1..).zip(all.iter().map(Vec::as_slice)).map(seed).collect();
    let point = |x, y, low, high| Point { x, y, low, high };
    let expected = [point(200.0, 15.0, 15.0, 15.0), point(400.0, 1.0, -2.0, 4.0)];
    assert_eq!(points(&seeds, AGENT), expected);
}

#[test]
fn a_folder_that_cannot_be_is_refused_with_its_path() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let refused = Curves::create(&file, "x", String::new(), 0).unwrap_err();
    assert!(refused.to_string().contains("file"), "{refused}");
}
