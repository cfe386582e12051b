//! CMRBench's four experiences, learned one after the other or together, measured after each:
//! `cargo run --release --example continual -- CMR [joint] [dev] [store=STORE] [key=value ...]`.
//!
//! With `store=` the generations become children of the one that is current there, and stay.
//!
//! `dev` measures on a development split of the training rows instead of the eval rows (cmrbench.md
//! section 8.1): settings are chosen there.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "an example")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use hubrouter::cmrbench::{BenchRow, Data, EvalRows, Hits, Percent, Prefix, Tables};
use hubrouter::learn::{Control, Example, Experience, Learner, Outcome, Settings};
use hubrouter::{Encoder, Options, Request, Result, Router, Store};

const ENCODER: &str = "weights/all-MiniLM-L6-v2";

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().unwrap_or_else(|| "CMR".to_owned());
    let (mut joint, mut dev, mut kept) = (false, false, None);
    let mut settings = Settings::edge();
    settings.set("hold_out", "false")?;
    let mut epochs: [Option<String>; 4] = Default::default();
    for argument in arguments {
        match argument.split_once('=') {
            None => {
                joint |= argument == "joint";
                dev |= argument == "dev";
            }
            // One number for each experience.
            Some(("epochs", list)) if list.contains(',') => {
                for (place, text) in epochs.iter_mut().zip(list.split(',')) {
                    *place = Some(text.to_owned());
                }
            }
            Some(("store", path)) => kept = Some(PathBuf::from(path)),
            Some((key, value)) => settings.set(key, value)?,
        }
    }
    let mut data = Data::open(folder, Prefix::Strip)?;
    if dev {
        data = data.evaluate(EvalRows::Development);
    }
    let options = Options::default().device("cpu");
    let began = Instant::now();
    match kept {
        Some(store) => {
            // Tells early of a store that is none.
            Store::open(&store)?;
            run(&data, &store, &options, settings, &epochs, joint)?;
        }
        None => {
            let scratch = format!("hubrouter-continual-{}", std::process::id());
            let scratch = std::env::temp_dir().join(scratch);
            let first = if joint { data.experiences.len() } else { 1 };
            let encoder = Arc::new(Encoder::open(ENCODER, &options)?);
            let made = Store::create(&scratch).and_then(|store| {
                store.build(&encoder, &data.hub(first), "hub build", &mut |_, _| {})
            });
            let outcome =
                made.and_then(|_| run(&data, &scratch, &options, settings, &epochs, joint));
            // Its loss is no failure.
            let _ = std::fs::remove_dir_all(&scratch);
            outcome?;
        }
    }
    println!("{:.0} s", began.elapsed().as_secs_f64());
    Ok(())
}

fn run(
    data: &Data,
    folder: &Path,
    options: &Options,
    settings: Settings,
    epochs: &[Option<String>; 4],
    joint: bool,
) -> Result<()> {
    let steps = data.experiences.len();
    let first = if joint { steps } else { 1 };
    let options = options.clone().encoder(ENCODER);
    let mut diagonal: Vec<Percent> = Vec::new();
    let mut last = Vec::new();
    for step in first..=steps {
        let of = if joint { 0 } else { step - 1 };
        let rows = data.experiences[of..step].iter().flat_map(|e| &e.train);
        let experience = Experience {
            models: data.hub(step),
            examples: rows.map(example).collect(),
        };
        let mut settings = settings.clone();
        if let Some(epochs) = &epochs[step - 1] {
            settings.set("epochs", epochs)?;
        }
        let began = Instant::now();
        let mut learner = Learner::open(folder, None, settings, options.clone())?
            .introduce(true)
            .allow_unmeasured(true);
        let mut said = Instant::now();
        let outcome = learner.learn(&experience, None, &mut |status| {
            if said.elapsed().as_secs() > 20 {
                said = Instant::now();
                eprintln!("{status:?}");
            }
            Control::Continue
        })?;
        let Outcome::Learned(report) = outcome else {
            continue;
        };
        learner.commit()?;
        println!(
            "step {step}: {} rows + {} replayed, {} steps, {:.0} s, {:.0} examples/s, W moved {:.3}, rows {:.1} degrees",
            report.examples,
            report.replayed,
            report.steps,
            began.elapsed().as_secs_f64(),
            report.examples_per_second,
            report.projection_drift,
            report.row_drift_degrees.0,
        );
        let router = Router::open(folder, options.clone())?;
        let tables = Tables::new(data, step);
        last = Vec::new();
        for experience in &data.experiences[..step] {
            last.push(measure(&router, &tables, &experience.eval)?);
        }
        diagonal.push(last[step - 1]);
        let cells = last
            .iter()
            .map(|a| format!("{:.1}/{:.1}/{:.1}", a.model, a.family, a.domain));
        println!("  {}", cells.collect::<Vec<_>>().join("  "));
    }
    let mean = Percent::mean(&last);
    println!(
        "Acc  M {:.1}  F {:.1}  D {:.1}",
        mean.model, mean.family, mean.domain
    );
    if !joint {
        let lost = |part: fn(&Percent) -> f64| {
            let pairs = diagonal.iter().zip(&last).take(steps - 1);
            pairs.map(|(then, now)| part(then) - part(now)).sum::<f64>() / (steps - 1) as f64
        };
        let (m, f, d) = (lost(|p| p.model), lost(|p| p.family), lost(|p| p.domain));
        println!("Fgt  M {m:.1}  F {f:.1}  D {d:.1}");
    }
    Ok(())
}

fn example(row: &BenchRow) -> Example {
    let mut example = Example::new(row.instruction.as_str(), row.model_name.as_str());
    example.domain = Some(row.domain.clone());
    example
}

fn measure(router: &Router, tables: &Tables, rows: &[BenchRow]) -> Result<Percent> {
    let requests: Vec<Request> = rows
        .iter()
        .map(|row| Request::new(row.instruction.as_str()).top(1))
        .collect();
    let mut hits = Hits::default();
    for (row, decision) in rows.iter().zip(router.route_batch(&requests)) {
        if let Some(best) = decision?.ranked.first() {
            hits += tables.hits(&best.model, row);
        }
    }
    Ok(hits.percent(rows.len()))
}
