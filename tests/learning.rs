//! Learning when something goes wrong or is not what it seems: nothing that was learned is lost,
//! nothing is learned that was not meant, and the report says what it knows.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

mod common;

use std::fs;
use std::time::Duration;

use common::cpu;
use common::toy::{self, Setup, examples, learn, setup, setup_with};
use hubrouter::learn::{
    Control, Example, Experience, Learner, Outcome, Privacy, Report, Settings, Status,
    read_examples, remembered,
};
use hubrouter::{
    ErrorKind, GenerationId, ImportOptions, ModelCard, NewModel, Request, Router, Store,
};

/// The learned score alone, over two phases.
fn settings(pairs: &[(&str, &str)]) -> Settings {
    toy::settings(&[&[("memory", "false")], pairs].concat())
}

fn learner(setup: &Setup, settings: Settings) -> Learner {
    let options = cpu(1).encoder(&setup.encoder);
    Learner::open(&setup.store, None, settings, options).unwrap()
}

fn learned(outcome: Outcome) -> Report {
    match outcome {
        Outcome::Learned(report) => *report,
        other => panic!("stopped: {other:?}"),
    }
}

fn state(setup: &Setup) -> std::path::PathBuf {
    setup.store.join("resume.safetensors")
}

fn current(setup: &Setup) -> GenerationId {
    Store::open(&setup.store).unwrap().current().unwrap()
}

/// How many steps a call made.
fn steps_of(learner: &mut Learner, experience: &Experience) -> (Report, usize) {
    let mut steps = 0;
    let outcome = learner.learn(experience, None, &mut |status| {
        steps += usize::from(status.loss.is_some());
        Control::Continue
    });
    (learned(outcome.unwrap()), steps)
}

/// Everything that an update depends on behind its last step: Fisher weights over sets that were
/// mined, rows that sleep, a coreset, a memory that follows.
fn deep() -> Settings {
    toy::settings(&[
        ("regulariser", "ewc"),
        ("anchor.phase", "both"),
        ("ewc.lambda", "1e5"),
        ("candidates", "sampled"),
        ("candidates.k", "4"),
        ("candidates.hard", "1"),
        ("candidates.semantic", "1"),
        ("candidates.far", "1"),
        ("mining.every", "3"),
        ("lora.dropout", "0.1"),
        ("replay.ratio", "0.5"),
    ])
}

/// A store that has learned once by these settings.
fn learned_once(settings: &Settings) -> Setup {
    let setup = setup("learned once");
    learn(&setup, examples(0, 6), settings.clone(), cpu(1));
    setup
}

#[test]
fn behind_its_last_step_an_update_is_only_measured_and_published() {
    for settings in [settings(&[]), deep()] {
        let experience = toy::experience(examples(6, 3));
        let setup = learned_once(&settings);
        let mut first = learner(&setup, settings.clone());
        let (before, steps) = steps_of(&mut first, &experience);
        assert!(steps > 0 && steps == before.steps);
        // As if the process had died here.
        drop(first);
        assert!(state(&setup).exists());
        let mut second = learner(&setup, settings.clone());
        let (after, steps) = steps_of(&mut second, &experience);
        assert_eq!((steps, after.steps), (0, before.steps));
        assert_eq!(after.accuracy.new_after, before.accuracy.new_after);
        let got = second.commit().unwrap();
        assert!(!state(&setup).exists());

        let whole = learned_once(&settings);
        let (want, _) = learn(&whole, examples(6, 3), settings, cpu(2));
        assert_eq!(got, want);
    }
}

/// `current` that cannot be replaced stands for every failure between writing and renaming.
#[test]
fn what_cannot_be_published_is_kept_and_the_error_says_so() {
    let settings = settings(&[]);
    let (setup, whole) = (learned_once(&settings), learned_once(&settings));
    let (want, _) = learn(&whole, examples(6, 3), settings.clone(), cpu(1));
    let experience = toy::experience(examples(6, 3));
    let named = fs::read(setup.store.join("current")).unwrap();
    let blocked = |blocked: bool| {
        let path = setup.store.join("current");
        if blocked {
            fs::remove_file(&path).unwrap();
            fs::create_dir(&path).unwrap();
        } else {
            fs::remove_dir(&path).unwrap();
            fs::write(&path, &named).unwrap();
        }
    };
    let mut first = learner(&setup, settings.clone());
    steps_of(&mut first, &experience);
    blocked(true);
    let error = first.commit().unwrap_err().to_string();
    assert!(error.contains("what was learned is kept"), "{error}");
    blocked(false);
    let mut second = learner(&setup, settings);
    assert_eq!(steps_of(&mut second, &experience).1, 0);
    assert_eq!(second.commit().unwrap(), want);
}

#[test]
fn a_budget_that_ended_an_update_has_ended_it_the_next_time_too() {
    let setup = setup("budget");
    let experience = toy::experience(examples(0, 6));
    let run = |budget: Option<Duration>, pause: u64| {
        let mut learner = learner(&setup, settings(&[]));
        let mut steps = 0;
        let outcome = learner.learn(&experience, budget, &mut |status: &Status| {
            steps += usize::from(status.loss.is_some());
            std::thread::sleep(Duration::from_millis(pause));
            Control::Continue
        });
        (learned(outcome.unwrap()), steps)
    };
    let (first, steps) = run(Some(Duration::from_millis(50)), 20);
    assert!(steps > 0 && first.steps == steps, "{steps}");
    let (again, more) = run(Some(Duration::from_secs(3600)), 0);
    assert_eq!((again.steps, more), (steps, 0));
    // Without a budget there is more to learn.
    let (whole, rest) = run(None, 0);
    assert!(rest > 0 && whole.steps == steps + rest);
}

#[test]
fn the_state_is_written_while_learning() {
    let settings = deep();
    let (setup, whole) = (learned_once(&settings), learned_once(&settings));
    let (want, report) = learn(&whole, examples(6, 3), settings.clone(), cpu(1));
    let experience = toy::experience(examples(6, 3));
    let copy = setup.folder.join("copy");
    let mut first = learner(&setup, settings.clone()).save_every(Duration::ZERO);
    let outcome = first.learn(&experience, None, &mut |status| {
        if status.loss.is_some() && state(&setup).exists() && !copy.exists() {
            fs::copy(state(&setup), &copy).unwrap();
        }
        Control::Continue
    });
    learned(outcome.unwrap());
    drop(first);
    // As if the process had died when that was the newest state.
    fs::rename(&copy, state(&setup)).unwrap();
    let mut second = learner(&setup, settings);
    let (_, steps) = steps_of(&mut second, &experience);
    assert!(steps > 0 && steps < report.steps, "{steps}");
    assert_eq!(second.commit().unwrap(), want);
}

/// A folder in its place stands for a disk that is full.
#[test]
fn a_state_that_cannot_be_written_ends_nothing() {
    let settings = settings(&[]);
    let (setup, whole) = (learned_once(&settings), learned_once(&settings));
    let (want, _) = learn(&whole, examples(6, 3), settings.clone(), cpu(1));
    let experience = toy::experience(examples(6, 3));
    let full = || {
        let mut learner = learner(&setup, settings.clone()).save_every(Duration::ZERO);
        let outcome = learner.learn(&experience, None, &mut |status| {
            if status.loss.is_some() && !state(&setup).is_dir() {
                let _ = fs::remove_file(state(&setup));
                fs::create_dir(state(&setup)).unwrap();
            }
            Control::Continue
        });
        learned(outcome.unwrap());
        learner
    };
    // There is room again by the time that publishing fails: the state is written then.
    let first = full();
    fs::remove_dir(state(&setup)).unwrap();
    let named = fs::read(setup.store.join("current")).unwrap();
    fs::remove_file(setup.store.join("current")).unwrap();
    fs::create_dir(setup.store.join("current")).unwrap();
    let error = first.commit().unwrap_err().to_string();
    assert!(error.contains("what was learned is kept"), "{error}");
    fs::remove_dir(setup.store.join("current")).unwrap();
    fs::write(setup.store.join("current"), named).unwrap();
    let mut second = learner(&setup, settings.clone());
    assert_eq!(steps_of(&mut second, &experience).1, 0);
    drop(second);
    fs::remove_file(state(&setup)).unwrap();
    // Without room for the state, and with room for the child, it is published.
    assert_eq!(full().commit().unwrap(), want);
}

#[test]
fn a_dry_run_leaves_nothing() {
    let setup = setup("dry");
    let mut learner = learner(&setup, settings(&[]))
        .dry_run()
        .save_every(Duration::ZERO);
    let (report, _) = steps_of(&mut learner, &toy::experience(examples(0, 6)));
    assert!(report.steps > 0 && !state(&setup).exists());
    let error = learner.commit().unwrap_err().to_string();
    assert!(error.contains("a dry run"), "{error}");
    let generations = Store::open(&setup.store).unwrap().ids().unwrap();
    assert_eq!(generations.len(), 1);
}

#[test]
fn a_refused_child_is_kept_beside_and_can_be_published() {
    let settings = settings(&[("epochs", "20")]);
    let setup = learned_once(&settings);
    let parent = current(&setup);
    let experience = toy::experience(examples(6, 3));
    let mut refused = learner(&setup, settings.clone()).max_forgetting(-101.0);
    let (report, _) = steps_of(&mut refused, &experience);
    assert!(report.refused);
    let lost = report.forgetting.unwrap();
    assert!(lost.n > 0 && Some(lost.n) == report.accuracy.old_before.map(|a| a.n));
    let beside = refused.keep_beside().unwrap();
    let store = Store::open(&setup.store).unwrap();
    assert_eq!(store.current().unwrap(), parent);
    assert_eq!(store.parent(&beside).unwrap(), parent);
    // With another gate it is not learned again.
    let mut allowed = learner(&setup, settings.clone()).max_forgetting(101.0);
    let (report, steps) = steps_of(&mut allowed, &experience);
    assert!(!report.refused && steps == 0);
    assert_eq!(allowed.commit().unwrap(), beside);
    store.set_current(&parent).unwrap();
    // After a look it is taken as it is.
    store.set_current(&beside).unwrap();
    let router = Router::open(&setup.store, cpu(1).encoder(&setup.encoder)).unwrap();
    let decision = router.route(&Request::new("route dutch number 6")).unwrap();
    assert_eq!(decision.revisions.generation, beside);
}

/// What an update needs of the hub stays in the child, and what was changed of it meanwhile too.
#[test]
fn changes_of_the_hub_are_carried_over_where_that_is_exact() {
    let settings = settings(&[]);
    let (setup, whole) = (learned_once(&settings), learned_once(&settings));
    let (want, _) = learn(&whole, examples(6, 3), settings.clone(), cpu(1));
    let experience = toy::experience(examples(6, 3));
    let store = Store::open(&setup.store).unwrap();
    let mut learner = self::learner(&setup, settings.clone());
    steps_of(&mut learner, &experience);
    store.retire("model-1").unwrap();
    store.rename("model-2", "second").unwrap();
    let changed = store.alias("model-3", "third").unwrap();
    store.prune(0, false).unwrap();
    let child = learner.commit().unwrap();
    assert_eq!(store.current().unwrap(), child);
    assert_eq!(store.parent(&child).unwrap(), changed);
    let hub = store.hub(&child).unwrap();
    assert_eq!((hub.len(), hub.active()), (9, 8));
    for (name, id) in [("second", 2), ("model-2", 2), ("third", 3), ("model-8", 8)] {
        assert_eq!(hub.resolve(name).unwrap().0, id, "{name}");
    }
    assert!(hub.get(hub.find("model-1").unwrap()).unwrap().retired);
    // All else is what was learned.
    let part = |setup: &Setup, id: &GenerationId, name: &str| {
        fs::read(setup.store.join(id.as_str()).join(name)).unwrap()
    };
    for name in ["head.safetensors", "adapter.safetensors", "replay.jsonl"] {
        assert!(
            part(&setup, &child, name) == part(&whole, &want, name),
            "{name}"
        );
    }

    // A name that the child gives itself: both are there, one beside the other.
    store.set_current(&changed).unwrap();
    let mut learner = self::learner(&setup, settings);
    steps_of(&mut learner, &experience);
    let taken = store.alias("model-4", "model-7").unwrap();
    let error = learner.commit().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(
        error.to_string().contains("is published beside it"),
        "{error}"
    );
    assert_eq!(store.current().unwrap(), taken);
}

/// Whether any file of a generation holds `text`.
fn holds(setup: &Setup, id: &GenerationId, text: &str) -> bool {
    let files = fs::read_dir(setup.store.join(id.as_str())).unwrap();
    files.into_iter().any(|file| {
        let bytes = fs::read(file.unwrap().path()).unwrap();
        bytes
            .windows(text.len())
            .any(|part| part == text.as_bytes())
    })
}

#[test]
fn less_privacy_before_leaves_nothing_behind() {
    for (privacy, vectors) in [(Privacy::Embeddings, true), (Privacy::Hashes, false)] {
        let word = if vectors { "embeddings" } else { "hashes" };
        let setup = setup("withheld");
        // Enough prompts that some are held out.
        let all: Vec<Example> = (0..4).flat_map(|n| numbered(examples(0, 6), n)).collect();
        let text = [("replay.ratio", "1")];
        let (first, _) = learn(&setup, all.clone(), toy::settings(&text), cpu(1));
        let store = Store::open(&setup.store).unwrap();
        let kept = remembered(&store, &first).unwrap();
        assert!(kept.replay.len() > 60 && !kept.held_out.is_empty());
        assert!(
            all.iter()
                .all(|example| holds(&setup, &first, &example.prompt))
        );

        let quiet = toy::settings(&[("replay.privacy", word), ("replay.ratio", "1")]);
        let (second, report) = learn(&setup, examples(6, 3), quiet.clone(), cpu(1));
        for example in all.iter().chain(&examples(6, 3)) {
            assert!(!holds(&setup, &second, &example.prompt), "{privacy:?}");
        }
        // What is earlier is still learned again and measured in this update, from the parent's.
        assert_eq!(report.replayed, kept.replay.len());
        assert_eq!(report.forgetting.unwrap().n, kept.held_out.len());
        let withheld = report.withheld.unwrap();
        assert_eq!(withheld.privacy, privacy);
        assert_eq!((withheld.texts, withheld.vectors), (kept.replay.len(), 0));
        // What is seen of those that are held out is no text.
        let lost = if vectors { 0 } else { kept.held_out.len() };
        assert_eq!(withheld.held_out, lost);
        let left = remembered(&store, &second).unwrap();
        assert!(left.held_out.iter().all(|entry| entry.text.is_none()));
        // What was seen of this update's own is no text.
        assert_eq!(left.held_out.is_empty(), !vectors);
        assert!(left.replay.len() > kept.replay.len());
        // Vectors are learned again, hashes are not.
        let (_, report) = learn(&setup, examples(0, 3), quiet.clone(), cpu(1));
        let replayed = if vectors { left.replay.len() } else { 0 };
        assert_eq!(report.replayed, replayed);
        // What was seen by an encoder that is trained once more measures nothing.
        let lost = report.withheld.map_or(0, |withheld| withheld.held_out);
        assert_eq!(lost, left.held_out.len());
    }
}

/// The examples with a number behind their prompts.
fn numbered(examples: Vec<Example>, n: usize) -> Vec<Example> {
    let numbered = |example: Example| {
        let mut numbered = Example::new(format!("{} {n}", example.prompt), example.model_name);
        numbered.domain = example.domain;
        numbered
    };
    examples.into_iter().map(numbered).collect()
}

#[test]
fn vectors_made_of_kept_texts_are_those_of_the_prompts() {
    let quiet = || toy::settings(&[("replay.privacy", "embeddings"), ("replay.ratio", "1")]);
    let lines = |setup: &Setup, id: &GenerationId| -> Vec<String> {
        let path = setup.store.join(id.as_str()).join("replay.jsonl");
        let text = fs::read_to_string(path).unwrap();
        let first = |line: &&str| line.contains("\"experience\":1");
        text.lines().filter(first).map(str::to_owned).collect()
    };
    let from_text = setup("from text");
    let ratio = [("replay.ratio", "1")];
    learn(&from_text, examples(0, 6), toy::settings(&ratio), cpu(1));
    let (id, _) = learn(&from_text, examples(6, 3), quiet(), cpu(1));
    let at_once = setup("at once");
    let (want, _) = learn(&at_once, examples(0, 6), quiet(), cpu(2));
    let want = lines(&at_once, &want);
    assert!(want.len() > 15 && want.iter().all(|line| line.contains("embedding")));
    assert_eq!(lines(&from_text, &id), want);
}

#[test]
fn a_slip_makes_no_model_and_no_domain() {
    let setup = setup("slips");
    let named = |name: &str, domain: Option<&str>| {
        let mut example = Example::new("what is this?", name);
        example.domain = domain.map(str::to_owned);
        let mut all = examples(0, 6);
        all.push(example);
        toy::experience(all)
    };
    for (name, domain, says) in [
        (
            "modle-3",
            Some("Translation"),
            "example 25: model \"modle-3\" is not in the hub; did you mean \"model-3\"? --introduce adds it",
        ),
        ("Model-3", Some("Translation"), "did you mean \"model-3\"?"),
        (
            "acme/model-3",
            Some("Translation"),
            "did you mean \"model-3\"?",
        ),
        (
            "Model-3",
            None,
            "did you mean \"model-3\"? Else introduce it with --models",
        ),
        (
            "model-3",
            Some("Translatoin"),
            "example 25: domain \"Translatoin\" is no model's in the hub; did you mean \"Translation\"?",
        ),
    ] {
        let experience = named(name, domain);
        let mut learner = learner(&setup, settings(&[]));
        let looked = learner.look_over(&experience).unwrap_err();
        let error = learner
            .learn(&experience, None, &mut |_| Control::Continue)
            .unwrap_err();
        assert_eq!(error.to_string(), looked.to_string());
        assert_eq!(error.kind(), ErrorKind::InvalidRequest);
        assert!(error.to_string().contains(says), "{error}");
    }
    let dry = |introduce: bool, experience: &Experience| {
        let learner = learner(&setup, settings(&[])).introduce(introduce);
        steps_of(&mut learner.dry_run(), experience).0
    };
    // What comes with a card is meant, and what is asked for is done.
    let mut with_card = named("modle-3", Some("Translation"));
    let card = ModelCard::new("modle-3", "Translation");
    with_card.models.push(NewModel::from(&card));
    let report = dry(false, &with_card);
    assert_eq!(
        (report.models_added, report.models_introduced.len()),
        (1, 0)
    );
    let report = dry(true, &named("modle-3", Some("Translatoin")));
    assert_eq!(report.models_introduced, ["modle-3"]);
    assert_eq!(report.models_added, 1);
    // Another number is another model.
    let report = dry(false, &named("model-13", Some("Translation")));
    assert_eq!(report.models_introduced, ["model-13"]);
    assert!(report.remarks.is_empty());
}

#[test]
fn what_is_odd_is_said_before_and_after() {
    let setup = setup("odd");
    let mut all = examples(0, 6);
    all[3].domain = Some("Graph Machine Learning".to_owned());
    all.push(Example::new(all[0].prompt.to_uppercase(), "model-1"));
    let experience = toy::experience(all);
    let mut learner = learner(&setup, settings(&[])).dry_run();
    let said = learner.look_over(&experience).unwrap();
    assert!(
        said[0].starts_with("1 of 25 examples have another domain")
            && said[0].contains("example 4"),
        "{said:?}"
    );
    assert!(
        said[1].contains("examples 1 and 25: \"model-0\" and \"model-1\""),
        "{said:?}"
    );
    assert_eq!(steps_of(&mut learner, &experience).0.remarks, said);
}

#[test]
fn what_is_not_known_of_forgetting_is_said() {
    let setup = setup("unknown");
    let all: Vec<Example> = (0..4).flat_map(|n| numbered(examples(0, 6), n)).collect();
    let (_, first) = learn(&setup, all, settings(&[]), cpu(1));
    let nothing = "nothing was learned before that could be forgotten";
    assert_eq!(first.forgetting_unknown.as_deref(), Some(nothing));
    assert!(first.forgetting.is_none() && !first.refused);
    let held = first.accuracy.new_after.unwrap().n;
    assert_eq!(first.examples + held, 96);
    let (_, second) = learn(&setup, examples(6, 3), settings(&[]), cpu(1));
    assert!(second.forgetting_unknown.is_none());
    assert_eq!(second.forgetting.unwrap().n, held);
    let json = serde_json::to_value(&second).unwrap();
    assert_eq!(json["accuracy"]["old_after"]["n"], held);
    assert!(json["kept_beside"].is_null() && json["withheld"].is_null());
}

/// An update that came before, and none of its prompts to measure on.
#[test]
fn what_cannot_be_measured_is_not_published_unasked() {
    let unknown = "no earlier prompt is kept: forgetting cannot be known";
    let parent = learned_once(&settings(&[("hold_out", "false")]));
    let experience = toy::experience(examples(6, 3));
    for allowed in [false, true] {
        let mut learner = learner(&parent, settings(&[])).allow_unmeasured(allowed);
        let (report, _) = steps_of(&mut learner, &experience);
        assert_eq!(report.forgetting_unknown.as_deref(), Some(unknown));
        assert_eq!(report.refused, !allowed);
        match learner.commit() {
            Ok(id) => assert!(allowed && current(&parent) == id),
            Err(error) => assert!(!allowed && error.kind() == ErrorKind::Refused, "{error}"),
        }
    }
    // Of the first update's own some are held out by now.
    let mut learner = learner(&parent, settings(&[]));
    let (report, _) = steps_of(&mut learner, &toy::experience(examples(0, 3)));
    assert!(!report.refused && report.forgetting.is_some());
}

/// Steps so long that what they lead to is finite, and has no direction in f32.
#[test]
fn rows_without_a_direction_are_refused_and_the_setting_named() {
    let setup = setup("rows");
    let wild = settings(&[
        ("hold_out", "false"),
        ("lr.router", "constant"),
        ("lr.e", "1000"),
        ("weight_decay", "1000"),
        ("epochs", "2"),
    ]);
    let mut learner = learner(&setup, wild);
    let error = learner
        .learn(&toy::experience(examples(0, 6)), None, &mut |_| {
            Control::Continue
        })
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Numeric, "{error}");
    let says = "weight_decay = 1e3 is probably too large (the recipe edge has 1e-3)";
    assert!(error.to_string().contains(says), "{error}");
    assert_eq!(Store::open(&setup.store).unwrap().ids().unwrap().len(), 1);
}

/// Nothing is held out and there is no memory: nothing but publishing would open the child.
#[test]
fn adapters_that_do_not_fit_their_encoder_are_not_published() {
    let mut import = ImportOptions::default();
    import.dtype = Some("f16".to_owned());
    let setup = setup_with("adapters", &import);
    let wild = settings(&[("hold_out", "false"), ("lr.lora", "300"), ("epochs", "3")]);
    for dry_run in [true, false] {
        let mut learner = learner(&setup, wild.clone());
        if dry_run {
            learner = learner.dry_run();
        }
        let error = learner
            .learn(&toy::experience(examples(0, 6)), None, &mut |_| {
                Control::Continue
            })
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Numeric, "{error}");
        let says = "lr.lora = 3e2 is probably too large";
        assert!(error.to_string().contains(says), "{error}");
    }
    assert_eq!(Store::open(&setup.store).unwrap().ids().unwrap().len(), 1);
}

#[test]
fn a_leading_instruction_mark_is_no_part_of_a_prompt() {
    let setup = setup("marks");
    let path = setup.folder.join("examples.jsonl");
    let write = |mark: &str| {
        let lines = examples(0, 6).into_iter().map(|example| {
            let line = serde_json::json!({
                "instruction": format!("{mark}{}", example.prompt),
                "model_name": example.model_name,
            });
            format!("{line}\n")
        });
        fs::write(&path, lines.collect::<String>()).unwrap();
        read_examples(&path).unwrap()
    };
    let (marked, plain) = (write("###Instruction: "), write(""));
    assert_eq!(marked, plain);
    let (id, _) = learn(&setup, marked, settings(&[]), cpu(1));
    assert!(!holds(&setup, &id, "nstruction:"));
}

#[cfg(feature = "cli")]
mod by_the_command {
    use std::io::Read as _;
    use std::process::Stdio;

    use super::*;
    use crate::common::Folder;
    use crate::common::command::{
        current, failed, hubrouter, learnable, learning, lines, run, succeeded, text,
    };

    #[test]
    fn a_refused_child_is_named_and_taken_after_a_look() {
        let folder = Folder::new("beside");
        let (store, bundle, new) = learnable(&folder);
        let learn = |more: &[&str]| run(&learning(&store, &bundle, &new, more));
        let quick = ["--set", "epochs=2"];
        succeeded(learn(&quick));
        let parent = current(&store);
        let gate = [&quick[..], &["--max-forgetting=-101", "--json"]].concat();
        let output = learn(&gate);
        assert_eq!(output.status.code(), Some(3));
        let report = &lines(&output)[0];
        let id = report["kept_beside"].as_str().unwrap().to_owned();
        assert!(report["generation"].is_null() && report["refused"] == true);
        let says = text(&output.stderr);
        let n = report["forgetting"]["n"].as_u64().unwrap();
        for part in [
            &format!("refused: domain accuracy on {n} held-out prompt"),
            " of earlier updates fell by ",
            "which is more than -101",
            &format!("{parent} stays current"),
            &format!("`hubrouter generation rollback --to {id}` makes it current"),
        ] {
            assert!(says.contains(part), "{part:?} is not in {says}");
        }
        assert_eq!(current(&store), parent);
        let back = ["generation", "rollback", "--router", &store, "--to", &id];
        succeeded(run(&back));
        assert_eq!(current(&store), id);
        let routed = ["route", "--router", &store, "--encoder", &bundle, "--json"];
        let routed = run(&[&routed[..], &["--device", "cpu", "prompt 3 about birds"]].concat());
        assert_eq!(lines(&succeeded(routed))[0]["generation"], id.as_str());
        // Not a dry run's.
        succeeded(run(&[
            "generation",
            "rollback",
            "--router",
            &store,
            "--to",
            &parent,
        ]));
        let dry = learn(&[&gate[..], &["--dry-run"]].concat());
        assert_eq!(dry.status.code(), Some(3));
        assert!(lines(&dry)[0]["kept_beside"].is_null());
    }

    #[test]
    fn the_answer_has_counts_names_and_what_is_not_known() {
        let folder = Folder::new("answer");
        let (store, bundle, new) = learnable(&folder);
        let learn = |more: &[&str]| run(&learning(&store, &bundle, &new, more));
        let quick = ["--set", "epochs=1"];
        let said = text(&succeeded(learn(&quick)).stdout);
        let head = said.lines().next().unwrap();
        let heads: Vec<&str> = head.split_whitespace().collect();
        assert_eq!(
            heads,
            ["held-out", "prompts", "n", "model", "family", "domain"]
        );
        for part in [
            "\nnothing was learned before that could be forgotten\n",
            ", trained in ",
            "; 1 model added; ",
            "\nintroduced by examples, without a card: dogs\n",
        ] {
            assert!(said.contains(part), "{part:?} is not in {said}");
        }
        let quiet = [&quick[..], &["--set", "replay.privacy=hashes"]].concat();
        let said = text(&succeeded(learn(&quiet)).stdout);
        let part = "replay.privacy = hashes: the parent keeps, and this generation does not: ";
        assert!(said.contains(part), "{said}");
        let between = "domain accuracy forgotten: ";
        assert!(said.contains(between), "{said}");
        // Nothing that was held out is kept by now: refused unless it is meant.
        let refused = learn(&quiet);
        let why = "forgetting cannot be known, and --allow-unmeasured was not given";
        failed(refused, 3, &[why, "is kept beside it"]);
        let meant = [&quiet[..], &["--allow-unmeasured"]].concat();
        let said = text(&succeeded(learn(&meant)).stdout);
        assert!(said.contains("\nno earlier prompt is kept: "), "{said}");
        // The recipe that is usual trains nothing by so few.
        let usual = [&meant[..], &["--recipe", "edge"]].concat();
        let said = text(&succeeded(learn(&usual)).stdout);
        let part = " added to the memory, nothing trained; ";
        assert!(said.contains(part), "{said}");
    }

    #[test]
    fn a_slip_is_refused_and_named_unless_it_is_meant() {
        let folder = Folder::new("slip");
        let (store, bundle, new) = learnable(&folder);
        let slip = r#"{"instruction":"which song is it?","model_name":"birdz","domain":"Audio"}"#;
        fs::write(&new, fs::read_to_string(&new).unwrap() + slip + "\n").unwrap();
        let learn = |more: &[&str]| {
            let quick = [&["--set", "epochs=1", "--json"], more].concat();
            run(&learning(&store, &bundle, &new, &quick))
        };
        let says =
            "example 25: model \"birdz\" is not in the hub; did you mean \"birds\"? --introduce";
        failed(learn(&[]), 2, &[says]);
        let meant = &lines(&succeeded(learn(&["--introduce"])))[0];
        assert_eq!(
            meant["models_introduced"].to_string(),
            r#"["birdz","dogs"]"#
        );
    }

    #[test]
    fn odd_examples_are_said_at_the_start() {
        let folder = Folder::new("odd");
        let (store, bundle, new) = learnable(&folder);
        let odd = r#"{"instruction":"prompt 0 about birds","model_name":"cats","domain":"Videos"}"#;
        fs::write(&new, fs::read_to_string(&new).unwrap() + odd + "\n").unwrap();
        let arguments = learning(&store, &bundle, &new, &["--dry-run", "--set", "epochs=1"]);
        let said = text(&succeeded(run(&arguments)).stderr);
        for part in ["1 of 25 examples have another domain", "examples 1 and 25"] {
            assert!(said.contains(part), "{part:?} is not in {said}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn sigterm_and_sighup_stop_as_ctrl_c_does() {
        let folder = Folder::new("signals");
        let (store, bundle, new) = learnable(&folder);
        let long = ["--set", "epochs=4000", "--json"];
        for (signal, code) in [("TERM", 143), ("HUP", 129)] {
            let mut child = hubrouter(&learning(&store, &bundle, &new, &long))
                .arg("-vv")
                .stdout(Stdio::piped())
                .stderr(fs::File::create(folder.join("log")).unwrap())
                .spawn()
                .unwrap();
            let log = || fs::read_to_string(folder.join("log")).unwrap();
            while !log().contains("learning begins") {
                assert!(
                    child.try_wait().unwrap().is_none(),
                    "it has ended: {}",
                    log()
                );
                std::thread::sleep(Duration::from_millis(2));
            }
            let kill = format!("kill -{signal} {}", child.id());
            let sent = std::process::Command::new("sh")
                .args(["-c", &kill])
                .status();
            assert!(sent.unwrap().success());
            assert_eq!(child.wait().unwrap().code(), Some(code), "{}", log());
            assert!(
                std::path::Path::new(&store)
                    .join("resume.safetensors")
                    .exists()
            );
            assert!(log().contains("resumes there"), "{}", log());
        }
        // One went on from the other, and the third goes on from that.
        let ended = [&long[..], &["-v", "--budget", "1s"]].concat();
        let said = text(&succeeded(run(&learning(&store, &bundle, &new, &ended))).stderr);
        assert!(said.contains("resuming at step"), "{said}");
    }

    /// A terminal that is closed, a `head` that has read enough.
    #[test]
    fn nobody_who_reads_stderr_ends_nothing() {
        let folder = Folder::new("unread");
        let (store, bundle, new) = learnable(&folder);
        let before = current(&store);
        // Which has a remark to make.
        let more = ["--set", "epochs=3", "--json", "--max-forgetting", "3"];
        let mut child = hubrouter(&learning(&store, &bundle, &new, &more))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stderr.take());
        let mut answer = String::new();
        let mut stdout = child.stdout.take().unwrap();
        stdout.read_to_string(&mut answer).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(0));
        let report: serde_json::Value = serde_json::from_str(&answer).unwrap();
        assert_eq!(report["generation"], current(&store).as_str());
        assert_ne!(current(&store), before);
    }
}

#[test]
fn a_panic_while_it_learns_is_an_error() {
    let setup = toy::setup("panic");
    let options = cpu(1).encoder(&setup.encoder);
    let settings = toy::settings(&[]);
    let mut learner = Learner::open(&setup.store, None, settings, options).unwrap();
    let experience = toy::experience(toy::examples(0, 6));
    let error = learner.learn(&experience, None, &mut |_| panic!("on purpose"));
    let error = error.unwrap_err();
    assert_eq!(error.kind(), hubrouter::ErrorKind::Panic);
    assert!(error.to_string().contains("on purpose"), "{error}");
    // The learner, and the store, are as good as before.
    let mut go_on = |_: &_| Control::Continue;
    learner.learn(&experience, None, &mut go_on).unwrap();
    learner.commit().unwrap();
}
