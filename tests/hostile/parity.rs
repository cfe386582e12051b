//! Parity bundles for `hubrouter verify`: their manifest, their tensors, what they bring.
//!
//! The command says pass, fail or an error; it neither panics nor is ended by a signal, and its
//! answer is JSON.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::case::Case;
use crate::common::command::run;
use crate::common::fixture;
use crate::draws::Draws;
use crate::harness::Boundary;
use crate::{mutate, seal, tensors};

pub struct Parity {
    bases: Vec<Case>,
}

#[derive(Clone)]
pub struct Seen {
    /// `None`: ended by a signal.
    code: Option<i32>,
    said: String,
    error: String,
}

impl Parity {
    pub fn new() -> Self {
        let bases = ["parity-toy", "parity-toy-reference"].map(|name| Case::read(&fixture(name)));
        Self {
            bases: bases.to_vec(),
        }
    }
}

impl Boundary for Parity {
    type Seen = Seen;
    const NAME: &'static str = "parity";

    fn case(&self, draws: &mut Draws) -> Case {
        let mut case = draws.pick(&self.bases).clone();
        for _ in 0..1 + draws.below(3) {
            change(&mut case, draws);
        }
        if !draws.one_in(5) {
            seal(&mut case);
        }
        case.replace_sometimes(draws);
        case
    }

    fn observe(&self, folder: &Path) -> Seen {
        let path = folder.to_str().unwrap();
        let output = run(&[
            "verify",
            "--json",
            "--device",
            "cpu",
            "--threads",
            "1",
            path,
        ]);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Seen {
            code: output.status.code(),
            said: text(&output.stdout),
            error: text(&output.stderr),
        }
    }

    fn judge(&self, seen: &Seen) -> Result<(), String> {
        let Seen { code, said, error } = seen;
        if error.contains("panicked") {
            return Err(format!("a panic: {error}"));
        }
        match code {
            Some(0 | 4) => {
                let report: Value =
                    serde_json::from_str(said).map_err(|e| format!("{e}: {said}"))?;
                let verdict = if *code == Some(0) { "pass" } else { "fail" };
                if report["verdict"] != verdict {
                    return Err(format!("exit code {code:?} of {}", report["verdict"]));
                }
                let parted = &report["first_divergence"];
                if parted.is_null() != (*code == Some(0)) {
                    return Err(format!("{verdict}: they part at {parted}"));
                }
            }
            Some(1 | 2) if error.starts_with("hubrouter: ") => {}
            _ => return Err(format!("exit code {code:?}: {error}")),
        }
        Ok(())
    }
}

/// Makes the hashes right of the files that are there.
fn seal(case: &mut Case) {
    let Some(Ok(mut manifest)) = case
        .files
        .get("parity.json")
        .map(|m| serde_json::from_slice(m))
    else {
        return;
    };
    let manifest: &mut Value = &mut manifest;
    let Some(recorded) = manifest.get_mut("files").and_then(Value::as_object_mut) else {
        return;
    };
    for (name, digest) in recorded.iter_mut() {
        if let Some(bytes) = case.files.get(name) {
            *digest = json!({"bytes": bytes.len(), "sha256": seal::sha256(bytes)});
        }
    }
    let bytes = serde_json::to_vec(manifest).unwrap();
    case.files.insert("parity.json".into(), bytes);
    case.story.push("hashes made right".into());
}

/// Changes the manifest, a file of tensors, or another file.
fn change(case: &mut Case, draws: &mut Draws) {
    let paths: Vec<String> = case.files.keys().cloned().collect();
    let top: Vec<String> = paths
        .iter()
        .filter(|path| !path.contains('/'))
        .cloned()
        .collect();
    let path = match draws.one_in(4) {
        true => draws.pick(&paths).clone(),
        false => draws.pick(&top).clone(),
    };
    let bytes = case.files.get_mut(&path).unwrap();
    let said = match path.rsplit('.').next() {
        Some("json") => mutate::json_text(bytes, &[], draws),
        Some("safetensors") => tensors::tensors(bytes, &[], draws),
        _ => mutate::bytes(bytes, &[], draws),
    };
    case.story.push(format!("{path}: {said}"));
}

#[test]
fn false_sights_are_found() {
    let boundary = Parity::new();
    let folder = crate::common::Folder::new("sights");
    boundary.bases[0].lay_out(&folder.join("toy"));
    let seen = boundary.observe(&folder.join("toy"));
    boundary.judge(&seen).unwrap();
    assert_eq!(seen.code, Some(0));
    let found = |what: &str, lie: &dyn Fn(&mut Seen)| {
        let mut told = seen.clone();
        lie(&mut told);
        assert!(boundary.judge(&told).is_err(), "{what} is not noticed");
    };
    found("a panic", &|seen| {
        seen.error = "thread 'main' panicked".into()
    });
    found("a signal", &|seen| seen.code = None);
    found("another exit code", &|seen| seen.code = Some(4));
    found("an answer that is none", &|seen| seen.said.truncate(9));
    found("an error without a text", &|seen| seen.code = Some(1));
    fs::remove_dir_all(folder.join("toy")).unwrap();
    let seen = boundary.observe(&folder.join("toy"));
    assert_eq!(seen.code, Some(1));
    boundary.judge(&seen).unwrap();
}
