//! Makes a hub of two models, learns prompts and routes: `cargo run --release --example learn`.
//!
//! The recipe `memory` trains nothing, so that an update takes a second.
#![allow(clippy::print_stdout, reason = "an example")]

use std::sync::Arc;

use hubrouter::learn::{Control, Example, Experience, Learner, Outcome, Settings};
use hubrouter::{Encoder, ModelCard, NewModel, Options, Request, Result, Router, Store};

const ENCODER: &str = "weights/all-MiniLM-L6-v2";

const PROMPTS: [(&str, &str); 6] = [
    ("Is this bird a robin?", "acme/birds"),
    ("Name the species in this recording.", "acme/birds"),
    ("Which songbird do I hear?", "acme/birds"),
    ("Turn this letter into French.", "acme/translate"),
    ("What is 'good morning' in Dutch?", "acme/translate"),
    ("Translate the menu for me.", "acme/translate"),
];

fn main() -> Result<()> {
    let folder = std::env::temp_dir().join(format!("hubrouter-learn-{}", std::process::id()));
    let outcome = learn_and_route(&folder);
    // A failure to remove the folder is not an error of the example.
    let _ = std::fs::remove_dir_all(&folder);
    outcome
}

fn learn_and_route(folder: &std::path::Path) -> Result<()> {
    let options = Options::default().device("cpu").encoder(ENCODER);
    let models = [
        ("acme/birds", "Audio Classification"),
        ("acme/translate", "Translation"),
    ]
    .map(|(name, domain)| NewModel::from(&ModelCard::new(name, domain)));
    let encoder = Arc::new(Encoder::open(ENCODER, &options)?);
    Store::create(folder)?.build(&encoder, &models, "example", &mut |_, _| {})?;

    let examples = PROMPTS
        .map(|(prompt, model)| Example::new(prompt, model))
        .to_vec();
    let experience = Experience {
        models: Vec::new(),
        examples,
    };
    let mut learner = Learner::open(folder, None, Settings::memory(), options.clone())?;
    let outcome = learner.learn(&experience, None, &mut |_| Control::Continue)?;
    if let Outcome::Learned(report) = outcome {
        println!("{} examples in {:.1} s", report.examples, report.seconds);
        println!("published {}", learner.commit()?);
    }

    let decision = Router::open(folder, options)?.route(&Request::new("Do you hear an owl?"))?;
    println!("{}", decision.ranked[0].model);
    Ok(())
}
