//! A folder of models: Hugging Face folders, its cache, GGUF files, in any depth up to a bound.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::card::{Card, configure, is_model, one_task};
use super::gguf::{GgufHeader, quantisation};
use super::{Found, Skipped, SourceEntry, count, description, short_text, texts};
use crate::cli::progress::Progress;
use crate::error::{Error, Result, bail};
use crate::files;

/// Folders within each other that are searched, and most entries of all of them.
const DEEPEST: usize = 8;
const MOST_ENTRIES: usize = 1_000_000;

/// The beginning of a model's folder in the cache of huggingface_hub.
const CACHED: &str = "models--";

/// The beginning of a repository's URL; the rest is its name.
const HUGGING_FACE: &str = "https://huggingface.co/";

/// A place with a model.
struct ModelPlace {
    /// The name for the hub.
    name: String,
    path: PathBuf,
    /// The folder whose card counts: that of the file, or one above it.
    folder: PathBuf,
    is_gguf: bool,
}

/// The search for candidates.
#[derive(Default)]
struct Search {
    candidates: Vec<ModelPlace>,
    entries: usize,
}

/// The models below `root`, by name.
///
/// Errors: `root` is no folder that can be read, or has too many entries.
pub(super) fn read(root: &Path) -> Result<Vec<SourceEntry>> {
    if !root.is_dir() {
        let missing = std::fs::metadata(root).err();
        return Err(match missing {
            Some(e) => Error::io(root, "open", e),
            None => crate::error::error!(
                Format,
                "--from-cards: expected a folder of model cards, found the file {}",
                root.display()
            ),
        });
    }
    let mut search = Search::default();
    search.visit(root, "", None, 0)?;
    let mut candidates = search.candidates;
    candidates.sort_by(|a, b| a.name.cmp(&b.name));
    // The card of a folder with nothing but GGUF files is theirs.
    let own = |candidate: &&ModelPlace| candidate.is_gguf;
    let with_files: Vec<PathBuf> = candidates
        .iter()
        .filter(own)
        .map(|candidate| candidate.folder.clone())
        .collect();
    let total = candidates.len() as u64;
    let mut progress = Progress::new("reading models", total);
    let mut entries = Vec::new();
    for (done, candidate) in (1..).zip(&candidates) {
        let entry = match candidate.is_gguf {
            true => of_file(candidate).map(Some),
            false => of_folder(candidate, with_files.contains(&candidate.path)),
        };
        match entry {
            Ok(found) => entries.extend(found.map(Ok)),
            Err(error) => {
                let text = error.to_string();
                entries.push(Err(Skipped::new(candidate.name.clone(), text)));
            }
        }
        progress.set(done);
    }
    Ok(entries)
}

impl Search {
    /// Finds the candidates in `folder`, which is called `name`; `model`: the model's folder that
    /// it is a part of.
    fn visit(
        &mut self,
        folder: &Path,
        name: &str,
        model: Option<&Path>,
        depth: usize,
    ) -> Result<()> {
        let mut names = BTreeMap::new();
        let failed = |e| Error::io(folder, "list", e);
        for entry in folder.read_dir().map_err(failed)? {
            self.entries += 1;
            if self.entries > MOST_ENTRIES {
                bail!(
                    Refused,
                    "--from-cards: expected a folder of at most {MOST_ENTRIES} entries, found more \
                     up to {}",
                    folder.display()
                );
            }
            let entry = entry.map_err(failed)?;
            let Some(entry_name) = entry.file_name().to_str().map(str::to_owned) else {
                continue;
            };
            // Links to folders are not followed: they may lead back.
            let is_folder = entry.file_type().map_err(failed)?.is_dir();
            if !entry_name.starts_with('.') {
                names.insert(entry_name, is_folder);
            }
        }
        let has = |file: &str| names.get(file) == Some(&false);
        let mut model = model.map(Path::to_owned);
        let described = has("README.md") || has("config.json");
        if model.is_none() && described && is_model(folder) {
            model = Some(folder.to_owned());
            let own = match name {
                "" => last(folder),
                name => name.to_owned(),
            };
            self.candidates.push(ModelPlace {
                name: own,
                path: folder.to_owned(),
                folder: folder.to_owned(),
                is_gguf: false,
            });
        }
        for (entry, is_folder) in &names {
            let path = folder.join(entry);
            let below = match name {
                "" => entry.clone(),
                name => format!("{name}/{entry}"),
            };
            if !is_folder {
                let Some(stem) = below.strip_suffix(".gguf") else {
                    continue;
                };
                if let Some(name) = first_shard(stem) {
                    self.candidates.push(ModelPlace {
                        name: name.to_owned(),
                        folder: model.clone().unwrap_or_else(|| folder.to_owned()),
                        path,
                        is_gguf: true,
                    });
                }
            } else if depth < DEEPEST {
                match entry.strip_prefix(CACHED) {
                    Some(cached) => {
                        let name = cached.replace("--", "/");
                        if let Some(snapshot) = snapshot(&path) {
                            self.visit(&snapshot, &name, None, depth + 1)?;
                        }
                    }
                    None => self.visit(&path, &below, model.as_deref(), depth + 1)?,
                }
            }
        }
        Ok(())
    }
}

/// The last part of a folder's whole path.
fn last(folder: &Path) -> String {
    let whole = super::whole(folder);
    let name = Path::new(&whole).file_name();
    name.map_or_else(|| whole.clone(), |name| name.to_string_lossy().into_owned())
}

/// The name of a file without its number among shards; `None`: it is not the first shard.
fn first_shard(stem: &str) -> Option<&str> {
    // As llama.cpp writes them: NAME-00001-of-00003.
    let parts = stem.rsplit_once("-of-").and_then(|(before, count)| {
        let (name, number) = before.rsplit_once('-')?;
        let digits = |text: &str| text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit());
        (digits(count) && digits(number)).then_some((name, number))
    });
    match parts {
        Some((name, "00001")) => Some(name),
        Some(_) => None,
        None => Some(stem),
    }
}

/// The snapshot of a model's folder in the cache: that of `main`, or the last by name.
fn snapshot(folder: &Path) -> Option<PathBuf> {
    let snapshots = folder.join("snapshots");
    let main = files::read_text(&folder.join("refs/main"), 100).ok();
    let main = main.map(|revision| revision.trim().to_owned());
    let main = main.filter(|revision| revision.bytes().all(|b| b.is_ascii_alphanumeric()));
    let main = main.map(|revision| snapshots.join(revision));
    if let Some(main) = main.filter(|main| main.is_dir() && *main != snapshots) {
        return Some(main);
    }
    let all = snapshots.read_dir().ok()?.flatten();
    let folders = all.map(|entry| entry.path()).filter(|path| path.is_dir());
    folders.max()
}

/// The model of a Hugging Face folder; `None`: it is none, or its card is that of the GGUF files in
/// it.
fn of_folder(candidate: &ModelPlace, has_files: bool) -> Result<Option<Found>> {
    let mut found = Found::new(&candidate.name);
    let card = Card::read(&candidate.path)?;
    let configured = configure(&candidate.path, &mut found)?;
    if !configured && (card.is_none() || has_files) {
        return Ok(None);
    }
    if let Some(card) = card {
        card.describe(&mut found);
    }
    Ok(Some(found))
}

/// The model of a GGUF file, described by its metadata and by the card of its folder.
///
/// Errors: it cannot be read, or is a part of a model.
fn of_file(candidate: &ModelPlace) -> Result<Found> {
    let header = GgufHeader::read(&candidate.path)?;
    let text = |key: &str| header.text(key).and_then(short_text);
    let kind = text("general.type");
    let architecture = text("general.architecture");
    let part = match (kind.as_deref(), architecture.as_deref()) {
        (Some("model") | None, Some("clip")) => Some("mmproj"),
        (Some("model") | None, _) => None,
        (Some(other), _) => Some(other),
    };
    if let Some(part) = part {
        bail!(
            Unsupported,
            "{}: expected a model, found a GGUF file of type {part:?}, which is part of one",
            candidate.path.display()
        );
    }
    let mut found = Found::new(&candidate.name);
    found.family = text("general.basename");
    found.title = text("general.name").filter(|title| *title != candidate.name);
    found.description = header.text("general.description").and_then(description);
    found.state("format", Some("gguf"));
    let of_architecture = |key: &str| {
        let path = format!("{}.{key}", architecture.as_deref()?);
        count(header.metadata.get(&path)?)
    };
    found.state("context_length", of_architecture("context_length"));
    found.state("architecture", architecture.clone());
    let base = text("general.base_model.0.repo_url");
    let base = base
        .as_deref()
        .map(|url| url.trim_start_matches(HUGGING_FACE));
    found.state("base_model", base);
    found.state("size_label", text("general.size_label"));
    let name = text("general.license.name");
    let licence = text("general.license").filter(|licence| licence != "other" || name.is_none());
    found.state("licence", licence.or(name));
    let file_type = header
        .metadata
        .get("general.file_type")
        .and_then(Value::as_u64);
    found.state("quantisation", file_type.and_then(quantisation));
    let listed = |key: &str| texts(header.metadata.get(key)?);
    found.state("language", listed("general.languages"));
    let tags = listed("general.tags");
    found.domain = tags.as_deref().and_then(one_task);
    found.state("tags", tags);
    // One shard has only some of the tensors.
    let shards = header.metadata.get("split.count").and_then(Value::as_u64);
    let whole = shards.is_none_or(|count| count <= 1) && header.parameters > 0;
    found.state("parameters", whole.then_some(header.parameters));
    match Card::read(&candidate.folder) {
        Ok(Some(card)) => card.describe(&mut found),
        Ok(None) => (),
        Err(error) => log::warn!("{error}; the card is not taken"),
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::super::gguf::make::{entry, file, text};
    use super::*;
    use crate::testing::Folder;
    use serde_json::json;

    fn names(entries: &[SourceEntry]) -> Vec<String> {
        let name = |entry: &SourceEntry| match entry {
            Ok(found) => found.name.clone(),
            Err(skipped) => format!("! {}", skipped.name),
        };
        entries.iter().map(name).collect()
    }

    fn model(name: &str) -> Vec<u8> {
        file(&[entry("general.name", 8, &text(name))], &[("a", &[2, 3])])
    }

    #[test]
    fn a_gguf_file_is_described_by_its_header_and_the_card_beside_it() {
        let folder = Folder::new("gguf");
        let tags = [
            &8_u32.to_le_bytes()[..],
            &1_u64.to_le_bytes(),
            &text("text-generation"),
        ];
        let entries = [
            entry("general.architecture", 8, &text("llama")),
            entry("general.type", 8, &text("model")),
            entry("general.name", 8, &text("SmolLM2 135M")),
            entry("general.basename", 8, &text("SmolLM2")),
            entry("general.size_label", 8, &text("135M")),
            entry("general.license", 8, &text("apache-2.0")),
            entry(
                "general.base_model.0.repo_url",
                8,
                &text("https://huggingface.co/acme/base"),
            ),
            entry("general.tags", 9, &tags.concat()),
            entry("general.file_type", 4, &15_u32.to_le_bytes()),
            entry("llama.context_length", 4, &8192_u32.to_le_bytes()),
            entry("other.context_length", 4, &1_u32.to_le_bytes()),
        ];
        let tensors: [(&str, &[u64]); 2] = [("a", &[2, 3]), ("b", &[4])];
        folder.write("acme/small.Q4_K_M.gguf", file(&entries, &tensors));
        let card = "---\nlicense: mit\nlanguage: en\npipeline_tag: translation\n---\n\
                    A model that answers in one short sentence.\n";
        folder.write("acme/README.md", card.as_bytes());
        let [Ok(found)] = &read(&folder).unwrap()[..] else {
            panic!("expected one model")
        };
        assert_eq!(found.name, "acme/small.Q4_K_M");
        assert_eq!(found.title.as_deref(), Some("SmolLM2 135M"));
        assert_eq!(found.family.as_deref(), Some("SmolLM2"));
        let want = "A model that answers in one short sentence.";
        assert_eq!(found.description.as_deref(), Some(want));
        let want = json!({
            "format": "gguf", "architecture": "llama", "context_length": 8192,
            "size_label": "135M", "licence": "apache-2.0", "base_model": "acme/base",
            "quantisation": "Q4_K_M", "tags": ["text-generation"], "parameters": 10,
            "language": ["en"],
        });
        assert_eq!(serde_json::to_value(&found.attributes).unwrap(), want);
        // What the file says counts before the card.
        assert!(format!("{:?}", found.domain).contains("text-generation"));
    }

    #[test]
    fn models_are_found_in_any_depth_with_the_names_of_their_folders() {
        let folder = Folder::new("tree");
        let card = b"---\nlicense: mit\n---\n";
        let config = br#"{"model_type": "bert"}"#;
        folder.write("README.md", b"# My models\n");
        folder.write("acme/bert/README.md", card);
        folder.write("acme/bert/config.json", config);
        // Parts of a model, and things that are none.
        folder.write(
            "acme/bert/1_Pooling/config.json",
            br#"{"model_type": "pooling"}"#,
        );
        folder.write("acme/bert/onnx/README.md", card);
        folder.write("acme/data/README.md", b"---\ntask_categories: [x]\n---\n");
        folder.write("acme/vae/config.json", br#"{"in_channels": 4}"#);
        folder.write(".hidden/README.md", card);
        folder.write("broken/README.md", b"---\na: b: c\n---\n");
        folder.write("files/README.md", card);
        folder.write("files/Q4/a.gguf", model("a"));
        folder.write("files/Q8/a.gguf", b"GGUF\x03");
        folder.write("big-00001-of-00002.gguf", model("big"));
        folder.write("big-00002-of-00002.gguf", model("big"));
        let cache = "models--acme--cached";
        folder.write(&format!("{cache}/refs/main"), b"abc");
        folder.write(&format!("{cache}/snapshots/abc/README.md"), card);
        folder.write(&format!("{cache}/snapshots/def/README.md"), card);
        folder.write("models--gpt2/snapshots/0/config.json", config);
        folder.write("models--empty/refs/main", b"../../../..");
        let found = read(&folder).unwrap();
        let want = [
            "acme/bert",
            "acme/cached",
            "big",
            "! broken",
            "files/Q4/a",
            "! files/Q8/a",
            "gpt2",
        ];
        assert_eq!(names(&found), want);
        let here = read(&folder.join("acme/bert")).unwrap();
        assert_eq!(names(&here), ["bert"]);
        // Shards hold a part of the tensors each, but here the header does not say so.
        let [Ok(found)] = &read(&folder.join("files/Q4")).unwrap()[..] else {
            panic!("expected one model")
        };
        assert_eq!((found.name.as_str(), found.title.as_deref()), ("a", None));
    }

    #[cfg(unix)]
    #[test]
    fn links_to_folders_are_not_followed_and_links_to_files_are() {
        let folder = Folder::new("links");
        folder.write("blob", model("a"));
        folder.write("b/x.txt", b"");
        std::os::unix::fs::symlink("../blob", folder.join("b/a.gguf")).unwrap();
        std::os::unix::fs::symlink("..", folder.join("b/up")).unwrap();
        assert_eq!(names(&read(&folder).unwrap()), ["b/a"]);
    }

    #[test]
    fn parts_of_models_are_skipped_with_a_reason() {
        let folder = Folder::new("parts");
        for (name, key, value) in [
            ("adapter", "general.type", "adapter"),
            ("mmproj", "general.architecture", "clip"),
        ] {
            let bytes = file(&[entry(key, 8, &text(value))], &[]);
            folder.write(&format!("{name}.gguf"), &bytes);
        }
        let split = entry("split.count", 2, &2_u16.to_le_bytes());
        folder.write("m-00001-of-00002.gguf", file(&[split], &[("a", &[7])]));
        let found = read(&folder).unwrap();
        assert_eq!(names(&found), ["! adapter", "m", "! mmproj"]);
        let Err(skipped) = &found[2] else {
            panic!("expected a skipped file")
        };
        assert!(
            skipped
                .reason
                .contains("type \"mmproj\", which is part of one")
        );
        let Ok(first) = &found[1] else {
            panic!("expected a model")
        };
        assert_eq!(first.attributes.get("parameters"), None);
    }

    #[test]
    fn a_file_or_nothing_is_no_folder() {
        let folder = Folder::new("no-folder");
        folder.write("a", b"");
        for (name, says) in [("a", "found the file"), ("b", "cannot open")] {
            let error = read(&folder.join(name)).err().unwrap().to_string();
            assert!(error.contains(says), "{error}");
        }
    }
}
