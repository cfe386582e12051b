//! What comes in from other programs: a router's folder with its adapter, an adapter of PEFT.
//!
//! What comes in opens and routes; what is refused leaves the store as it was, and makes none.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use hubrouter::exchange::{adopt, export, import};
use hubrouter::{Encoder, Store};

use crate::case::Case;
use crate::common::{Folder, copy};
use crate::draws::Draws;
use crate::harness::{Boundary, corpus_folder};
use crate::toy::{self, Answer, Refusal, judge_refused, served};
use crate::{mutate, seal, tensors};

/// Files that an import reads.
const READ: [&str; 4] = [
    "router.json",
    "router.safetensors",
    "adapter/adapter_config.json",
    "adapter/adapter_model.safetensors",
];

pub struct Exchange {
    /// Routers in `router/..`, adapters of PEFT in `peft/..`.
    bases: Vec<Case>,
}

#[derive(Clone)]
pub struct Seen {
    /// A new store of the router, and its answer.
    imported: Option<Result<Result<Answer, Refusal>, Refusal>>,
    /// Something is in the new store's place after a refusal.
    left: bool,
    /// The store with what came in, and its answer.
    adopted: Result<Result<Answer, Refusal>, Refusal>,
    /// The store's ids before, and after a refusal.
    ids: [Vec<String>; 2],
}

impl Exchange {
    pub fn new() -> Self {
        let folder = Folder::new("exchange-base");
        let mut bases = Vec::new();
        for name in ["learned", "built"] {
            let store = Store::open(corpus_folder("stores").join(name)).unwrap();
            let to = folder.join(name);
            export(&store, &store.current().unwrap(), &to, &toy::options()).unwrap();
            let mut case = Case::read(&to);
            case.files.retain(|path, _| READ.contains(&path.as_str()));
            let under = |prefix: &str, cut: &str| {
                let files = case.files.iter().filter_map(|(path, bytes)| {
                    let rest = path.strip_prefix(cut)?;
                    Some((format!("{prefix}/{rest}"), bytes.clone()))
                });
                Case {
                    files: files.collect(),
                    ..Case::default()
                }
            };
            bases.push(under("router", ""));
            if name == "learned" {
                let mut peft = under("peft", "adapter/");
                // Not the one that the store has.
                let config = peft.files.get_mut("peft/adapter_config.json").unwrap();
                let text = String::from_utf8(config.clone()).unwrap();
                *config = text.replace("32.0", "16.0").into_bytes();
                bases.push(peft);
            }
        }
        Self { bases }
    }
}

impl Boundary for Exchange {
    type Seen = Seen;
    const NAME: &'static str = "exchange";

    fn case(&self, draws: &mut Draws) -> Case {
        let mut case = draws.pick(&self.bases).clone();
        for _ in 0..1 + draws.below(3) {
            change(&mut case, draws.pick(&self.bases), draws);
        }
        if case.files.contains_key("router/router.json") && !draws.one_in(6) {
            let router = seal::sealed_as(&case, "router", "router.json");
            case.files.insert("router/router.json".into(), router);
            case.story.push("hashes made right".into());
        }
        case.replace_sometimes(draws);
        case
    }

    fn observe(&self, folder: &Path) -> Seen {
        let made = folder.join("made");
        fs::create_dir(&made).unwrap();
        let (router, store) = (folder.join("router"), made.join("new"));
        let imported = router.exists().then(|| {
            let encoder = Encoder::open(toy::bundle(), &toy::options()).unwrap();
            let encoder = Arc::new(encoder);
            let imported = import(&router, &store, &[], &encoder, &mut |_, _| {});
            imported.map(|_| served(&store)).map_err(Refusal::from)
        });
        let left = matches!(imported, Some(Err(_))) && fs::read_dir(&made).unwrap().count() > 0;
        let own = made.join("own");
        // With a memory that moves, and with a hub whose models have rows in the router.
        let target = if router.exists() { "built" } else { "learned" };
        copy(&corpus_folder("stores").join(target), &own);
        let open = Store::open(&own).unwrap();
        let ids = || -> Vec<String> {
            let ids = open.ids().unwrap();
            ids.iter().map(ToString::to_string).collect()
        };
        let before = ids();
        let from = match router.exists() {
            true => router,
            false => folder.join("peft"),
        };
        let adopted = adopt(&open, &from, &[], false, &toy::options());
        let after = match &adopted {
            Ok(_) => before.clone(),
            Err(_) => ids(),
        };
        Seen {
            imported,
            left,
            adopted: adopted.map(|_| served(&own)).map_err(Refusal::from),
            ids: [before, after],
        }
    }

    fn judge(&self, seen: &Seen) -> Result<(), String> {
        if seen.left {
            return Err("a refused import left something".into());
        }
        if seen.ids[0] != seen.ids[1] {
            return Err(format!("a refused adapter left {:?}", seen.ids[1]));
        }
        for came in seen.imported.iter().chain([&seen.adopted]) {
            judge_refused(came)?;
            match came {
                Ok(Err(error)) => return Err(format!("came in, and does not open: {error:?}")),
                Ok(Ok(answer)) => {
                    if let Some(odd) = &answer.odd {
                        return Err(format!("came in, and answers with {odd}"));
                    }
                    if let Some(degraded) = &answer.degraded {
                        return Err(format!("came in, and is not served: {degraded}"));
                    }
                }
                Err(_) => {}
            }
        }
        Ok(())
    }
}

/// Changes one file: the small ones as often as the large ones.
fn change(case: &mut Case, other: &Case, draws: &mut Draws) {
    let paths: Vec<String> = case.files.keys().cloned().collect();
    if paths.is_empty() {
        return;
    }
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
        _ => tensors::tensors(bytes, &others, draws),
    };
    case.story.push(format!("{path}: {said}"));
}

#[test]
fn false_sights_are_found() {
    let boundary = Exchange::new();
    let folder = Folder::new("exchange-sights");
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
        let refusal = || Refusal {
            kind: hubrouter::ErrorKind::Format,
            text: "torn".into(),
        };
        found("what is left", &|seen| seen.left = true);
        found("a generation of a refused adapter", &|seen| {
            seen.ids[1].push("g0004-0123456789ab".into());
        });
        found("a store that does not open", &|seen| {
            seen.adopted = Ok(Err(refusal()));
        });
        if let Some(Ok(Ok(_))) = &seen.imported {
            found("an odd answer", &|seen| {
                if let Some(Ok(Ok(answer))) = &mut seen.imported {
                    answer.odd = Some("every score is 0".into());
                }
            });
        }
    }
}
