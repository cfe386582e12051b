//! Makes the hashes of a store or a bundle right again after its files were changed.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::case::Case;

pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// The generations of a store in `case`, by sequence, and their folders.
fn generations(case: &Case) -> Vec<(u32, String)> {
    let mut found: Vec<(u32, String)> = case
        .files
        .iter()
        .filter_map(|(path, bytes)| {
            let folder = path.strip_suffix("/manifest.json")?;
            let text = String::from_utf8_lossy(bytes);
            let sequence = text
                .split_once("\"sequence\"")?
                .1
                .trim_start_matches([':', ' ']);
            let end = sequence.find(|c: char| !c.is_ascii_digit())?;
            Some((sequence[..end].parse().ok()?, folder.to_owned()))
        })
        .collect();
    found.sort();
    found
}

/// Seals every generation of the store: hashes of the files, name of the folder, and the new names
/// where children and `current` mention them.
pub fn store(case: &mut Case) {
    let mut renamed = BTreeMap::<String, String>::new();
    for (sequence, folder) in generations(case) {
        let path = format!("{folder}/manifest.json");
        let mut manifest = sealed(case, &folder);
        for (old, new) in &renamed {
            manifest = replaced(&manifest, old, new);
        }
        let id = format!("g{sequence:04}-{}", &sha256(&manifest)[..12]);
        case.files.insert(path, manifest);
        if id != folder {
            rename(case, &folder, &id);
            renamed.insert(folder, id);
        }
    }
    if let Some(current) = case.files.get_mut("current") {
        for (old, new) in &renamed {
            *current = replaced(current, old, new);
        }
    }
}

/// The manifest in `folder` with the hashes and sizes of the files that are there.
pub fn sealed(case: &Case, folder: &str) -> Vec<u8> {
    sealed_as(case, folder, "manifest.json")
}

/// As [`sealed`], of a manifest with this name.
pub fn sealed_as(case: &Case, folder: &str, name: &str) -> Vec<u8> {
    let manifest = &case.files[&format!("{folder}/{name}")];
    let files = |name: &str| case.files.get(&format!("{folder}/{name}"));
    match serde_json::from_slice::<Value>(manifest) {
        Ok(mut value) => {
            let Some(recorded) = value.get_mut("files").and_then(Value::as_object_mut) else {
                return manifest.clone();
            };
            for (name, digest) in recorded.iter_mut() {
                if let Some(bytes) = files(name) {
                    *digest = json!({"bytes": bytes.len(), "sha256": sha256(bytes)});
                }
            }
            // As it was where nothing changed: numbers keep their form.
            if serde_json::from_slice::<Value>(manifest).is_ok_and(|old| old == value) {
                return manifest.clone();
            }
            let mut text = serde_json::to_vec_pretty(&value).unwrap();
            text.push(b'\n');
            text
        }
        Err(_) => manifest.clone(),
    }
}

fn replaced(text: &[u8], old: &str, new: &str) -> Vec<u8> {
    match std::str::from_utf8(text) {
        Ok(text) => text.replace(old, new).into_bytes(),
        Err(_) => text.to_vec(),
    }
}

fn rename(case: &mut Case, old: &str, new: &str) {
    let prefix = format!("{old}/");
    let moved = |path: &String| {
        path.strip_prefix(&prefix)
            .map(|rest| format!("{new}/{rest}"))
    };
    case.files = std::mem::take(&mut case.files)
        .into_iter()
        .map(|(path, bytes)| (moved(&path).unwrap_or(path), bytes))
        .collect();
    case.specials = std::mem::take(&mut case.specials)
        .into_iter()
        .map(|(path, special)| (moved(&path).unwrap_or(path), special))
        .collect();
}
