//! The lists of models of OpenAI-compatible servers: OpenAI, vLLM, llama.cpp, LiteLLM, OpenRouter,
//! and others with fields of the same names.

use std::path::Path;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::tasks::{self, StatedDomain};
use super::{Found, Skipped, SourceEntry, short_text, texts};
use crate::cli::web::{self, Server, said, start};
use crate::error::{Result, bail, error};
use crate::files;
use crate::text::encoding::decoded;

/// Most bytes of a list.
const LARGEST: u64 = 64 << 20;

/// Most pages of a list.
const MOST_PAGES: usize = 100;

/// Where a list is read from.
#[derive(Clone)]
pub(super) enum ListPlace {
    Url(String),
    File(std::path::PathBuf),
}

impl ListPlace {
    /// `text`: the URL of a server, of its `/v1` or of the list, or a file.
    ///
    /// Errors: the URL is none, or contains a user name.
    pub(super) fn of(text: &str) -> Result<Self> {
        let text = text.trim();
        let remote = text
            .split_once("://")
            .is_some_and(|(scheme, _)| scheme.chars().all(|c| c.is_ascii_alphanumeric()));
        if !remote {
            return Ok(Self::File(text.into()));
        }
        Server::of(text, "--from-openai", "--key-env")?;
        let text = text.split('#').next().unwrap_or(text);
        let (path, query) = match text.split_once('?') {
            Some((path, query)) => (path, format!("?{query}")),
            None => (text, String::new()),
        };
        let path = path.trim_end_matches('/');
        let last = path.rsplit('/').next().unwrap_or(path);
        let version = last
            .strip_prefix('v')
            .is_some_and(|digits| !digits.is_empty() && digits.chars().all(|c| c.is_ascii_digit()));
        // Of `http://host`, the last part is the host.
        let bare = path.matches('/').count() <= 2;
        let rest = match last {
            "models" | "info" if !bare => "",
            _ if version && !bare => "/models",
            _ => "/v1/models",
        };
        Ok(Self::Url(format!("{path}{rest}{query}")))
    }

    /// The name under which a hub remembers it: the URL without its query, which may be a secret;
    /// the whole path of a file.
    pub(super) fn name(&self) -> String {
        match self {
            Self::Url(url) => url.split('?').next().unwrap_or(url).to_owned(),
            Self::File(path) => super::whole(path),
        }
    }

    /// The place that `link` means, if it is on the same server.
    fn other(&self, link: &str) -> Option<Self> {
        let Self::Url(url) = self else { return None };
        let path = url
            .match_indices('/')
            .nth(2)
            .map_or(url.len(), |(at, _)| at);
        let server = &url[..path];
        let rest = link.strip_prefix(server).unwrap_or(link);
        let inside = rest.starts_with('/') && !rest.starts_with("//");
        inside.then(|| Self::Url(format!("{server}{rest}")))
    }

    /// The bytes of the list.
    fn read(&self, key: Option<&str>, timeout: Duration) -> Result<Vec<u8>> {
        match self {
            Self::Url(url) => get(url, key, timeout),
            Self::File(path) => files::read_bytes(path, LARGEST),
        }
    }
}

/// The body behind `url`.
///
/// Errors: there is no answer in time, it is a refusal or a redirect, or it is too large.
fn get(url: &str, key: Option<&str>, timeout: Duration) -> Result<Vec<u8>> {
    let server = Server::of(url, "--from-openai", "--key-env")?;
    let place = url.split('?').next().unwrap_or(url);
    #[expect(clippy::disallowed_types, reason = "a socket of the command")]
    let agent: ureq::Agent = server.agent(timeout);
    let mut request = agent.get(url).header("accept", "application/json");
    if let Some(key) = key {
        if url.starts_with("http://") && !server.is_local() {
            log::warn!("{place}: the key is sent without encryption; use https if the server can");
        }
        request = request.header("authorization", format!("Bearer {key}"));
    }
    log::info!("{place}: asking for the models");
    let answered = request.call().and_then(|response| {
        let status = response.status().as_u16();
        let target = response.headers().get("location");
        let target = target.and_then(|value| Some(value.to_str().ok()?.to_owned()));
        let mut body = response.into_body();
        let bytes = body.with_config().limit(LARGEST).read_to_vec()?;
        Ok((status, target, bytes))
    });
    let (status, target, bytes) = match answered {
        Ok(answered) => answered,
        Err(ureq::Error::BodyExceedsLimit(_)) => bail!(
            Format,
            "{place}: expected a list of at most {LARGEST} bytes, found a longer answer"
        ),
        Err(ureq::Error::Timeout(_)) => bail!(
            Io,
            "{place}: expected a list within {} s, found none; check the server, or allow more \
             with --timeout",
            timeout.as_secs()
        ),
        Err(e) => bail!(
            Io,
            "{place}: expected a list of models, found no answer: {e}; check the URL and that the \
             server is up"
        ),
    };
    if (200..300).contains(&status) {
        return Ok(bytes);
    }
    let mut text = said(&String::from_utf8_lossy(&bytes));
    if let Some(key) = key {
        text = text.replace(key, "[key]");
    }
    let advice = match (status, target) {
        (401 | 403, _) if key.is_none() => "name the variable with the key: --key-env".to_owned(),
        (401 | 403, _) => "check that the key is valid for it".to_owned(),
        (300..=399, Some(target)) => {
            format!("it redirects to {target}: name that URL if you trust it")
        }
        (404 | 405, _) => {
            "expected the URL of a server, of its /v1 or of its /v1/models".to_owned()
        }
        (408 | 429 | 500..=599, _) => "try again later".to_owned(),
        _ => "check the URL".to_owned(),
    };
    bail!(
        Refused,
        "{place}: expected a list of models, found HTTP {status}{text}; {advice}"
    )
}

/// A list, or a page of one.
struct Page {
    /// The models, in the list's order.
    entries: Vec<SourceEntry>,
    /// Where the next page is, as the server writes it.
    next: Option<String>,
    /// There are more models, wherever they are.
    goes_on: bool,
}

/// Errors: it is no list of models.
fn parse(bytes: &[u8]) -> Result<Page> {
    let wrong = |found: String| {
        error!(
            Format,
            "expected a JSON object with a list \"data\" of models, as /v1/models gives it, found \
             {found}"
        )
    };
    let text = decoded(bytes)?;
    let value: Value = serde_json::from_slice(text).map_err(|e| {
        let begin = String::from_utf8_lossy(&text[..text.len().min(200)]);
        wrong(format!("{:?} ({e})", start(begin.trim_start())))
    })?;
    let next = value.pointer("/links/next").and_then(Value::as_str);
    let next = next.map(str::to_owned);
    let goes_on = next.is_some() || value.get("has_more") == Some(&Value::Bool(true));
    let list = match value {
        Value::Array(list) => list,
        Value::Object(mut object) => match (object.remove("data"), object.remove("error")) {
            (Some(Value::Array(list)), _) => list,
            (None, Some(error)) => {
                let text = error.get("message").and_then(Value::as_str);
                let text = text.map_or_else(|| error.to_string(), str::to_owned);
                return Err(wrong(format!("the error {:?}", start(&text))));
            }
            (Some(other), _) => {
                return Err(wrong(format!("\"data\": {}", start(&other.to_string()))));
            }
            (None, None) => {
                let keys: Vec<&str> = object.keys().take(5).map(|key| start(key)).collect();
                return Err(wrong(format!("an object with the keys {keys:?}")));
            }
        },
        other => return Err(wrong(start(&other.to_string()).to_owned())),
    };
    let entries = list.iter().enumerate();
    Ok(Page {
        entries: entries.map(|(at, item)| entry(at, item)).collect(),
        next,
        goes_on,
    })
}

fn entry(at: usize, item: &Value) -> SourceEntry {
    let skipped = |reason: &str| {
        let name = format!("data[{at}]");
        Err(Skipped::new(name, reason.to_owned()))
    };
    let Some(own) = item.as_object() else {
        return skipped("expected an object, found another value");
    };
    // LiteLLM's /model/info has what it knows one level below.
    let info = own.get("model_info").and_then(Value::as_object);
    let fields = Fields { own, info };
    let Some(name) = fields
        .text("id")
        .filter(|_| info.is_none())
        .or(fields.text("model_name"))
    else {
        return skipped("expected a text \"id\", found none");
    };
    Ok(fields.model(name))
}

/// The fields of an entry.
struct Fields<'f> {
    own: &'f Map<String, Value>,
    info: Option<&'f Map<String, Value>>,
}

impl<'f> Fields<'f> {
    /// What is under `path`, parts separated by `.`, and not null.
    fn get(&self, path: &str) -> Option<&'f Value> {
        let of = |map: &'f Map<String, Value>| {
            let mut parts = path.split('.');
            let first = map.get(parts.next()?)?;
            parts.try_fold(first, |value, part| value.get(part))
        };
        let found = of(self.own).or_else(|| of(self.info?));
        found.filter(|value| !value.is_null())
    }

    fn text(&self, path: &str) -> Option<&'f str> {
        let text = self.get(path)?.as_str()?.trim();
        (!text.is_empty()).then_some(text)
    }

    /// The first of `paths` with a number above 0.
    fn count(&self, paths: &[&str]) -> Option<u64> {
        let mut counts = paths
            .iter()
            .filter_map(|path| super::count(self.get(path)?));
        counts.next()
    }

    fn model(&self, name: &str) -> Found {
        let mut found = Found::new(name);
        let context = self.count(&[
            "context_length",
            "max_model_len",
            "context_window",
            "max_context_length",
            "meta.n_ctx",
            "max_input_tokens",
        ]);
        found.state("context_length", context);
        // What the model was made for; the server may serve less.
        found.state("context_length_trained", self.count(&["meta.n_ctx_train"]));
        let output = self.count(&[
            "top_provider.max_completion_tokens",
            "max_completion_tokens",
            "max_output_tokens",
            "max_output_length",
        ]);
        found.state("max_output_tokens", output);
        found.state("parameters", self.count(&["meta.n_params"]));
        found.state("price", self.price());
        for key in ["owned_by", "hugging_face_id"] {
            found.state(key, self.text(key).and_then(short_text));
        }
        let quantised = self.text("quantization").or(self.text("meta.ftype"));
        found.state("quantisation", quantised.and_then(short_text));
        let served = |key: &str| self.text(key).filter(|text| *text != name);
        found.state("root", served("root").and_then(short_text));
        found.state("base_model", served("parent").and_then(short_text));
        self.modality(&mut found);
        self.abilities(&mut found);
        found.title = self
            .text("name")
            .or(self.text("display_name"))
            .filter(|title| *title != name)
            .and_then(short_text);
        found.description = self.text("description").and_then(super::description);
        found.domain = self.domain(&found);
        found
    }

    /// US dollars for a million tokens, as OpenRouter and LiteLLM state them for one.
    fn price(&self) -> Option<Value> {
        let of = |paths: [&str; 2]| {
            let mut prices = paths
                .into_iter()
                .filter_map(|path| per_million(self.get(path)?));
            prices.next()
        };
        let mut price = Map::new();
        let input = of(["pricing.prompt", "input_cost_per_token"]);
        price.extend(input.map(|input| ("input".to_owned(), json!(input))));
        let output = of(["pricing.completion", "output_cost_per_token"]);
        price.extend(output.map(|output| ("output".to_owned(), json!(output))));
        (!price.is_empty()).then_some(Value::Object(price))
    }

    fn modality(&self, found: &mut Found) {
        let architecture = |key: &str| {
            let path = format!("architecture.{key}");
            self.get(&path).or_else(|| self.get(key))
        };
        let modality = architecture("modality").and_then(Value::as_str);
        found.state("modality", modality.and_then(short_text));
        for key in ["input_modalities", "output_modalities"] {
            found.state(key, architecture(key).and_then(texts));
        }
    }

    /// Tools and what else the server says that a model can do.
    fn abilities(&self, found: &mut Found) {
        let parameters = self.get("supported_parameters").and_then(texts);
        let tools = parameters
            .as_ref()
            .map(|all| all.contains(&"tools".to_owned()));
        found.state("supported_parameters", parameters);
        let capabilities = match self.get("capabilities") {
            // Mistral's form.
            Some(Value::Object(flags)) => {
                let able = flags.iter().filter(|(_, flag)| **flag == Value::Bool(true));
                let names = able.filter_map(|(name, _)| short_text(name));
                Some(names.take(super::MOST_TEXTS).collect())
            }
            Some(other) => texts(other),
            None => None,
        };
        let features = self.get("supported_features").and_then(texts);
        let mut capabilities: Vec<String> = capabilities.or(features).unwrap_or_default();
        let flag = |key: &str| self.get(key).and_then(Value::as_bool);
        for (key, name) in [
            ("supports_vision", "vision"),
            ("supports_audio_input", "audio"),
            ("supports_audio_output", "speech"),
            ("supports_response_schema", "json_schema"),
        ] {
            if flag(key) == Some(true) && !capabilities.iter().any(|known| known == name) {
                capabilities.push(name.to_owned());
            }
        }
        let calling = self
            .get("capabilities.function_calling")
            .and_then(Value::as_bool);
        let tools = tools
            .or_else(|| flag("supports_function_calling"))
            .or(calling);
        found.state("tools", tools);
        found.state(
            "capabilities",
            (!capabilities.is_empty()).then_some(capabilities),
        );
    }

    /// The domain that is stated, or the task that inputs and outputs or the kind make.
    fn domain(&self, found: &Found) -> Option<StatedDomain> {
        if let Some(domain) = self.text("domain").and_then(short_text) {
            return Some(StatedDomain::Words(domain));
        }
        let tag = self.text("pipeline_tag").or_else(|| self.text("task"));
        if let Some(stated) = tag.and_then(StatedDomain::tag) {
            return Some(stated);
        }
        let modality = found.attributes.get("modality").and_then(Value::as_str);
        let parts = modality.and_then(|modality| modality.split_once("->"));
        let split = |text: &str| -> Vec<String> { text.split('+').map(str::to_owned).collect() };
        let listed = |key: &str| found.attributes.get(key).and_then(texts);
        let both = listed("input_modalities").zip(listed("output_modalities"));
        let both = both.or_else(|| parts.map(|(from, to)| (split(from), split(to))));
        let by_modality = both.and_then(|(from, to)| {
            let lower = |all: Vec<String>| -> Vec<String> {
                all.iter().map(|one| one.trim().to_lowercase()).collect()
            };
            let (from, to) = (lower(from), lower(to));
            let from: Vec<&str> = from.iter().map(String::as_str).collect();
            let to: Vec<&str> = to.iter().map(String::as_str).collect();
            tasks::of_modality(&from, &to)
        });
        let kind = || self.text("mode").or_else(|| self.text("type"));
        by_modality.or_else(|| tasks::of_kind(kind()?))
    }
}

/// A price of one token, a number or its text, times a million, as if the decimal point was moved.
fn per_million(price: &Value) -> Option<f64> {
    let text = match price {
        Value::String(text) => text.trim().to_owned(),
        Value::Number(number) => number.to_string(),
        _ => return None,
    };
    let (digits, exponent) = match text.split_once(['e', 'E']) {
        Some((digits, exponent)) => (digits, exponent.parse::<i32>().ok()?),
        None => (&*text, 0),
    };
    let moved = format!("{digits}e{}", exponent.checked_add(6)?);
    // A negative price stands for one that depends on the request.
    let price: f64 = moved.parse().ok()?;
    (price.is_finite() && price >= 0.0 && digits.contains(|c: char| c.is_ascii_digit()))
        .then_some(price)
}

/// The place of a list on the command line, and the key in the variable `key_env`.
pub(super) fn asked(
    text: &str,
    key_env: Option<&str>,
    timeout: Duration,
) -> Result<(ListPlace, Vec<SourceEntry>)> {
    let place = ListPlace::of(text)?;
    if let (ListPlace::File(path), Some(_)) = (&place, key_env) {
        bail!(
            InvalidRequest,
            "--key-env: expected a URL after --from-openai, found {}; a file needs no key",
            path.display()
        );
    }
    let key = web::key(key_env, "--key-env")?;
    let mut entries = Vec::new();
    let mut at = place.clone();
    for _ in 0..MOST_PAGES {
        let bytes = at.read(key.as_deref(), timeout);
        let bytes = bytes.map_err(|error| hint(error, &place))?;
        let page = parse(&bytes).map_err(|error| error.at(at.name()))?;
        entries.extend(page.entries);
        if !page.goes_on {
            return Ok((place, entries));
        }
        match page.next.and_then(|next| at.other(&next)) {
            Some(next) => at = next,
            None => break,
        }
    }
    bail!(
        Unsupported,
        "{}: expected a whole list, found {} models and the word that there are more; ask for all \
         of them, such as with ?limit=1000 behind the URL",
        place.name(),
        entries.len()
    )
}

/// A host without a scheme looks like a file.
fn hint(error: crate::Error, place: &ListPlace) -> crate::Error {
    match place {
        ListPlace::File(path) if error.is_missing() && !is_json(path) => {
            error.but("a URL begins with http:// or https://")
        }
        _ => error,
    }
}

fn is_json(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending == "json")
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::super::tasks::DomainSpellings;
    use super::*;
    use crate::error::ErrorKind;
    use std::io::{BufRead, BufReader, Write};
    use std::net::{TcpListener, TcpStream};
    use std::thread::JoinHandle;

    fn models(list: &Value) -> Vec<Found> {
        let page = parse(list.to_string().as_bytes()).unwrap();
        page.entries.into_iter().map(Result::unwrap).collect()
    }

    fn attributes(found: &Found) -> Value {
        serde_json::to_value(&found.attributes).unwrap()
    }

    fn domain(found: &Found) -> Option<String> {
        let stated = found.domain.as_ref()?;
        Some(stated.name(&DomainSpellings::default()))
    }

    #[test]
    fn vllm_states_context_root_and_parent() {
        let found = models(&json!({"object": "list", "data": [
            {"id": "Qwen/Qwen2.5-7B-Instruct", "object": "model", "created": 1_764_000_000,
             "owned_by": "vllm", "root": "/models/qwen", "parent": null, "max_model_len": 32768,
             "permission": [{"id": "modelperm-1", "allow_sampling": true}]},
            {"id": "sql-lora", "object": "model", "created": 1_764_000_000, "owned_by": "vllm",
             "root": "sql-lora", "parent": "Qwen/Qwen2.5-7B-Instruct", "max_model_len": null},
        ]}));
        assert_eq!(found[0].name, "Qwen/Qwen2.5-7B-Instruct");
        let want = json!({"context_length": 32768, "owned_by": "vllm", "root": "/models/qwen"});
        assert_eq!(attributes(&found[0]), want);
        let want = json!({"owned_by": "vllm", "base_model": "Qwen/Qwen2.5-7B-Instruct"});
        assert_eq!(attributes(&found[1]), want);
        assert_eq!((domain(&found[0]), &found[0].description), (None, &None));
    }

    /// `n_ctx` is what is served; `n_ctx_train` alone promises no context.
    #[test]
    fn llama_cpp_states_its_contexts_and_capabilities() {
        let list = |meta: Value| {
            json!({
                "models": [{"name": "m.gguf", "model": "m.gguf", "capabilities": ["completion"]}],
                "object": "list",
                "data": [{"id": "m.gguf", "aliases": ["m.gguf"], "tags": [], "object": "model",
                    "architecture": {"input_modalities": ["text"], "output_modalities": ["text"]},
                    "created": 1_764_000_000, "owned_by": "llamacpp",
                    "capabilities": ["completion", "multimodal"], "meta": meta}]})
        };
        let meta = json!({"vocab_type": 2, "n_vocab": 49152, "n_ctx": 2048, "n_ctx_train": 8192,
            "n_embd": 576, "n_params": 134_515_008_u64, "size": 96_576_768, "ftype": "Q4_1"});
        let found = models(&list(meta));
        let want = json!({"context_length": 2048, "context_length_trained": 8192,
            "parameters": 134_515_008_u64, "owned_by": "llamacpp", "quantisation": "Q4_1",
            "input_modalities": ["text"], "output_modalities": ["text"],
            "capabilities": ["completion", "multimodal"]});
        assert_eq!(attributes(&found[0]), want);
        let want = "Natural Language Processing Text Generation";
        assert_eq!(domain(&found[0]).as_deref(), Some(want));
        let found = models(&list(json!({"n_ctx_train": 8192})));
        assert_eq!(found[0].attributes.get("context_length"), None);
        assert_eq!(models(&list(Value::Null)).len(), 1);
    }

    #[test]
    fn open_router_states_nearly_everything() {
        let found = models(&json!({"data": [{
            "id": "openai/gpt-4o", "canonical_slug": "openai/gpt-4o", "name": "OpenAI: GPT-4o",
            "hugging_face_id": "", "created": 1_715_558_400,
            "description": "GPT-4o reads text\nand   images.", "context_length": 128_000,
            "architecture": {"modality": "text+image+file->text",
                "input_modalities": ["text", "image", "file"], "output_modalities": ["text"],
                "tokenizer": "GPT", "instruct_type": null},
            "pricing": {"prompt": "0.0000025", "completion": "0.00001", "image": "0", "request": "0"},
            "top_provider": {"context_length": 128_000, "max_completion_tokens": 16384,
                "is_moderated": true},
            "per_request_limits": null,
            "supported_parameters": ["max_tokens", "tools", "structured_outputs"],
        }, {
            "id": "openrouter/auto", "name": "Auto Router", "pricing": {"prompt": "-1",
            "completion": "-1"}, "architecture": {"modality": "text->text"},
            "supported_parameters": [],
        }]}));
        let want = json!({
            "context_length": 128_000, "max_output_tokens": 16384,
            "price": {"input": 2.5, "output": 10.0},
            "modality": "text+image+file->text",
            "input_modalities": ["text", "image", "file"], "output_modalities": ["text"],
            "supported_parameters": ["max_tokens", "tools", "structured_outputs"], "tools": true,
        });
        assert_eq!(attributes(&found[0]), want);
        assert_eq!(found[0].title.as_deref(), Some("OpenAI: GPT-4o"));
        let text = "GPT-4o reads text and images.";
        assert_eq!(found[0].description.as_deref(), Some(text));
        assert_eq!(
            domain(&found[0]).as_deref(),
            Some("Multimodal Image-Text-to-Text")
        );
        let want = json!({"modality": "text->text"});
        assert_eq!(attributes(&found[1]), want);
        let want = "Natural Language Processing Text Generation";
        assert_eq!(domain(&found[1]).as_deref(), Some(want));
    }

    #[test]
    fn lite_llm_lists_names_and_informs_about_them() {
        let found = models(&json!({"object": "list", "data": [
            {"id": "gpt-4o", "object": "model", "created": 1_677_610_602, "owned_by": "openai"}]}));
        assert_eq!(attributes(&found[0]), json!({"owned_by": "openai"}));
        let found = models(&json!({"data": [{
            "model_name": "fast", "litellm_params": {"model": "groq/llama", "api_key": "sk-secret"},
            "model_info": {"id": "0a1b", "mode": "chat", "max_tokens": 8192,
                "max_input_tokens": 131_072, "max_output_tokens": 8192,
                "input_cost_per_token": 5e-8, "output_cost_per_token": 8e-8,
                "supports_function_calling": true, "supports_vision": null}},
            {"model_name": "embed", "model_info": {"id": "2c3d", "mode": "embedding",
                "supports_function_calling": false, "supports_vision": true}}]}));
        assert_eq!(found[0].name, "fast");
        let want = json!({"context_length": 131_072, "max_output_tokens": 8192,
            "price": {"input": 0.05, "output": 0.08}, "tools": true});
        assert_eq!(attributes(&found[0]), want);
        let want = "Natural Language Processing Text Generation";
        assert_eq!(domain(&found[0]).as_deref(), Some(want));
        let want = json!({"tools": false, "capabilities": ["vision"]});
        assert_eq!(attributes(&found[1]), want);
        let want = "Natural Language Processing Feature Extraction";
        assert_eq!(domain(&found[1]).as_deref(), Some(want));
    }

    /// Mistral's capabilities, LM Studio's type, a plain list, a domain of the server's own.
    #[test]
    fn other_servers_state_the_same_in_other_words() {
        let found = models(&json!([
            {"id": "a", "type": "vlm", "max_context_length": 4096.0, "quantization": "Q4_K_M"},
            {"id": "b", "capabilities": {"completion_chat": true, "function_calling": true,
                "vision": false}, "context_window": "many"},
            {"id": "c", "domain": " My Domain ", "pipeline_tag": "translation"},
            {"id": "d", "pipeline_tag": "translation", "context_length": 0},
            {"id": "e", "supported_features": ["tools"], "architecture": {"modality": "scent"}},
        ]));
        let want = json!({"context_length": 4096, "quantisation": "Q4_K_M"});
        assert_eq!(attributes(&found[0]), want);
        assert_eq!(
            domain(&found[0]).as_deref(),
            Some("Multimodal Image-Text-to-Text")
        );
        let want = json!({"tools": true, "capabilities": ["completion_chat", "function_calling"]});
        assert_eq!(attributes(&found[1]), want);
        assert_eq!(domain(&found[2]).as_deref(), Some("My Domain"));
        let want = "Natural Language Processing Translation";
        assert_eq!(domain(&found[3]).as_deref(), Some(want));
        assert_eq!(attributes(&found[3]), json!({}));
        let want = json!({"modality": "scent", "capabilities": ["tools"]});
        assert_eq!((attributes(&found[4]), domain(&found[4])), (want, None));
    }

    #[test]
    fn prices_move_the_decimal_point() {
        for (price, want) in [
            (json!("0.0000025"), Some(2.5)),
            (json!("0"), Some(0.0)),
            (json!("2.5e-6"), Some(2.5)),
            (json!(1.5e-7), Some(0.15)),
            (json!(0.000_003), Some(3.0)),
            (json!(1), Some(1e6)),
            (json!("-1"), None),
            (json!("free"), None),
            (json!("inf"), None),
            (json!("nan"), None),
            (json!("1e400"), None),
            (json!("1e2147483647"), None),
            (json!(""), None),
            (json!(null), None),
        ] {
            assert_eq!(per_million(&price), want, "{price}");
        }
    }

    #[test]
    fn what_is_no_list_is_named() {
        for (text, says) in [
            ("<html>", "found \"<html>\""),
            ("", "found \"\""),
            ("{\"data\": ", "EOF"),
            ("7", "found 7"),
            ("{}", "an object with the keys []"),
            ("{\"models\": [], \"x\": 1}", "the keys [\"models\", \"x\"]"),
            (
                "{\"data\": {\"id\": \"m\"}}",
                "found \"data\": {\"id\":\"m\"}",
            ),
            (
                "{\"error\": {\"message\": \"no such route\"}}",
                "the error \"no such route\"",
            ),
            ("\u{feff}{\"data\": 1}", "found \"data\": 1"),
        ] {
            let error = parse(text.as_bytes()).err().unwrap();
            assert_eq!(error.kind(), ErrorKind::Format);
            assert!(error.to_string().contains(says), "{text}: {error}");
        }
        let deep = "[".repeat(100_000);
        assert!(parse(deep.as_bytes()).is_err());
        assert!(parse(b"\xff\xfe{\0").is_err());
        let page = parse(b"[7, {}, {\"id\": 3}, {\"id\": \" \"}, {\"id\": \"m\"}]").unwrap();
        let reasons = page.entries.iter().map(|entry| match entry {
            Ok(found) => found.name.clone(),
            Err(skipped) => format!("{}: {}", skipped.name, skipped.reason),
        });
        let no_id = |at: usize| format!("data[{at}]: expected a text \"id\", found none");
        let want = [
            "data[0]: expected an object, found another value".to_owned(),
            no_id(1),
            no_id(2),
            no_id(3),
            "m".to_owned(),
        ];
        assert_eq!(reasons.collect::<Vec<_>>(), want);
    }

    #[test]
    fn urls_lead_to_the_list() {
        let url = |text: &str| match ListPlace::of(text) {
            Ok(ListPlace::Url(url)) => url,
            Ok(ListPlace::File(path)) => format!("file {}", path.display()),
            Err(error) => error.to_string(),
        };
        for (text, want) in [
            ("http://host:1", "http://host:1/v1/models"),
            (" http://host:1/ ", "http://host:1/v1/models"),
            ("https://host/v1", "https://host/v1/models"),
            ("https://host/api/v1/", "https://host/api/v1/models"),
            ("https://host/v1/models/", "https://host/v1/models"),
            (
                "https://host/api/v2/models?x=1",
                "https://host/api/v2/models?x=1",
            ),
            ("https://host?x=1#y", "https://host/v1/models?x=1"),
            ("https://host/proxy", "https://host/proxy/v1/models"),
            ("http://host/model/info", "http://host/model/info"),
            ("http://models", "http://models/v1/models"),
            ("http://v1", "http://v1/v1/models"),
            ("list.json", "file list.json"),
            ("localhost:8080", "file localhost:8080"),
        ] {
            assert_eq!(url(text), want, "{text}");
        }
        for bad in ["ftp://x", "http://", "https:///v1"] {
            let text = url(bad);
            assert!(text.starts_with("--from-openai: expected a URL"), "{text}");
        }
        let text = url("https://me:secret@host/v1");
        assert!(
            text.contains("--key-env") && !text.contains("secret"),
            "{text}"
        );
        let place = ListPlace::of("http://h/v1/models?key=secret").unwrap();
        assert_eq!(place.name(), "http://h/v1/models");
        let next = |link: &str| {
            place.other(link).map(|place| match place {
                ListPlace::Url(url) => url,
                ListPlace::File(_) => String::new(),
            })
        };
        let want = Some("http://h/v1/models?offset=2".to_owned());
        assert_eq!(next("/v1/models?offset=2"), want);
        assert_eq!(next("http://h/v1/models?offset=2"), want);
        for elsewhere in [
            "http://other/v1",
            "//other/v1",
            "http://hh/x",
            "x",
            "http://h@other/",
        ] {
            assert_eq!(next(elsewhere), None, "{elsewhere}");
        }
    }

    /// The head of a request.
    fn head(stream: &TcpStream) -> String {
        let mut head = String::new();
        for line in BufReader::new(stream).lines() {
            let line = line.unwrap().to_lowercase();
            if line.is_empty() {
                break;
            }
            head += &format!("{line}\n");
        }
        head
    }

    fn reply(status: &str, body: &str) -> Vec<u8> {
        let length = body.len();
        format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}")
            .into_bytes()
    }

    type Answer = Box<dyn FnOnce(&mut TcpStream) + Send>;

    fn bytes(bytes: Vec<u8>) -> Answer {
        Box::new(move |stream| stream.write_all(&bytes).unwrap())
    }

    /// Gives `answers`, each on a connection of its own; the heads of the requests come back.
    fn serve(answers: Vec<Answer>) -> (String, JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let thread = std::thread::spawn(move || {
            let answer = |answer: Answer| {
                let (mut stream, _) = listener.accept().unwrap();
                let head = head(&stream);
                answer(&mut stream);
                head
            };
            answers.into_iter().map(answer).collect()
        });
        (url, thread)
    }

    const SECONDS: Duration = Duration::from_secs(20);

    fn read(url: &str, key: Option<&str>, timeout: Duration) -> Result<Vec<u8>> {
        ListPlace::of(url).unwrap().read(key, timeout)
    }

    #[test]
    fn the_key_is_a_bearer_token_and_in_no_error() {
        let echo = r#"{"error": {"message": "bad key sk-secret"}}"#;
        let (url, server) = serve(vec![
            bytes(reply("200 OK", "[1]")),
            bytes(reply("401 Unauthorized", echo)),
        ]);
        assert_eq!(read(&url, Some("sk-secret"), SECONDS).unwrap(), b"[1]");
        let error = read(&url, Some("sk-secret"), SECONDS).unwrap_err();
        let heads = server.join().unwrap();
        assert!(
            heads[0].starts_with("get /v1/models http/1.1\n"),
            "{}",
            heads[0]
        );
        assert!(
            heads[0].contains("\nauthorization: bearer sk-secret\n"),
            "{}",
            heads[0]
        );
        let text = error.to_string();
        assert_eq!(error.kind(), ErrorKind::Refused);
        assert!(
            text.contains("HTTP 401 (bad key [key]); check that the key"),
            "{text}"
        );
        assert!(!text.contains("secret"), "{text}");
    }

    #[test]
    fn refusals_say_what_to_do() {
        let moved = "HTTP/1.1 308 Moved\r\nlocation: https://elsewhere/\r\ncontent-length: \
         0\r\nconnection: close\r\n\r\n";
        for (answer, kind, says) in [
            (
                reply("500 Oops", r#"{"detail": "no memory"}"#),
                ErrorKind::Refused,
                "found HTTP 500 (no memory); try again later",
            ),
            (
                reply("401 No", ""),
                ErrorKind::Refused,
                "name the variable with the key: --key-env",
            ),
            (
                reply("404 No", "Not Found"),
                ErrorKind::Refused,
                "of a server, of its /v1 or of",
            ),
            (
                moved.into(),
                ErrorKind::Refused,
                "redirects to https://elsewhere/: name that URL",
            ),
            (b"".to_vec(), ErrorKind::Io, "found no answer"),
            (b"SSH-2.0\r\n".to_vec(), ErrorKind::Io, "found no answer"),
            (
                b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n[1".to_vec(),
                ErrorKind::Io,
                "found no answer",
            ),
        ] {
            let (url, server) = serve(vec![bytes(answer)]);
            let error = read(&url, None, SECONDS).unwrap_err();
            server.join().unwrap();
            assert!(error.to_string().contains(says), "{error}");
            assert_eq!(error.kind(), kind, "{error}");
        }
        // Nobody listens there any more.
        let (url, server) = serve(vec![]);
        server.join().unwrap();
        let error = read(&url, None, SECONDS).unwrap_err().to_string();
        assert!(
            error.contains("check the URL and that the server is up"),
            "{error}"
        );
    }

    /// One byte a time, and nothing but bytes.
    #[test]
    fn slow_and_endless_answers_end() {
        let slow: Answer = Box::new(|stream| {
            let begin = "HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n";
            let mut going = stream.write_all(begin.as_bytes()).is_ok();
            for _ in 0..100 {
                if !going {
                    break;
                }
                std::thread::sleep(Duration::from_millis(100));
                going = stream.write_all(b"[").is_ok();
            }
        });
        let endless: Answer = Box::new(|stream| {
            let begin = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
            let chunk = format!("10000\r\n{}\r\n", " ".repeat(1 << 16));
            let mut going = stream.write_all(begin.as_bytes()).is_ok();
            while going {
                going = stream.write_all(chunk.as_bytes()).is_ok();
            }
        });
        let (url, server) = serve(vec![slow, endless]);
        let error = read(&url, None, Duration::from_secs(1))
            .unwrap_err()
            .to_string();
        assert!(error.contains("expected a list within 1 s"), "{error}");
        let error = read(&url, None, Duration::from_secs(60))
            .unwrap_err()
            .to_string();
        assert!(error.contains("at most 67108864 bytes"), "{error}");
        server.join().unwrap();
    }

    #[test]
    fn pages_are_read_to_the_end() {
        let page = |name: &str, next: Value| {
            let page = json!({"data": [{"id": name}], "links": {"next": next}});
            bytes(reply("200 OK", &page.to_string()))
        };
        let (url, server) = serve(vec![
            page("a", json!("/v1/models?offset=1")),
            page("b", Value::Null),
        ]);
        let (place, entries) = asked(&url, None, SECONDS).unwrap();
        assert_eq!(
            (entries.len(), place.name()),
            (2, format!("{url}/v1/models"))
        );
        let heads = server.join().unwrap();
        assert!(
            heads[1].starts_with("get /v1/models?offset=1 http"),
            "{}",
            heads[1]
        );
        // A part of a list would make the rest look as if it was gone.
        let more = r#"{"data": [{"id": "a"}], "has_more": true}"#;
        for answer in [
            page("a", json!("https://elsewhere/v1/models")),
            bytes(reply("200 OK", more)),
        ] {
            let (url, server) = serve(vec![answer]);
            let error = asked(&url, None, SECONDS).err().unwrap().to_string();
            assert!(
                error.contains("expected a whole list, found 1 models"),
                "{error}"
            );
            server.join().unwrap();
        }
    }
}
