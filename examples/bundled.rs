//! Makes the bundled router again (weights/README.md):
//! `cargo run --release --example bundled -- CMR my-store`.
//!
//! `CMR` is a checkout of the benchmark; `my-store` was made by `hubrouter hub build --data CMR`.
//! The generation's id depends on `made_by`, which is `learn custom` here and names a recipe when
//! `hubrouter learn` learns the same prompts with the same settings.
#![allow(clippy::print_stdout, reason = "an example")]

use hubrouter::cmrbench::{BenchRow, Data, Prefix};
use hubrouter::learn::{Control, Example, Experience, Learner, Outcome, Settings};
use hubrouter::{Options, Result};

const SETTINGS: [(&str, &str); 3] = [
    ("epochs", "6"),
    ("replay.strategy", "none"),
    ("replay.privacy", "embeddings"),
];

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (Some(checkout), Some(store)) = (arguments.next(), arguments.next()) else {
        println!("usage: bundled CMR STORE");
        return Ok(());
    };
    let mut settings = Settings::edge();
    for (key, value) in SETTINGS {
        settings.set(key, value)?;
    }
    let data = Data::open(checkout, Prefix::Strip)?;
    let rows = data
        .experiences
        .iter()
        .flat_map(|experience| &experience.train);
    let experience = Experience {
        models: data.hub(data.experiences.len()),
        examples: rows.map(example).collect(),
    };
    let options = Options::default()
        .device("cpu")
        .encoder("weights/all-MiniLM-L6-v2");
    let mut learner = Learner::open(store, None, settings, options)?
        .introduce(true)
        .allow_unmeasured(true);
    let outcome = learner.learn(&experience, None, &mut |_| Control::Continue)?;
    if let Outcome::Learned(report) = outcome {
        println!(
            "{} examples, {} steps, {:.0} s",
            report.examples, report.steps, report.seconds
        );
        println!("published {}", learner.commit()?);
    }
    Ok(())
}

fn example(row: &BenchRow) -> Example {
    let mut example = Example::new(row.instruction.as_str(), row.model_name.as_str());
    example.domain = Some(row.domain.clone());
    example
}
