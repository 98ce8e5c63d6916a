use super::*;
use serde_json::json;

fn shown(agents: &[&str], steps: u64) -> Shown {
    let members: Vec<Value> = (agents.iter())
        .map(|agent| json!({ "agent_id": agent }))
        .collect();
    let run = json!({ "steps": steps.to_string(), "members": members });
    let how = Watched {
        run_id: None,
        every: None,
        json: false,
    };
    Shown::new(&run, &how)
}

#[test]
fn a_report_is_a_row_under_its_columns() {
    let agent = json!({
        "mean_return": 21.5, "loss": 0.25, "value_loss": null, "exploration": 0.5,
    });
    let shown = shown(&["policy"], 20_000);
    let cells = |progress: Value| shown.row("policy".to_owned(), &progress, &agent);
    let nothing_made_up = cells(json!({ "step": "5000" }));
    assert_eq!(nothing_made_up[8..], ["", ""]);
    let cells = cells(json!({ "step": "5000", "rate": 100.4 }));
    let expected = [
        "policy", "5000", "21.500", "0.250", "", "", "0.500", "", "100", "2m29s",
    ];
    assert_eq!(cells, expected);
    let head = line(COLUMNS.map(|(name, _)| name.to_uppercase()));
    assert_eq!(head.len(), line(cells).len());
    assert!(head.len() <= 100, "it fits on a terminal: {}", head.len());
}

#[test]
fn a_run_in_which_no_reports_come_says_why_and_what_goes_on() {
    let run = |state: &str| {
        json!({
            "run_id": "r", "state": format!("TRAINING_STATE_{state}"), "steps": "500", "steps_done": "20",
        })
    };
    let told = standstill(&run("PAUSED"), false).unwrap();
    for part in ["paused after 20 of 500 steps", "tars training resume r"] {
        assert!(told.contains(part), "{told}");
    }
    assert_eq!(standstill(&run("RUNNING"), false), None);
    assert_eq!(
        standstill(&run("RUNNING"), true).as_deref(),
        Some("the run goes on")
    );
    let mut queued = run("QUEUED");
    queued["queue_position"] = json!(2);
    let told = standstill(&queued, false).unwrap();
    assert!(told.contains("number 2"), "{told}");
    let mut shown = shown(&["policy"], 500);
    for (state, rests) in [("PAUSED", true), ("QUEUED", true), ("RUNNING", false)] {
        shown.state(&run(state));
        assert_eq!(shown.rests, rests, "{state}");
    }
}

#[test]
fn what_an_agent_does_not_report_is_left_empty_whatever_it_learns_by() {
    let agents = [
        json!({ "agent_id": "consensus", "mean_return": 1.5, "entropy": 0.7, "exploration": 0.7 }),
        json!({ "agent_id": "", "mean_return": -2.5, "exploration": 0.2, "kl": 0.1 }),
    ];
    let progress = json!({ "step": "500", "agents": agents });
    let rows = shown(&["consensus", "ethical"], 1000).rows(&progress);
    let words =
        |row: &String| -> Vec<String> { row.split_whitespace().map(str::to_owned).collect() };
    assert_eq!(words(&rows[0]), ["consensus", "500", "1.500", "0.700"]);
    let unnamed = ["ethical", "500", "-2.500", "0.200", "0.100"];
    assert_eq!(words(&rows[1]), unnamed);
}

async fn waited(found_at: usize) -> (usize, Option<Value>, Duration) {
    let (begun, mut looks) = (Instant::now(), 0);
    let look = async || {
        looks += 1;
        Ok::<_, CommandError>((looks == found_at).then(|| json!(looks)))
    };
    let found = wait_for(look).await.unwrap();
    (looks, found, begun.elapsed())
}

#[tokio::test(start_paused = true)]
async fn a_distance_that_is_measured_later_is_waited_for_a_while() {
    let (looks, found, took) = waited(3).await;
    assert_eq!((looks, found, took), (3, Some(json!(3)), LOOK * 3));
    let (_, found, took) = waited(usize::MAX).await;
    assert_eq!((found, took), (None, WAIT), "and then no more");
}

#[test]
fn a_part_of_the_reports_has_rows_and_the_last_one_always() {
    let mut shown = shown(&[], 1000);
    let steps = (1..=100).map(|report| f64::from(report) * 10.0);
    let due: Vec<f64> = steps.filter(|step| shown.is_due(*step)).collect();
    assert_eq!(due.len(), 21, "{due:?}");
    assert_eq!((due[0], due[1], due[20]), (10.0, 60.0, 1000.0));
}

#[test]
fn a_number_has_nine_characters_at_most() {
    for (number, shown) in [
        (0.0, "0"),
        (-1.234e-16, "-1.2e-16"),
        (-88.9612, "-88.961"),
        (-999_999.94, "-999999.9"),
        (1.234e7, "1.23e7"),
    ] {
        assert_eq!(cell(&json!(number)), shown);
    }
    assert_eq!(cell(&Value::Null), "");
}

#[test]
fn the_end_of_a_run_has_a_line_and_each_agent_its_own() {
    let run = |state: &str| {
        json!({
            "state": format!("TRAINING_STATE_{state}"), "steps": "200", "steps_done": "120",
            "episodes_done": "7", "error": "", "environment": "mesh", "calibration": "shipped",
        })
    };
    let mut completed = run("COMPLETED");
    let line = "completed: 120 of 200 steps, 7 episodes in mesh (calibration shipped)";
    assert_eq!(describe(&completed), line);
    let member = |agent: &str, mean: f64, version: &str| json!({ "agent_id": agent, "final_return": mean, "weights_version": version });
    let members = [
        member("policy", 12.25, "3"),
        member("ethical", -73.5, "2"),
        member("resource", -1.0, "7"),
    ];
    completed["members"] = json!(members);
    let known = |agent: &str, mean: f64| (agent.to_owned(), mean);
    let before = [known("ethical", 132.0), known("resource", 5.0)];
    let live = [("policy", "3"), ("ethical", "2"), ("resource", "6")];
    let live = live.map(|(agent, version)| (agent.to_owned(), json!(version)));
    let results = results(&completed, &before, &live);
    assert_eq!(results[0], "  policy     mean return 12.25");
    let worse =
        "  ethical    mean return 132.00 -> -73.50; `tars agents rollback ethical` undoes it";
    assert_eq!(results[1], worse);
    let aside =
        "  resource   mean return -1.00; version 7 answers nobody: `tars agents versions resource`";
    assert_eq!(results[2], aside);
    let mut failed = run("FAILED");
    failed["error"] = json!("it\ndiverged");
    let line = "failed: 120 of 200 steps, 7 episodes in mesh (calibration shipped); it\\ndiverged";
    assert_eq!(describe(&failed), line);
}

#[test]
fn times_are_in_the_units_that_are_read() {
    for (seconds, shown) in [
        (0.4, "0s"),
        (59.4, "59s"),
        (60.0, "1m00s"),
        (245.0, "4m05s"),
        (7380.0, "2h03m"),
    ] {
        assert_eq!(duration(seconds), shown);
    }
}
