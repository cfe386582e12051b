//! A model folder of Hugging Face: the card in `README.md`, `config.json`, the weights' headers.

use std::collections::BTreeSet;
use std::io::Read as _;
use std::path::Path;

use pulldown_cmark::{Event, Parser, Tag, TagEnd};
use serde_json::{Map, Value};

use super::tasks::StatedDomain;
use super::{Found, count, description, short_text, texts, yaml};
use crate::error::{Error, Result, bail, error};
use crate::files;

/// Most bytes of a card, of its front matter, of a configuration, and of an index.
const LARGEST_CARD: u64 = 4 << 20;
const LARGEST_FRONT: usize = 1 << 20;
const LARGEST_CONFIG: u64 = 4 << 20;
const LARGEST_INDEX: u64 = 64 << 20;

/// Most bytes of a header of safetensors, which has a line for each tensor.
const LARGEST_HEADER: u64 = 64 << 20;

/// Most shards of a checkpoint.
const MOST_SHARDS: usize = 1024;

/// Bytes of a card's text in which the description is looked for.
const LARGEST_BODY: usize = 64 << 10;

/// Shortest paragraph that is a description, in characters; shorter ones are badges and links.
const SHORTEST: usize = 40;

/// Most results of a card that are kept.
const MOST_RESULTS: usize = 32;

/// A model card: the front matter and the first paragraph.
pub(super) struct Card {
    front: Map<String, Value>,
    description: Option<String>,
}

impl Card {
    /// The card of `folder`; `None`: there is none, or it is that of something else.
    ///
    /// Errors: it cannot be read, or its front matter is no YAML.
    pub(super) fn read(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join("README.md");
        let text = match files::read_text(&path, LARGEST_CARD) {
            Err(error) if error.is_missing() => return Ok(None),
            text => text?,
        };
        let Some((front, body)) = yaml::split(&text) else {
            return Ok(None);
        };
        if front.len() > LARGEST_FRONT {
            bail!(
                Format,
                "{}: expected front matter of at most {LARGEST_FRONT} bytes, found {}",
                path.display(),
                front.len()
            );
        }
        let front = yaml::parse(front).map_err(|error| error.at(path.display()))?;
        let Value::Object(front) = front else {
            return Ok(None);
        };
        // Spaces and data sets have cards, too.
        let other = ["sdk", "task_categories", "dataset_info", "pretty_name"];
        if other.iter().any(|key| front.contains_key(*key)) && !front.contains_key("pipeline_tag") {
            return Ok(None);
        }
        Ok(Some(Self {
            front,
            description: first_paragraph(body),
        }))
    }

    /// Adds what the card states and `found` does not have yet.
    pub(super) fn describe(&self, found: &mut Found) {
        let front = &self.front;
        let text = |key: &str| short_text(front.get(key)?.as_str()?);
        let listed = |key: &str| texts(front.get(key)?);
        let mut own = Found::new("");
        own.state("licence", self.licence());
        own.state("library_name", text("library_name"));
        own.state("language", listed("language"));
        own.state("tags", listed("tags"));
        own.state("base_model", listed("base_model"));
        own.state("results", self.results());
        for (key, value) in own.attributes {
            found.attributes.entry(key).or_insert(value);
        }
        if found.description.is_none() {
            found.description.clone_from(&self.description);
        }
        if found.domain.is_none() {
            found.domain = self.domain();
        }
    }

    /// `license`, or the name of one that is `other`.
    fn licence(&self) -> Option<Value> {
        let text = |key: &str| short_text(self.front.get(key)?.as_str()?);
        match text("license") {
            Some(licence) if licence == "other" => {
                Some(text("license_name").unwrap_or(licence).into())
            }
            Some(licence) => Some(licence.into()),
            None => Some(texts(self.front.get("license")?)?.into()),
        }
    }

    /// `pipeline_tag`; without it the one task of the results, or the one task among the tags.
    fn domain(&self) -> Option<StatedDomain> {
        let tag = self.front.get("pipeline_tag").and_then(Value::as_str);
        if let Some(stated) = tag.and_then(StatedDomain::tag) {
            return Some(stated);
        }
        let tasks = self.measured().filter_map(|result| {
            let task = result.pointer("/task/type")?.as_str()?;
            Some(task.to_owned())
        });
        let tasks: BTreeSet<String> = tasks.collect();
        let of_results = tasks.first().filter(|_| tasks.len() == 1);
        if let Some(stated) = of_results.and_then(|task| StatedDomain::known(task)) {
            return Some(stated);
        }
        one_task(&texts(self.front.get("tags")?)?)
    }

    /// The results of `model-index`.
    fn measured(&self) -> impl Iterator<Item = &Value> {
        let models = self.front.get("model-index").and_then(Value::as_array);
        let models = models.into_iter().flatten();
        models
            .filter_map(|model| model.get("results")?.as_array())
            .flatten()
    }

    /// Numbers by data set and metric; of a repeated one the first.
    fn results(&self) -> Option<Value> {
        let mut all: Map<String, Value> = Map::new();
        let mut left = MOST_RESULTS;
        for result in self.measured() {
            let dataset = result.pointer("/dataset/type").and_then(Value::as_str);
            let Some(dataset) = dataset.and_then(short_text) else {
                continue;
            };
            let metrics = result.get("metrics").and_then(Value::as_array);
            for metric in metrics.into_iter().flatten() {
                let name = metric.get("type").and_then(Value::as_str);
                let value = metric.get("value").filter(|value| value.is_number());
                let (Some(name), Some(value)) = (name.and_then(short_text), value) else {
                    continue;
                };
                if left == 0 {
                    return Some(Value::Object(all));
                }
                let entry = all
                    .entry(dataset.clone())
                    .or_insert_with(|| Map::new().into());
                if let Some(metrics) = entry.as_object_mut().filter(|all| !all.contains_key(&name))
                {
                    metrics.insert(name, value.clone());
                    left -= 1;
                }
            }
        }
        (!all.is_empty()).then_some(Value::Object(all))
    }
}

/// The task among `tags`, if there is one alone.
pub(super) fn one_task(tags: &[String]) -> Option<StatedDomain> {
    let mut tasks = tags.iter().filter_map(|tag| StatedDomain::known(tag));
    let first = tasks.next()?;
    tasks.all(|other| other == first).then_some(first)
}

/// The first paragraph of text in Markdown that is no badge, quotation, list or table.
fn first_paragraph(body: &str) -> Option<String> {
    let mut end = body.len().min(LARGEST_BODY);
    while !body.is_char_boundary(end) {
        end -= 1;
    }
    let (mut open, mut text) = (0_usize, None::<String>);
    for event in Parser::new(&body[..end]) {
        match event {
            Event::Start(Tag::Paragraph) if open == 0 => text = Some(String::new()),
            Event::Start(
                Tag::BlockQuote(_)
                | Tag::CodeBlock(_)
                | Tag::List(_)
                | Tag::Heading { .. }
                | Tag::HtmlBlock
                | Tag::Image { .. },
            ) => open += 1,
            Event::End(
                TagEnd::BlockQuote(_)
                | TagEnd::CodeBlock
                | TagEnd::List(_)
                | TagEnd::Heading(_)
                | TagEnd::HtmlBlock
                | TagEnd::Image,
            ) => open = open.saturating_sub(1),
            Event::End(TagEnd::Paragraph) => {
                let found = text.take().and_then(|text| description(&text));
                // Tables without their extension are paragraphs of columns.
                let prose =
                    |text: &String| text.chars().count() >= SHORTEST && !text.starts_with('|');
                if let Some(found) = found.filter(prose) {
                    return Some(found);
                }
            }
            Event::Text(part) | Event::Code(part) if open == 0 => {
                text.as_mut()
                    .into_iter()
                    .for_each(|text| text.push_str(&part));
            }
            Event::SoftBreak | Event::HardBreak => {
                text.as_mut().into_iter().for_each(|text| text.push(' '));
            }
            _ => (),
        }
    }
    None
}

/// Whether `folder` has a card or a configuration of a model, be it a damaged one.
pub(super) fn is_model(folder: &Path) -> bool {
    let has_card = Card::read(folder).map_or(true, |card| card.is_some());
    has_card || configuration(folder).map_or(true, |config| config.is_some())
}

/// `config.json`; `None`: there is none, or it is not that of a model.
fn configuration(folder: &Path) -> Result<Option<Value>> {
    let path = folder.join("config.json");
    let config: Value = match files::read_bytes(&path, LARGEST_CONFIG) {
        Err(error) if error.is_missing() => return Ok(None),
        bytes => files::parse_json(&path, &bytes?)?,
    };
    let of_model = ["model_type", "architectures"];
    let is_model = of_model.iter().any(|key| config.get(key).is_some());
    Ok(is_model.then_some(config))
}

/// Adds what `config.json` and the weights of `folder` state and `found` does not have yet; false
/// if there is no configuration of a model.
///
/// Errors: the configuration cannot be read.
pub(super) fn configure(folder: &Path, found: &mut Found) -> Result<bool> {
    let Some(config) = configuration(folder)? else {
        return Ok(false);
    };
    let kind = config.get("model_type").and_then(Value::as_str);
    let classes = config.get("architectures").and_then(texts);
    let mut own = Found::new("");
    own.state("architecture", kind.and_then(short_text));
    own.state("architectures", classes);
    let context = [
        "max_position_embeddings",
        "n_positions",
        "max_sequence_length",
    ];
    let inside = config.get("text_config").unwrap_or(&Value::Null);
    let mut contexts = [&config, inside].into_iter().flat_map(|config| {
        let counts = context.iter().filter_map(|key| count(config.get(key)?));
        counts.collect::<Vec<_>>()
    });
    own.state("context_length", contexts.next());
    let dtype = config.get("dtype").or_else(|| config.get("torch_dtype"));
    own.state("dtype", dtype.and_then(Value::as_str).and_then(short_text));
    let quantised = config.get("quantization_config");
    let method = quantised.and_then(|how| how.get("quant_method")?.as_str());
    own.state("quantisation", method.and_then(short_text));
    match parameters(folder, quantised.is_some_and(|how| !how.is_null())) {
        Ok(parameters) => own.state("parameters", parameters),
        Err(error) => log::warn!("{error}; the number of parameters is not taken"),
    }
    for (key, value) in own.attributes {
        found.attributes.entry(key).or_insert(value);
    }
    Ok(true)
}

/// The parameters of the weights in safetensors, as the index states them or the headers add up to;
/// `None`: there are none, a shard is missing, or they are quantised, so that an element holds
/// several.
fn parameters(folder: &Path, quantised: bool) -> Result<Option<u64>> {
    let index = folder.join("model.safetensors.index.json");
    let shards = match files::read_bytes(&index, LARGEST_INDEX) {
        Err(error) if error.is_missing() => BTreeSet::from(["model.safetensors".to_owned()]),
        bytes => {
            let index: Value = files::parse_json(&index, &bytes?)?;
            let total = index.pointer("/metadata/total_parameters");
            if let Some(total) = total.and_then(count) {
                return Ok(Some(total));
            }
            let shards = index.get("weight_map").and_then(Value::as_object);
            let names = shards.into_iter().flat_map(Map::values);
            names
                .filter_map(|name| Some(name.as_str()?.to_owned()))
                .collect()
        }
    };
    if quantised || shards.is_empty() || shards.len() > MOST_SHARDS {
        return Ok(None);
    }
    let mut all = 0_u64;
    for shard in shards {
        // A shard is beside its index.
        if Path::new(&shard).file_name() != Some(shard.as_ref()) {
            return Ok(None);
        }
        match elements(&folder.join(shard)) {
            Ok(some) => all = all.saturating_add(some),
            Err(error) if error.is_missing() => return Ok(None),
            Err(error) => return Err(error),
        }
    }
    Ok((all > 0).then_some(all))
}

/// The elements of all tensors of a safetensors file, by its header.
fn elements(path: &Path) -> Result<u64> {
    let (mut file, length) = files::open_file(path)?;
    let failed = |e| Error::io(path, "read", e);
    let mut size = [0; 8];
    file.read_exact(&mut size).map_err(failed)?;
    let size = u64::from_le_bytes(size);
    if size > LARGEST_HEADER || size > length.saturating_sub(8) {
        bail!(
            Format,
            "{}: expected a header of safetensors, found one of {size} bytes in a file of {length}",
            path.display()
        );
    }
    let mut header = Vec::new();
    file.take(size).read_to_end(&mut header).map_err(failed)?;
    let header: Map<String, Value> = files::parse_json(path, &header)?;
    let tensors = header.iter().filter(|(name, _)| *name != "__metadata__");
    let mut all = 0_u64;
    for (name, tensor) in tensors {
        let shape = tensor.get("shape").and_then(Value::as_array);
        let sizes = shape.map(|shape| shape.iter().map(Value::as_u64).collect::<Option<Vec<_>>>());
        let product = sizes.flatten().and_then(|sizes| {
            let mut sizes = sizes.into_iter();
            sizes.try_fold(1_u64, u64::checked_mul)
        });
        let sum = product.and_then(|product| all.checked_add(product));
        all = sum.ok_or_else(|| {
            error!(
                Format,
                "{}: tensor {name}: expected a shape, found {}",
                path.display(),
                tensor.get("shape").unwrap_or(&Value::Null)
            )
        })?;
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::super::tasks::DomainSpellings;
    use super::*;
    use crate::testing::Folder;
    use serde_json::json;

    fn described(card: &str) -> Found {
        let folder = Folder::new("card");
        folder.write("README.md", card.as_bytes());
        let mut found = Found::new("m");
        Card::read(&folder).unwrap().unwrap().describe(&mut found);
        found
    }

    fn domain(found: &Found) -> Option<String> {
        let stated = found.domain.as_ref()?;
        Some(stated.name(&DomainSpellings::default()))
    }

    #[test]
    fn a_card_states_licence_languages_and_results() {
        let found = described(
            "---
pipeline_tag: translation
license: other
license_name: my-licence
language: [en, no]
tags: [marian, translation]
library_name: transformers
base_model: acme/base
model-index:
- name: m
  results:
  - task: {type: translation}
    dataset: {type: wmt16, name: WMT 16}
    metrics:
    - {type: bleu, value: 31.5}
    - {type: bleu, value: 1}
    - {type: chrf, value: high}
---
# Title

[![badge](https://x/y.svg)](https://x)

> A quotation that is long enough to be a description.

Translates **letters** between `English` and
Norwegian, one sentence [at a time](https://x).

More.
",
        );
        let want = json!({
            "licence": "my-licence", "language": ["en", "no"], "tags": ["marian", "translation"],
            "library_name": "transformers", "base_model": ["acme/base"],
            "results": {"wmt16": {"bleu": 31.5}},
        });
        assert_eq!(serde_json::to_value(&found.attributes).unwrap(), want);
        let text = "Translates letters between English and Norwegian, one sentence at a time.";
        assert_eq!(found.description.as_deref(), Some(text));
        let want = "Natural Language Processing Translation";
        assert_eq!(domain(&found).as_deref(), Some(want));
    }

    #[test]
    fn a_domain_is_stated_by_a_tag_a_result_or_one_task_among_the_tags() {
        let of = |front: &str| domain(&described(&format!("---\n{front}\n---\n")));
        let result = |tasks: [&str; 2]| {
            let one = |task: &str| format!("  - task: {{type: {task}}}\n    metrics: []\n");
            let results: String = tasks.into_iter().map(one).collect();
            of(&format!(
                "license: mit\nmodel-index:\n- results:\n{results}"
            ))
        };
        let name = |name: &str| Some(format!("Natural Language Processing {name}"));
        assert_eq!(
            of("pipeline_tag: fill-mask\ntags: [translation]"),
            name("Fill-Mask")
        );
        assert_eq!(of("pipeline_tag: my-task"), Some("My Task".to_owned()));
        assert_eq!(result(["translation", "translation"]), name("Translation"));
        assert_eq!(result(["translation", "summarization"]), None);
        assert_eq!(result(["own-words", "own-words"]), None);
        assert_eq!(of("tags: [pytorch, fill-mask]"), name("Fill-Mask"));
        assert_eq!(of("tags: [translation, fill-mask]"), None);
        assert_eq!(of("license: mit"), None);
    }

    #[test]
    fn cards_of_other_things_are_no_models() {
        let folder = Folder::new("other-cards");
        for (card, is_model) in [
            ("---\nlicense: mit\n---\n", true),
            ("---\nsdk: gradio\n---\n", false),
            ("---\ntask_categories: [translation]\n---\n", false),
            (
                "---\ntask_categories: [x]\npipeline_tag: translation\n---\n",
                true,
            ),
            ("# My models\n", false),
            ("---\n- a\n---\n", false),
            ("", false),
        ] {
            folder.write("README.md", card.as_bytes());
            assert_eq!(Card::read(&folder).unwrap().is_some(), is_model, "{card}");
        }
        folder.write("README.md", b"---\na: b: c\n---\n");
        let error = Card::read(&folder).err().unwrap().to_string();
        assert!(error.contains("README.md: expected YAML, found"), "{error}");
        let long = format!("---\na: {}\n---\n", "x".repeat(LARGEST_FRONT));
        folder.write("README.md", long.as_bytes());
        let error = Card::read(&folder).err().unwrap().to_string();
        assert!(error.contains("front matter of at most"), "{error}");
    }

    #[test]
    fn a_description_is_the_first_prose() {
        for (body, want) in [
            (
                "Short.\n\nThis paragraph is long enough to describe a model.",
                Some("This paragraph"),
            ),
            (
                "| a | b | c | d | e | f | g | h | i | j | k |\n|-|-|\n",
                None,
            ),
            (
                "```\nThis code is long enough to describe a model, but is code.\n```",
                None,
            ),
            (
                "- This item is long enough to describe a model, but is a list.",
                None,
            ),
            (
                "<div>This block is long enough to describe a model, but is HTML.</div>",
                None,
            ),
            (
                "![This picture is long enough to describe a model, but is not shown](x)",
                None,
            ),
            ("", None),
        ] {
            let found = first_paragraph(body);
            match want {
                Some(want) => assert!(found.unwrap().starts_with(want), "{body}"),
                None => assert_eq!(found, None, "{body}"),
            }
        }
        let long = first_paragraph(&"é word ".repeat(100_000)).unwrap();
        assert!((1900..=2000).contains(&long.chars().count()));
        assert!(first_paragraph(&"> ".repeat(100_000)).is_none());
    }

    fn safetensors(header: &Value) -> Vec<u8> {
        let header = header.to_string();
        [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat()
    }

    #[test]
    fn a_configuration_states_context_and_architecture() {
        let folder = Folder::new("config");
        let configured = |config: Value| {
            folder.write("config.json", config.to_string().as_bytes());
            let mut found = Found::new("m");
            let is_model = configure(&folder, &mut found).unwrap();
            (is_model, serde_json::to_value(found.attributes).unwrap())
        };
        let tensor =
            |shape: Value| json!({"dtype": "BF16", "shape": shape, "data_offsets": [0, 0]});
        let header = json!({"__metadata__": {"format": "pt"}, "a": tensor(json!([3, 4])),
            "b": tensor(json!([5])), "c": tensor(json!([]))});
        folder.write("model.safetensors", safetensors(&header));
        let plain = json!({"model_type": "bert", "architectures": ["BertModel"],
            "max_position_embeddings": 512, "torch_dtype": "float32"});
        let want = json!({"architecture": "bert", "architectures": ["BertModel"],
            "context_length": 512, "dtype": "float32", "parameters": 18});
        assert_eq!(configured(plain), (true, want));
        // Four bits each, several to an element.
        let quantised = json!({"model_type": "llava", "text_config":
            {"max_position_embeddings": 4096}, "quantization_config": {"quant_method": "gptq"}});
        let want = json!({"architecture": "llava", "context_length": 4096, "quantisation": "gptq"});
        assert_eq!(configured(quantised.clone()), (true, want.clone()));
        let index =
            json!({"metadata": {"total_size": 9, "total_parameters": 70}, "weight_map": {}});
        folder.write("model.safetensors.index.json", index.to_string().as_bytes());
        let mut stated = want;
        stated["parameters"] = json!(70);
        assert_eq!(configured(quantised), (true, stated));
        assert_eq!(configured(json!({"in_channels": 4})), (false, json!({})));
        assert_eq!(configured(json!([])), (false, json!({})));
    }

    #[test]
    fn shards_add_up_and_a_missing_one_is_no_number() {
        let folder = Folder::new("shards");
        let shard = |shape: Value| safetensors(&json!({"a": {"dtype": "F32", "shape": shape}}));
        folder.write("one.safetensors", shard(json!([2, 3])));
        folder.write("two.safetensors", shard(json!([10])));
        let index = |names: [&str; 3]| {
            let [a, b, c] = names;
            let map = json!({"weight_map": {"a": a, "b": b, "c": c}});
            folder.write("model.safetensors.index.json", map.to_string().as_bytes());
        };
        let all = ["one.safetensors", "two.safetensors", "one.safetensors"];
        index(all);
        assert_eq!(parameters(&folder, false).unwrap(), Some(16));
        index(["one.safetensors", "three.safetensors", "two.safetensors"]);
        assert_eq!(parameters(&folder, false).unwrap(), None);
        index(["../one.safetensors", "/etc/passwd", "two.safetensors"]);
        assert_eq!(parameters(&folder, false).unwrap(), None);
        index(all);
        for (bytes, says) in [
            (
                (1_u64 << 60).to_le_bytes().to_vec(),
                "expected a header of safetensors",
            ),
            (shard(json!([-1])), "tensor a: expected a shape, found [-1]"),
            (shard(json!([1_u64 << 40, 1_u64 << 40])), "expected a shape"),
            (b"123".to_vec(), "cannot read"),
        ] {
            folder.write("two.safetensors", &bytes);
            let error = parameters(&folder, false).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }
}
