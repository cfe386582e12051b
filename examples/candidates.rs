//! What a ranking costs after encoding: the whole hub, 12 candidates, and half of the hub by a mask;
//! with one thread and with two.
//!
//! `cargo run --release --example candidates` ranks the bundled hub. With a number it makes a hub of
//! as many models, of a toy's encoder, in the folder for temporary files:
//! `cargo run --release --example candidates 200000`.
#![allow(clippy::print_stdout, reason = "an example")]

use std::path::Path;
use std::sync::Arc;

use hubrouter::{
    Encoder, ImportOptions, Model, NewModel, Options, Policy, PolicyHandle, Request, Router, Store,
    import_encoder,
};

/// Routes whose median is printed.
const ROUTES: usize = 300;

const TOY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/toy-bert");

fn main() -> Result<(), hubrouter::Error> {
    for threads in [1, 2] {
        println!("threads: {threads}");
        with_threads(threads)?;
    }
    Ok(())
}

fn with_threads(threads: usize) -> Result<(), hubrouter::Error> {
    let options = Options::default().device("cpu").threads(threads);
    let router = match std::env::args().nth(1).and_then(|count| count.parse().ok()) {
        Some(models) => {
            let folder = std::env::temp_dir().join(format!("candidates-{}", std::process::id()));
            let made = large(&folder, models, &options);
            let router = made.and_then(|options| Router::open(folder.join("store"), options));
            let _ = std::fs::remove_dir_all(&folder);
            router?
        }
        None => Router::open("weights/cmrbench", options)?,
    };
    let hub = router.hub();
    let names = |step: usize| {
        let models = hub.iter().step_by(step);
        models.map(|(_, model)| model.name.to_string())
    };
    let twelve = router.compile(&Policy::default().candidates(names(hub.len() / 12).take(12)))?;
    let half = router.compile(&Policy::default().candidates(names(2)))?;
    show(&format!("all {} models", hub.len()), &router, None)?;
    show("12 candidates", &router, Some(&twelve))?;
    show("half of the hub", &router, Some(&half))
}

/// A hub of `models` in `folder`, and the options that open it.
fn large(folder: &Path, models: usize, options: &Options) -> Result<Options, hubrouter::Error> {
    let bundle = folder.join("toy-bert");
    let _ = std::fs::create_dir_all(folder);
    import_encoder(TOY, &bundle, &ImportOptions::default())?;
    let encoder = Arc::new(Encoder::open(&bundle, options)?);
    let new = |n: usize| {
        let model = Model::new(&format!("acme/model-{n}"), &format!("Domain {}", n % 42));
        NewModel::new(model, Vec::new())
    };
    let all: Vec<NewModel> = (0..models).map(new).collect();
    Store::create(folder.join("store"))?.build(&encoder, &all, "an example", &mut |_, _| {})?;
    Ok(options.clone().encoder(bundle))
}

fn show(
    what: &str,
    router: &Router,
    policy: Option<&PolicyHandle>,
) -> Result<(), hubrouter::Error> {
    let request = Request::new("Translate this letter into Spanish, and keep its tone.").top(1);
    let (mut score, mut around) = (Vec::new(), Vec::new());
    for _ in 0..ROUTES {
        let decision = match policy {
            Some(policy) => router.route_within(&request, policy)?,
            None => router.route(&request)?,
        };
        let timing = decision.timing;
        score.push(timing.score);
        around.push(timing.total - timing.encode - timing.tokenize - timing.score);
    }
    let median = |times: &mut Vec<f64>| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    };
    let (score, around) = (median(&mut score), median(&mut around));
    println!("{what:17} score {score:8.1} us, around it {around:6.1} us");
    Ok(())
}
