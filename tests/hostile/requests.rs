//! What a host says: requests, options and settings, as values and as JSON.

use std::fmt::Write as _;
use std::path::Path;

use hubrouter::learn::{Experience, Settings};
use hubrouter::{Decision, DeviceChoice, ErrorKind, Options, Request, Router};
use serde_json::{Value, json};

use crate::case::Case;
use crate::common::{Folder, copy, toy::examples};
use crate::draws::Draws;
use crate::harness::{Boundary, corpus_folder};
use crate::mutate;
use crate::toy::{self, Answer, Refusal, judge_refused, served};

/// Prompts, alone and together: the same answers, of as many models as were asked for.
pub struct Requests {
    texts: Vec<String>,
    routers: Vec<Router>,
}

#[derive(Clone)]
pub struct RequestsSeen {
    asked: Vec<(usize, String)>,
    alone: Vec<Vec<Result<Outcome, Refusal>>>,
    together: Vec<Vec<Result<Outcome, Refusal>>>,
    /// Of each router.
    active: Vec<usize>,
}

/// A decision, as far as it is compared.
#[derive(Clone, PartialEq, Debug)]
struct Outcome {
    id: String,
    ranked: Vec<(u32, u32)>,
    margin: Option<u32>,
    tokens: usize,
    odd: Option<String>,
}

impl Requests {
    pub fn new() -> Self {
        let folder = corpus_folder("requests").join("prompts.json");
        let texts = serde_json::from_slice(&std::fs::read(folder).unwrap()).unwrap();
        let open = |name| Router::open(corpus_folder("stores").join(name), toy::options()).unwrap();
        Self {
            texts,
            routers: ["built", "learned"].map(open).into(),
        }
    }

    fn request(&self, draws: &mut Draws) -> Value {
        let mut text = String::new();
        for _ in 0..1 + draws.below(4) {
            let part = match draws.below(6) {
                0 => (*draws.pick(&mutate::TEXTS)).to_owned(),
                1 => any_text(draws),
                2 => draws.pick(&mutate::TEXTS).repeat(1 + draws.below(300)),
                _ => draws.pick(&self.texts).clone(),
            };
            text.push_str(&part);
        }
        if draws.one_in(40) {
            let long = draws.pick(&["!", "é", "漢", "🐦", "a", "word ", "! ", "\u{301}"]);
            text = long.repeat((1 << 20) / long.len());
        }
        let tops = [
            0usize,
            1,
            2,
            5,
            6,
            7,
            1000,
            u32::MAX as usize,
            usize::MAX - 1,
            usize::MAX,
        ];
        let mut request = json!({"prompt": text, "top": draws.pick(&tops), "prompt_id": draws.pick(&mutate::TEXTS)});
        if draws.one_in(6) {
            mutate::json(&mut request, draws);
        }
        request
    }
}

/// Characters of every part of Unicode.
fn any_text(draws: &mut Draws) -> String {
    let count = draws.below(60);
    let one = |draws: &mut Draws| {
        let end = *draws.pick(&[0x80u32, 0x800, 0x3000, 0x1_0000, 0x11_0000]);
        char::from_u32(u32::try_from(draws.next() % u64::from(end)).unwrap()).unwrap_or('\u{fffd}')
    };
    (0..count).map(|_| one(draws)).collect()
}

impl Boundary for Requests {
    type Seen = RequestsSeen;
    const NAME: &'static str = "requests";

    fn case(&self, draws: &mut Draws) -> Case {
        let mut case = Case::default();
        let mut lines = Vec::new();
        for _ in 0..1 + draws.below(6) {
            lines.extend(mutate::render(&self.request(draws), false));
            lines.push(b'\n');
        }
        case.files.insert("requests.jsonl".into(), lines);
        case
    }

    fn observe(&self, folder: &Path) -> RequestsSeen {
        let text = std::fs::read(folder.join("requests.jsonl")).unwrap();
        let requests: Vec<Request> = text
            .split(|byte| *byte == b'\n')
            .filter_map(|line| serde_json::from_slice(line).ok())
            .collect();
        let outcome = |answer: hubrouter::Result<Decision>| {
            answer
                .map(|decision| outcome(&decision))
                .map_err(Refusal::from)
        };
        let each = |router: &Router| {
            requests
                .iter()
                .map(|request| outcome(router.route(request)))
                .collect()
        };
        let all = |router: &Router| {
            router
                .route_batch(&requests)
                .into_iter()
                .map(outcome)
                .collect()
        };
        RequestsSeen {
            asked: requests
                .iter()
                .map(|request| (request.top, request.prompt_id.clone()))
                .collect(),
            alone: self.routers.iter().map(each).collect(),
            together: self.routers.iter().map(all).collect(),
            active: self
                .routers
                .iter()
                .map(|router| router.hub().active())
                .collect(),
        }
    }

    fn judge(&self, seen: &RequestsSeen) -> Result<(), String> {
        let answers = seen.alone.iter().zip(&seen.together).zip(&seen.active);
        for ((alone, together), active) in answers {
            if alone.len() != seen.asked.len() || together.len() != seen.asked.len() {
                return Err(format!(
                    "{} requests, {} answers",
                    seen.asked.len(),
                    together.len()
                ));
            }
            for (at, (one, other)) in alone.iter().zip(together).enumerate() {
                judge_refused(one)?;
                judge_refused(other)?;
                match (one, other) {
                    (Ok(one), Ok(other)) if one == other => {
                        judge_outcome(one, &seen.asked[at], *active)?
                    }
                    (Err(one), Err(_)) if one.kind == ErrorKind::InvalidRequest => (),
                    _ => return Err(format!("request {at}: alone {one:?}, in a batch {other:?}")),
                }
            }
        }
        Ok(())
    }
}

fn outcome(decision: &Decision) -> Outcome {
    Outcome {
        id: decision.prompt_id.clone(),
        ranked: decision
            .ranked
            .iter()
            .map(|model| (model.id.0, model.score.to_bits()))
            .collect(),
        margin: decision.margin.map(f32::to_bits),
        tokens: decision.tokens,
        odd: Answer::of(decision).odd,
    }
}

fn judge_outcome(outcome: &Outcome, asked: &(usize, String), active: usize) -> Result<(), String> {
    if outcome.id != asked.1 {
        return Err(format!(
            "asked as {:?}, answered as {:?}",
            asked.1, outcome.id
        ));
    }
    if outcome.ranked.len() != asked.0.min(active) {
        return Err(format!(
            "asked for {}, of {active}: {} ranked",
            asked.0,
            outcome.ranked.len()
        ));
    }
    if outcome.tokens > 512 || outcome.margin.is_none() {
        return Err(format!(
            "{} tokens, margin {:?}",
            outcome.tokens, outcome.margin
        ));
    }
    outcome.odd.clone().map_or(Ok(()), Err)
}

/// [`Options`] as JSON: what is read is written the same; what opens a router routes with it.
pub struct Hosts;

#[derive(Clone)]
pub struct HostsSeen {
    /// Read, written, read again: equal.
    same: Option<bool>,
    opened: Option<Result<(), Refusal>>,
    routed: Option<Result<Answer, Refusal>>,
}

impl Boundary for Hosts {
    type Seen = HostsSeen;
    const NAME: &'static str = "options";

    fn case(&self, draws: &mut Draws) -> Case {
        let mut options = json!(toy::options());
        options["max_tokens"] = json!(draws.pick(&[1usize, 2, 3, 16, 64, 65, usize::MAX]));
        if draws.one_in(3) {
            options["max_tokens"] = Value::Null;
        }
        let mut case = Case::default();
        let mut text = serde_json::to_vec_pretty(&options).unwrap();
        for _ in 0..draws.below(3) {
            let said = mutate::json_text(&mut text, &[], draws);
            case.story.push(said);
        }
        case.files.insert("options.json".into(), text);
        case
    }

    fn observe(&self, folder: &Path) -> HostsSeen {
        let text = std::fs::read(folder.join("options.json")).unwrap();
        let mut seen = HostsSeen {
            same: None,
            opened: None,
            routed: None,
        };
        let Ok(options) = serde_json::from_slice::<Options>(&text) else {
            return seen;
        };
        let again =
            serde_json::to_vec(&options).map(|text| serde_json::from_slice::<Options>(&text));
        seen.same = Some(again.is_ok_and(|again| again.is_ok_and(|again| again == options)));
        // Devices are another matter, and a thousand threads take their time.
        let small = options
            .threads
            .is_none_or(|threads| threads <= 4 || threads > 100_000);
        if options.device == DeviceChoice::Cpu && small {
            match Router::open(corpus_folder("stores").join("built"), options) {
                Ok(router) => {
                    seen.opened = Some(Ok(()));
                    let answer = router.route(&Request::new(toy::PROMPT));
                    seen.routed = Some(
                        answer
                            .map(|decision| Answer::of(&decision))
                            .map_err(Refusal::from),
                    );
                }
                Err(error) => seen.opened = Some(Err(error.into())),
            }
        }
        seen
    }

    fn judge(&self, seen: &HostsSeen) -> Result<(), String> {
        if seen.same == Some(false) {
            return Err("options change when they are written and read".into());
        }
        seen.opened.as_ref().map_or(Ok(()), judge_refused)?;
        match &seen.routed {
            Some(Ok(answer)) => answer.odd.clone().map_or(Ok(()), Err),
            Some(Err(error)) => Err(format!("a router that opens does not route: {error:?}")),
            None => Ok(()),
        }
    }
}

/// `key=value` of [`Settings`]: what all checks accept learns something that opens, or says why not.
pub struct Keys {
    store: Folder,
    names: Vec<(String, String)>,
}

#[derive(Clone)]
pub struct KeysSeen {
    refused: Vec<Refusal>,
    /// Settings that were accepted, written and read again: equal.
    same: bool,
    /// What was published.
    published: Option<Result<Answer, Refusal>>,
    learned: Option<Refusal>,
}

impl Keys {
    pub fn new() -> Self {
        let store = Folder::new("keys");
        copy(
            &corpus_folder("stores").join("learned"),
            &store.join("store"),
        );
        let base = json!(Settings::carve());
        let text = |value: &Value| {
            value
                .as_str()
                .map_or_else(|| value.to_string(), str::to_owned)
        };
        let names = base
            .as_object()
            .unwrap()
            .iter()
            .map(|(key, value)| (key.clone(), text(value)));
        Self {
            store,
            names: names.collect(),
        }
    }
}

impl Boundary for Keys {
    type Seen = KeysSeen;
    const NAME: &'static str = "settings";

    fn case(&self, draws: &mut Draws) -> Case {
        const VALUES: [&str; 34] = [
            "0",
            "-1",
            "1",
            "2",
            "3",
            "0.5",
            "0.999",
            "1.0001",
            "1e-46",
            "1e-30",
            "1e-6",
            "100",
            "1e6",
            "1e18",
            "1e25",
            "1e38",
            "1e39",
            "1e308",
            "1e400",
            "-1e39",
            "NaN",
            "inf",
            "2147483648",
            "18446744073709551615",
            "18446744073709551616",
            "true",
            "false",
            "all",
            "none",
            "text",
            "hashes",
            "embeddings",
            "",
            " 1",
        ];
        let mut lines = String::from("epochs=1\nbatch=8\nlora.r=4\n");
        for _ in 0..1 + draws.below(3) {
            let (key, usual) = draws.pick(&self.names).clone();
            let value = match draws.below(8) {
                0 => usual,
                1 => (*draws.pick(&mutate::TEXTS)).to_owned(),
                _ => (*draws.pick(&VALUES)).to_owned(),
            };
            writeln!(lines, "{key}={}", value.replace('\n', " ")).unwrap();
        }
        let mut case = Case::default();
        case.story.push(lines.replace('\n', " "));
        case.files.insert("settings.txt".into(), lines.into_bytes());
        case
    }

    fn observe(&self, folder: &Path) -> KeysSeen {
        let lines = std::fs::read_to_string(folder.join("settings.txt")).unwrap();
        let mut settings = Settings::carve();
        let mut seen = KeysSeen {
            refused: Vec::new(),
            same: true,
            published: None,
            learned: None,
        };
        for line in lines.lines() {
            let Some((key, value)) = line.split_once('=') else {
                continue;
            };
            if let Err(error) = settings.set(key, value) {
                seen.refused.push(error.into());
            }
        }
        if let Err(error) = settings.validate() {
            seen.refused.push(error.into());
            return seen;
        }
        let again =
            serde_json::to_vec(&settings).map(|text| serde_json::from_slice::<Settings>(&text));
        seen.same = again.is_ok_and(|again| again.is_ok_and(|again| again == settings));
        let store = folder.join("store");
        copy(&self.store.join("store"), &store);
        let experience = Experience {
            models: Vec::new(),
            examples: examples(2, 5),
        };
        match toy::learn(&store, &experience, settings, 60) {
            Ok(Some(id)) => {
                let answer = served(&store);
                let other = |answer: &Answer| answer.generation != id;
                seen.published = Some(match answer {
                    Ok(answer) if other(&answer) => {
                        let text = format!(
                            "{id} was acknowledged, {} is served: {:?}",
                            answer.generation, answer.degraded
                        );
                        Err(Refusal {
                            kind: ErrorKind::Mismatch,
                            text,
                        })
                    }
                    answer => answer,
                });
            }
            Ok(None) => (),
            Err(error) => {
                seen.learned = Some(error);
                // The old one stays.
                seen.published = Some(served(&store));
            }
        }
        seen
    }

    fn judge(&self, seen: &KeysSeen) -> Result<(), String> {
        seen.refused
            .iter()
            .chain(&seen.learned)
            .try_for_each(Refusal::judge)?;
        if !seen.same {
            return Err("settings change when they are written and read".into());
        }
        match &seen.published {
            Some(Ok(answer)) => {
                let wrong = answer.odd.clone().or_else(|| answer.degraded.clone());
                wrong.map_or(Ok(()), |what| {
                    Err(format!("{} was published: {what}", answer.generation))
                })
            }
            Some(Err(error)) => Err(format!("published, and does not serve: {error:?}")),
            None => Ok(()),
        }
    }
}

#[test]
fn false_sights_are_found() {
    let boundary = Requests::new();
    let folder = Folder::new("sights");
    let lines = "{\"prompt\":\"a bird\",\"top\":2,\"prompt_id\":\"x\"}\n{\"prompt\":\"\"}\n";
    std::fs::write(folder.join("requests.jsonl"), lines).unwrap();
    let seen = boundary.observe(&folder.0);
    boundary.judge(&seen).unwrap();
    let found = |what: &str, lie: &dyn Fn(&mut RequestsSeen)| {
        let mut told = seen.clone();
        lie(&mut told);
        assert!(boundary.judge(&told).is_err(), "{what} is not noticed");
    };
    found("another answer in a batch", &|seen| {
        seen.together[0][0].as_mut().unwrap().ranked[0].1 ^= 1
    });
    found("a missing answer", &|seen| drop(seen.together[1].pop()));
    found("a model too few", &|seen| {
        for answers in [&mut seen.alone[0], &mut seen.together[0]] {
            answers[0].as_mut().unwrap().ranked.pop();
        }
    });
    found("another id", &|seen| seen.asked[0].1 = "y".into());
    found("an answer to nothing", &|seen| {
        seen.alone[0][1] = seen.alone[0][0].clone()
    });

    let hosts = HostsSeen {
        same: Some(true),
        opened: Some(Ok(())),
        routed: None,
    };
    Hosts.judge(&hosts).unwrap();
    let refusal = || Refusal {
        kind: ErrorKind::Numeric,
        text: "torn".into(),
    };
    Hosts
        .judge(&HostsSeen {
            routed: Some(Err(refusal())),
            ..hosts.clone()
        })
        .unwrap_err();
    Hosts
        .judge(&HostsSeen {
            same: Some(false),
            ..hosts
        })
        .unwrap_err();

    let keys = Keys::new();
    let folder = folder.join("keys");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("settings.txt"), "epochs=1\nbatch=8\nlora.r=4\n").unwrap();
    let seen = keys.observe(&folder);
    keys.judge(&seen).unwrap();
    let answer = seen.published.clone().unwrap().unwrap();
    keys.judge(&KeysSeen {
        published: Some(Err(refusal())),
        ..seen.clone()
    })
    .unwrap_err();
    let odd = Answer {
        odd: Some("NaN".into()),
        ..answer
    };
    keys.judge(&KeysSeen {
        published: Some(Ok(odd)),
        ..seen.clone()
    })
    .unwrap_err();
    keys.judge(&KeysSeen {
        same: false,
        ..seen
    })
    .unwrap_err();
}
