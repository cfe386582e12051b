//! Encoders: Hugging Face folders that are imported, bundles that are opened.
//!
//! What an import accepts opens and embeds; what it refuses leaves nothing behind. Vectors are finite.

use std::fs;
use std::path::Path;

use hubrouter::{Encoder, ImportOptions, import_encoder};

use crate::case::Case;
use crate::common::{cpu, fixture};
use crate::draws::Draws;
use crate::harness::Boundary;
use crate::toy::{self, Refusal, judge_refused};
use crate::{mutate, seal, tensors};

/// Texts that every encoder is asked for.
const TEXTS: [&str; 5] = [
    "a first prompt",
    "Which bird is this?",
    "漢字 é ß",
    "🐦",
    "x",
];

pub struct Bundles {
    /// `hf/..` or `bundle/..`
    bases: Vec<Case>,
}

#[derive(Clone)]
pub struct Seen {
    /// The import, if the case is a Hugging Face folder.
    imported: Option<Result<(), Refusal>>,
    /// Names in the target's folder that should not be there.
    left: Vec<String>,
    opened: Result<Vectors, Refusal>,
}

#[derive(Clone)]
struct Vectors {
    width: usize,
    max_tokens: usize,
    each: Vec<Result<Vec<f32>, Refusal>>,
    tokens: Vec<Result<usize, Refusal>>,
}

impl Bundles {
    pub fn new() -> Self {
        let under = |prefix: &str, folder: &Path| {
            let mut case = Case::read(folder);
            case.files = std::mem::take(&mut case.files)
                .into_iter()
                .map(|(path, bytes)| (format!("{prefix}/{path}"), bytes))
                .collect();
            case
        };
        let bases = vec![
            under("bundle", &toy::bundle()),
            under("hf", &fixture("toy-bert")),
            under("hf", &fixture("toy-xlm-roberta")),
        ];
        Self { bases }
    }
}

impl Boundary for Bundles {
    type Seen = Seen;
    const NAME: &'static str = "bundles";

    fn case(&self, draws: &mut Draws) -> Case {
        let mut case = draws.pick(&self.bases).clone();
        for _ in 0..1 + draws.below(3) {
            change(&mut case, draws.pick(&self.bases), draws);
        }
        if case.files.contains_key("bundle/manifest.json") && !draws.one_in(4) {
            let manifest = seal::sealed(&case, "bundle");
            case.files.insert("bundle/manifest.json".into(), manifest);
            case.story.push("hashes made right".into());
        }
        case.replace_sometimes(draws);
        case
    }

    fn observe(&self, folder: &Path) -> Seen {
        let source = folder.join("hf");
        if !source.exists() {
            return Seen {
                imported: None,
                left: Vec::new(),
                opened: open(&folder.join("bundle")),
            };
        }
        let target = folder.join("made").join("toy");
        fs::create_dir(folder.join("made")).unwrap();
        let imported = import_encoder(&source, &target, &ImportOptions::default());
        let imported = imported.map(|_| ()).map_err(Refusal::from);
        let names = fs::read_dir(folder.join("made")).unwrap();
        let mut left: Vec<String> = names
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.retain(|name| imported.is_err() || name != "toy");
        Seen {
            opened: open(&target),
            imported: Some(imported),
            left,
        }
    }

    fn judge(&self, seen: &Seen) -> Result<(), String> {
        if !seen.left.is_empty() {
            return Err(format!("left behind: {:?}", seen.left));
        }
        if let (Some(Ok(())), Err(error)) = (&seen.imported, &seen.opened) {
            return Err(format!("imported, and does not open: {error:?}"));
        }
        seen.imported.as_ref().map_or(Ok(()), judge_refused)?;
        judge_refused(&seen.opened)?;
        let Ok(vectors) = &seen.opened else {
            return Ok(());
        };
        if vectors.each.len() != TEXTS.len() || vectors.tokens.len() != TEXTS.len() {
            return Err("a text has no answer".into());
        }
        for (text, vector) in TEXTS.iter().zip(&vectors.each) {
            judge_refused(vector)?;
            if let Ok(vector) = vector {
                if vector.len() != vectors.width {
                    return Err(format!(
                        "{text:?}: a vector of {} numbers, width {}",
                        vector.len(),
                        vectors.width
                    ));
                }
                if let Some(value) = vector.iter().find(|value| !value.is_finite()) {
                    return Err(format!("{text:?}: a vector with {value}"));
                }
            }
        }
        for tokens in &vectors.tokens {
            judge_refused(tokens)?;
            if let Ok(tokens) = tokens
                && *tokens > vectors.max_tokens
            {
                return Err(format!(
                    "{tokens} tokens, at most {} were promised",
                    vectors.max_tokens
                ));
            }
        }
        Ok(())
    }
}

fn open(folder: &Path) -> Result<Vectors, Refusal> {
    let encoder = Encoder::open(folder, &cpu(1))?;
    let long = "many words ".repeat(2000);
    let _ = encoder.trace(TEXTS[0]);
    let _ = encoder.embed_documents(&[&long]);
    let each = encoder
        .embed(&TEXTS)
        .into_iter()
        .map(|vector| vector.map_err(Refusal::from));
    let tokens = encoder.token_ids(&TEXTS).into_iter();
    Ok(Vectors {
        width: encoder.width(),
        max_tokens: encoder.max_tokens(),
        each: each.collect(),
        tokens: tokens
            .map(|ids| ids.map(|ids| ids.len()).map_err(Refusal::from))
            .collect(),
    })
}

/// Changes one file: the small ones, which say what the large ones are, as often as those.
fn change(case: &mut Case, other: &Case, draws: &mut Draws) {
    let paths: Vec<String> = case.files.keys().cloned().collect();
    let path = draws.pick(&paths).clone();
    let names: Vec<&String> = other.files.keys().collect();
    let others = [&other.files[*draws.pick(&names)][..]];
    if draws.one_in(25) {
        case.files.remove(&path);
        case.story.push(format!("{path} removed"));
        return;
    }
    let bytes = case.files.get_mut(&path).unwrap();
    let said = match path.rsplit('.').next() {
        Some("json") => mutate::json_text(bytes, &others, draws),
        Some("safetensors") => tensors::tensors(bytes, &others, draws),
        _ => mutate::bytes(bytes, &others, draws),
    };
    case.story.push(format!("{path}: {said}"));
}

#[test]
fn false_sights_are_found() {
    let boundary = Bundles::new();
    let folder = crate::common::Folder::new("sights");
    for (at, base) in boundary.bases.iter().enumerate() {
        let folder = folder.join(at.to_string());
        base.lay_out(&folder);
        let seen = boundary.observe(&folder);
        boundary.judge(&seen).unwrap();
        let found = |what: &str, lie: &dyn Fn(&mut Seen)| {
            let mut told = seen.clone();
            lie(&mut told);
            assert!(boundary.judge(&told).is_err(), "{what} is not noticed");
        };
        found("what is left", &|seen| {
            seen.left.push(".tmp-1-0-folder".into())
        });
        found("a number that is none", &|seen| {
            seen.opened.as_mut().unwrap().each[0].as_mut().unwrap()[0] = f32::NAN;
        });
        found("a short vector", &|seen| {
            seen.opened.as_mut().unwrap().width += 1
        });
        found("many tokens", &|seen| {
            seen.opened.as_mut().unwrap().max_tokens = 1
        });
        if seen.imported.is_some() {
            found("an import that does not open", &|seen| {
                let kind = hubrouter::ErrorKind::Format;
                seen.opened = Err(Refusal {
                    kind,
                    text: "torn".into(),
                });
            });
        }
    }
}
