//! A toy to learn with: an encoder of two layers, six models, prompts told apart by a word.

use std::path::PathBuf;
use std::sync::Arc;

use hubrouter::learn::{Control, Example, Experience, Learner, Outcome, Report, Settings};
use hubrouter::{
    Encoder, GenerationId, ImportOptions, ModelCard, NewModel, Options, Store, import_encoder,
};

use super::{Folder, cpu, fixture};

pub const DOMAINS: [&str; 3] = [
    "Translation",
    "Image Classification",
    "Audio Classification",
];

/// A store with a zero-shot generation of six models, and its encoder, a toy.
pub struct Setup {
    pub folder: Folder,
    pub store: PathBuf,
    pub encoder: PathBuf,
}

pub fn setup(name: &str) -> Setup {
    setup_with(name, &ImportOptions::default())
}

pub fn setup_with(name: &str, import: &ImportOptions) -> Setup {
    let folder = Folder::new(name);
    let encoder = folder.join("toy-bert");
    import_encoder(fixture("toy-bert"), &encoder, import).unwrap();
    let store = folder.join("store");
    let models: Vec<NewModel> = (0..6).map(model).collect();
    let open = Arc::new(Encoder::open(&encoder, &cpu(1)).unwrap());
    Store::create(&store)
        .unwrap()
        .build(&open, &models, "hub build", &mut |_, _| {})
        .unwrap();
    Setup {
        folder,
        store,
        encoder,
    }
}

pub fn model(i: usize) -> NewModel {
    NewModel::from(&ModelCard::new(format!("model-{i}"), DOMAINS[i % 3]))
}

/// Prompts of the models `first..first + count`, told apart by a word of their own.
pub fn examples(first: usize, count: usize) -> Vec<Example> {
    const WORDS: [&str; 9] = [
        "french", "photo", "bird", "english", "image", "audio", "dutch", "cat", "music",
    ];
    const FORMS: [&str; 4] = ["find a model for", "which one does", "route", "I need"];
    let mut all = Vec::new();
    for form in FORMS {
        for i in first..first + count {
            let prompt = format!("{form} {} number {i}", WORDS[i]);
            let mut example = Example::new(prompt, format!("model-{i}"));
            example.domain = Some(DOMAINS[i % 3].to_owned());
            all.push(example);
        }
    }
    all
}

/// Every update trains, and the memory follows; few enough steps for a toy.
pub fn settings(pairs: &[(&str, &str)]) -> Settings {
    let mut settings = Settings::carve();
    for (key, value) in [
        ("init.profile", "card"),
        ("candidates", "all"),
        ("batch", "8"),
        ("epochs", "6"),
        ("lora.r", "4"),
        ("warm_up", "2"),
    ] {
        settings.set(key, value).unwrap();
    }
    for (key, value) in pairs {
        settings.set(key, value).unwrap();
    }
    settings
}

/// Nobody is introduced but by the examples.
pub fn experience(examples: Vec<Example>) -> Experience {
    Experience {
        models: Vec::new(),
        examples,
    }
}

pub fn learn(
    setup: &Setup,
    examples: Vec<Example>,
    settings: Settings,
    options: Options,
) -> (GenerationId, Report) {
    let options = options.encoder(&setup.encoder);
    let mut learner = Learner::open(&setup.store, None, settings, options)
        .unwrap()
        .allow_unmeasured(true);
    let outcome = learner
        .learn(&experience(examples), None, &mut |_| Control::Continue)
        .unwrap();
    let Outcome::Learned(report) = outcome else {
        panic!("stopped: {outcome:?}");
    };
    (learner.commit().unwrap(), *report)
}
