//! Stores: whole folders, their manifests and registries, their safetensors.
//!
//! What `check` calls whole opens and routes; what it does not is never served; a current generation
//! that is not whole is passed over for an older one, and that is said.

use std::fs;
use std::path::Path;

use hubrouter::learn::{remembered, would_forget};
use hubrouter::{ErrorKind, GenerationId, GenerationReport, Store};

use crate::case::{Case, NO_FILES};
use crate::common::copy;
use crate::draws::Draws;
use crate::harness::{Boundary, corpus_folder};
use crate::toy::{self, Answer, PROMPT, Refusal, judge_refused, served};
use crate::{mutate, seal, tensors};

/// Where changes go.
pub trait Focus: Send + 'static {
    const NAME: &'static str;
    /// Whether files of this path are changed.
    fn wants(path: &str) -> bool;
    /// One in so many cases leaves the hashes wrong.
    const UNSEALED: usize;
    /// One in so many cases changes the folder and not a file.
    const STRUCTURE: usize;
}

/// Any file, the folder itself.
pub struct Whole;

impl Focus for Whole {
    const NAME: &'static str = "stores";
    const UNSEALED: usize = 4;
    const STRUCTURE: usize = 4;
    fn wants(_: &str) -> bool {
        true
    }
}

/// `manifest.json`, `hub.json`, `memory.json`, `current`.
pub struct Manifests;

impl Focus for Manifests {
    const NAME: &'static str = "manifests";
    const UNSEALED: usize = 16;
    const STRUCTURE: usize = 1000;
    fn wants(path: &str) -> bool {
        path.ends_with(".json") || path == "current"
    }
}

/// Head, adapter, cards, memory, words, what is recalled, Fisher weights.
pub struct Tensors;

impl Focus for Tensors {
    const NAME: &'static str = "safetensors";
    const UNSEALED: usize = 16;
    const STRUCTURE: usize = 1000;
    fn wants(path: &str) -> bool {
        path.ends_with(".safetensors")
    }
}

pub struct Stores<F> {
    /// The stores of the corpus.
    bases: Vec<Case>,
    revision: String,
    focus: std::marker::PhantomData<F>,
}

/// What is seen of a store.
#[derive(Clone)]
pub struct Seen {
    /// What `current` says, if that is an id.
    current: Option<String>,
    generations: Result<Vec<Generation>, Refusal>,
    opened: Result<Answer, Refusal>,
    /// The current generation after a change that was acknowledged, opened.
    changed: Option<(String, Result<Answer, Refusal>)>,
}

/// What is seen of a generation.
#[derive(Clone)]
struct Generation {
    id: String,
    damage: Option<String>,
    checked: Result<(), Refusal>,
    /// Opened as the current one.
    alone: Result<Answer, Refusal>,
    parent: Option<String>,
    sequence: u32,
    /// Whether its manifest names the encoder that is there; none: it cannot be read.
    ours: Option<bool>,
}

impl<F: Focus> Stores<F> {
    pub fn new() -> Self {
        let folder = corpus_folder("stores");
        let names = ["built", "learned", "vectors"];
        let bases = names.map(|name| Case::read(&folder.join(name)));
        Self {
            bases: bases.into(),
            revision: toy::revision(),
            focus: std::marker::PhantomData,
        }
    }

    fn generation(&self, store: &Store, report: GenerationReport) -> Generation {
        let id = &report.id;
        let manifest = store.check(id);
        let sequence = id.as_str()[1..]
            .split('-')
            .next()
            .and_then(|digits| digits.parse().ok());
        let _ = store.hub(id);
        let _ = remembered(store, id);
        let _ = hubrouter::learn::check(store, id);
        let _ = store.parent(id);
        Generation {
            id: id.to_string(),
            damage: report.damage,
            ours: report.manifest.map(|m| m.encoder.sha256 == self.revision),
            checked: manifest.map(|_| ()).map_err(Into::into),
            alone: alone(store.root(), id),
            parent: store.parent(id).ok().map(|id| id.to_string()),
            sequence: sequence.unwrap_or(u32::MAX),
        }
    }
}

/// The generation opened as the current one of a store with the same generations.
fn alone(store: &Path, id: &GenerationId) -> Result<Answer, Refusal> {
    let current = store.join("current");
    let _ = fs::remove_file(&current);
    let _ = fs::remove_dir_all(&current);
    fs::write(&current, format!("{id}\n")).unwrap();
    served(store)
}

impl<F: Focus> Boundary for Stores<F> {
    type Seen = Seen;
    const NAME: &'static str = F::NAME;

    fn case(&self, draws: &mut Draws) -> Case {
        let mut case = draws.pick(&self.bases).clone();
        for _ in 0..1 + draws.below(3) {
            if draws.one_in(F::STRUCTURE) {
                restructure(&mut case, draws);
            } else {
                self.change(&mut case, draws);
            }
        }
        if !draws.one_in(F::UNSEALED) {
            seal::store(&mut case);
            case.story.push("hashes made right".into());
        }
        if F::STRUCTURE < 10 && draws.one_in(12) {
            special(&mut case, draws);
        }
        case
    }

    fn observe(&self, folder: &Path) -> Seen {
        let store = match Store::open(folder) {
            Ok(store) => store,
            Err(error) => {
                let refusal = Refusal::from(error);
                return Seen {
                    current: None,
                    generations: Err(refusal),
                    opened: served(folder),
                    changed: None,
                };
            }
        };
        let opened = served(folder);
        let current = store.current().ok().map(|id| id.to_string());
        let _ = store.prune(1, true);
        let _ = would_forget(&store, PROMPT);
        let changed = change(&store);
        let list = store.list().map_err(Refusal::from);
        let generations = list.map(|reports| {
            reports
                .into_iter()
                .map(|report| self.generation(&store, report))
                .collect()
        });
        Seen {
            current,
            generations,
            opened,
            changed,
        }
    }

    fn judge(&self, seen: &Seen) -> Result<(), String> {
        judge_facts(seen)?;
        judge_refused(&seen.generations)?;
        judge_refused(&seen.opened)?;
        for generation in seen.generations.iter().flatten() {
            judge_refused(&generation.checked)?;
            judge_refused(&generation.alone)?;
        }
        Ok(())
    }
}

fn judge_facts(seen: &Seen) -> Result<(), String> {
    let Ok(generations) = &seen.generations else {
        return match &seen.opened {
            Ok(answer) => Err(format!("no store, and {} is served", answer.generation)),
            Err(_) => Ok(()),
        };
    };
    generations.iter().try_for_each(judge_generation)?;
    // One of another encoder was published without being asked.
    let ours = |id: &String| {
        generations
            .iter()
            .any(|g| g.id == *id && g.ours == Some(true))
    };
    if let Some((id, opened)) = seen.changed.as_ref().filter(|(id, _)| ours(id)) {
        judge_whole(id, opened).map_err(|what| format!("after a change: {what}"))?;
    }
    judge_opened(seen, generations)
}

impl<F: Focus> Stores<F> {
    /// Changes one file.
    fn change(&self, case: &mut Case, draws: &mut Draws) {
        let paths: Vec<String> = case
            .files
            .keys()
            .filter(|path| F::wants(path))
            .cloned()
            .collect();
        if paths.is_empty() {
            return;
        }
        let path = draws.pick(&paths).clone();
        let other = draws.pick(&self.bases);
        let names: Vec<&String> = other.files.keys().collect();
        let others = [&other.files[*draws.pick(&names)][..]];
        let bytes = case.files.get_mut(&path).unwrap();
        let said = match path.rsplit('.').next() {
            Some("json") => mutate::json_text(bytes, &others, draws),
            Some("jsonl") => mutate::json_lines(bytes, &others, draws),
            Some("safetensors") => tensors::tensors(bytes, &others, draws),
            _ => mutate::bytes(bytes, &others, draws),
        };
        case.story.push(format!("{path}: {said}"));
    }
}

/// Changes what is in the folder, not what is in a file.
fn restructure(case: &mut Case, draws: &mut Draws) {
    let paths: Vec<String> = case.files.keys().cloned().collect();
    if paths.is_empty() {
        return;
    }
    let (path, other) = (draws.pick(&paths).clone(), draws.pick(&paths).clone());
    let said = match draws.below(6) {
        0 => {
            case.files.remove(&path);
            format!("{path} removed")
        }
        1 => {
            let bytes = case.files[&other].clone();
            case.files.insert(path.clone(), bytes);
            format!("{path} has the bytes of {other}")
        }
        2 => {
            let strangers = [
                ".tmp-1-0-folder",
                ".tmp-1-0-current",
                "g0009-0123456789ab",
                "lock",
                "lock-learning",
                "resume.safetensors",
                "notes.txt",
                ".tmp-",
                "g10000-0123456789ab/hub.json",
            ];
            let stranger = draws.pick(&strangers);
            case.files
                .insert((*stranger).to_owned(), b"nothing".to_vec());
            format!("{stranger} added")
        }
        3 => renumber(case, &path, draws),
        4 => {
            let Some((folder, _)) = path.split_once('/') else {
                return;
            };
            let text = [
                format!("{folder}\n"),
                format!("{folder}x"),
                "../".to_owned() + folder,
            ];
            let text = draws.pick(&text).clone();
            let said = format!("current is {text:?}");
            case.files.insert("current".into(), text.into_bytes());
            said
        }
        _ => {
            case.files.insert(path.clone(), Vec::new());
            format!("{path} emptied")
        }
    };
    case.story.push(said);
}

/// A copy of the generation of `path` with another sequence; sealed later, or foreign.
fn renumber(case: &mut Case, path: &str, draws: &mut Draws) -> String {
    let Some((folder, _)) = path.split_once('/') else {
        return "nothing".into();
    };
    let sequence = *draws.pick(&[0u32, 1, 3, 9999, 10_000, 123_456, u32::MAX]);
    let new = format!("g{sequence:04}-0123456789ab");
    let copies: Vec<(String, Vec<u8>)> = case
        .files
        .iter()
        .filter_map(|(path, bytes)| {
            let rest = path.strip_prefix(folder)?.strip_prefix('/')?;
            let mut bytes = bytes.clone();
            if rest == "manifest.json"
                && let Ok(mut manifest) = serde_json::from_slice::<serde_json::Value>(&bytes)
                && manifest.is_object()
            {
                manifest["sequence"] = sequence.into();
                bytes = serde_json::to_vec_pretty(&manifest).unwrap();
            }
            Some((format!("{new}/{rest}"), bytes))
        })
        .collect();
    case.files.extend(copies);
    format!("{folder} copied to {new}")
}

/// Something else than a file in the place of one.
fn special(case: &mut Case, draws: &mut Draws) {
    let mut paths: Vec<String> = case.files.keys().cloned().collect();
    paths.extend(["lock".to_owned(), "lock-learning".to_owned()]);
    let path = draws.pick(&paths).clone();
    // Nothing else can stand on the way to a file.
    if paths
        .iter()
        .any(|other| other.starts_with(&format!("{path}/")))
    {
        return;
    }
    let special = draws.pick(&NO_FILES).clone();
    case.replace(&path, special);
}

/// A change of the registry; if it is acknowledged, what is current then, opened.
fn change(store: &Store) -> Option<(String, Result<Answer, Refusal>)> {
    let id = store.retire("model-5").ok()?;
    Some((id.to_string(), served(store.root())))
}

fn judge_generation(generation: &Generation) -> Result<(), String> {
    let id = &generation.id;
    match (&generation.damage, &generation.checked) {
        (None, Err(error)) => return Err(format!("{id}: listed as whole, check says {error:?}")),
        (Some(damage), Ok(())) => {
            return Err(format!(
                "{id}: listed as damaged ({damage}), check says whole"
            ));
        }
        _ => (),
    }
    match (&generation.checked, &generation.alone) {
        (Ok(()), alone) if generation.ours == Some(true) => judge_whole(id, alone),
        (Err(_), Ok(answer)) if answer.generation == *id => {
            Err(format!("{id}: damaged by check, and it is served"))
        }
        (_, Ok(answer)) => judge_fallback(answer, id),
        _ => Ok(()),
    }
}

/// A generation that is whole opens, and its answers make sense. What only the encoder shows, an
/// adapter of other layers or one that its weights overflow with, `check` cannot know: that is passed
/// over, and said.
fn judge_whole(id: &str, opened: &Result<Answer, Refusal>) -> Result<(), String> {
    let unfit = |text: &str| {
        let overflows = text.contains("expected finite weights");
        overflows || text.starts_with("adapter.safetensors: base_model")
    };
    match opened {
        Ok(Answer {
            degraded: Some(why),
            ..
        }) if unfit(why) => Ok(()),
        Err(error) if unfit(&error.text) => Ok(()),
        Ok(answer) if answer.generation != id => Err(format!(
            "{id} is whole by check; served is {}: {:?}",
            answer.generation, answer.degraded
        )),
        Ok(answer) if answer.degraded.is_some() => Err(format!(
            "{id} is whole by check, and served as degraded: {:?}",
            answer.degraded
        )),
        Ok(answer) => answer.odd.as_ref().map_or(Ok(()), |odd| {
            Err(format!("{id} is whole by check, its answer: {odd}"))
        }),
        Err(error) if error.kind == ErrorKind::NoCandidate => Ok(()),
        Err(error) => Err(format!(
            "{id} is whole by check, and does not serve: {error:?}"
        )),
    }
}

/// Something else than `id` is served: that is said.
fn judge_fallback(answer: &Answer, id: &str) -> Result<(), String> {
    if answer.generation != id && answer.degraded.is_none() {
        return Err(format!(
            "{} is served in the place of {id}, and nothing says so",
            answer.generation
        ));
    }
    answer
        .odd
        .as_ref()
        .map_or(Ok(()), |odd| Err(format!("{}: {odd}", answer.generation)))
}

fn judge_opened(seen: &Seen, generations: &[Generation]) -> Result<(), String> {
    let whole = |generation: &&Generation| {
        let serves = |answer: &Answer| answer.generation == generation.id;
        generation.checked.is_ok() && generation.alone.as_ref().is_ok_and(serves)
    };
    let Some(current) = &seen.current else {
        return match &seen.opened {
            Ok(answer) => judge_fallback(answer, "what no `current` names"),
            Err(error) if generations.iter().any(|generation| whole(&generation)) => Err(format!(
                "`current` names nothing, a generation is whole, and none is served: {error:?}"
            )),
            Err(_) => Ok(()),
        };
    };
    let named = generations
        .iter()
        .find(|generation| generation.id == *current);
    if named.filter(whole).is_some() {
        return judge_whole(current, &seen.opened);
    }
    let sequence = current[1..]
        .split('-')
        .next()
        .and_then(|digits| digits.parse::<u32>().ok());
    let sequence = sequence.unwrap_or(u32::MAX);
    match &seen.opened {
        Ok(answer) => {
            judge_fallback(answer, current)?;
            let ancestor =
                named.is_some_and(|named| named.parent.as_ref() == Some(&answer.generation));
            let served = generations
                .iter()
                .find(|generation| generation.id == answer.generation);
            match served {
                Some(served) if served.checked.is_err() => {
                    Err(format!("{}: damaged by check, and it is served", served.id))
                }
                Some(served) if served.sequence > sequence && !ancestor => Err(format!(
                    "{current} is damaged; served is {}, which is newer",
                    served.id
                )),
                _ => Ok(()),
            }
        }
        Err(error) => {
            // One of another encoder may stand in the way: its files are right.
            let foreign = named.is_some_and(|named| named.ours == Some(false));
            let older = generations
                .iter()
                .find(|g| whole(g) && g.sequence < sequence);
            // So may one of an earlier version, which says what to do.
            let earlier = error.text.contains("was learned by an earlier version");
            match older.filter(|_| !foreign && !earlier) {
                Some(older) => Err(format!(
                    "{} is whole and older, and nothing is served: {error:?}",
                    older.id
                )),
                None => Ok(()),
            }
        }
    }
}

/// Changes of what was seen of a good store that must be noticed.
#[test]
fn false_sights_are_found() {
    let boundary = Stores::<Whole>::new();
    for base in ["built", "learned", "vectors"] {
        let folder = crate::common::Folder::new("sights");
        let store = folder.join("store");
        copy(&corpus_folder("stores").join(base), &store);
        let seen = boundary.observe(&store);
        boundary.judge(&seen).unwrap();
        assert!(seen.changed.is_some(), "{base}: no change was made");
        let refusal = || Refusal {
            kind: ErrorKind::Format,
            text: "torn".into(),
        };
        let last = |seen: &mut Seen| -> usize {
            let list = seen.generations.as_ref().unwrap();
            list.iter()
                .position(|g| Some(&g.id) == seen.current.as_ref())
                .unwrap()
        };
        let found = |what: &str, lie: &dyn Fn(&mut Seen, usize)| {
            let mut told = seen.clone();
            let at = last(&mut told);
            lie(&mut told, at);
            assert!(
                boundary.judge(&told).is_err(),
                "{base}: {what} is not noticed"
            );
        };
        found("a refusal to open", &|seen, _| seen.opened = Err(refusal()));
        found("another generation", &|seen, _| {
            seen.opened.as_mut().unwrap().generation = "g0000-0".into()
        });
        found("a degraded answer", &|seen, _| {
            seen.opened.as_mut().unwrap().degraded = Some("so".into())
        });
        found("an odd answer", &|seen, _| {
            seen.opened.as_mut().unwrap().odd = Some("NaN".into())
        });
        found("a check that fails", &|seen, at| {
            seen.generations.as_mut().unwrap()[at].checked = Err(refusal())
        });
        found("a list that differs", &|seen, at| {
            seen.generations.as_mut().unwrap()[at].damage = Some("x".into())
        });
        found("damage that is served", &|seen, at| {
            let generation = &mut seen.generations.as_mut().unwrap()[at];
            generation.damage = Some("x".into());
            generation.checked = Err(refusal());
        });
        found("whole, and not served", &|seen, at| {
            seen.generations.as_mut().unwrap()[at].alone = Err(refusal())
        });
        found("a change that is lost", &|seen, _| {
            seen.changed.as_mut().unwrap().1 = Err(refusal())
        });
        found("an error without words", &|seen, _| {
            seen.opened = Err(Refusal {
                kind: ErrorKind::Format,
                text: " ".into(),
            });
        });
    }
}
