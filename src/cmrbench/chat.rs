//! A language model that is asked for domains: the request, and the way to the model.

use std::fmt;
use std::sync::Arc;

use serde_json::{Value, json};

/// Most tokens of an answer. No domain has so long a name, so a longer answer is a miss.
const MOST_TOKENS: usize = 64;

/// Sends a request and returns its answer: from the body of an OpenAI-compatible
/// `POST /v1/chat/completions` to the text of the first choice.
pub type Ask =
    dyn Fn(&Value) -> Result<String, Box<dyn std::error::Error + Send + Sync>> + Send + Sync;

/// The domains that a language model chooses from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DomainList {
    /// All domains that the hub has at the step.
    #[default]
    Hub,
    /// The domains of the eval rows that are being predicted, as in the reference: easier.
    File,
}

impl DomainList {
    /// `hub` or `file`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hub => "hub",
            Self::File => "file",
        }
    }
}

/// A language model behind a chat endpoint (carve.md section 12.9). This library opens no socket:
/// the host passes the function that asks.
#[derive(Clone)]
#[non_exhaustive]
pub struct Chat {
    /// Its address, as it is shown. Without a name it is also the model's identity.
    pub endpoint: String,
    /// Its name, for a server with several models.
    pub model: Option<String>,
    /// The domains that it chooses from.
    pub domains: DomainList,
    ask: Arc<Ask>,
}

impl Chat {
    /// The model at `endpoint`; `ask` sends it a request.
    pub fn new(
        endpoint: impl Into<String>,
        ask: impl Fn(&Value) -> Result<String, Box<dyn std::error::Error + Send + Sync>>
        + Send
        + Sync
        + 'static,
    ) -> Self {
        Self {
            endpoint: endpoint.into(),
            model: None,
            domains: DomainList::default(),
            ask: Arc::new(ask),
        }
    }

    /// The same with a model's name.
    pub fn model(mut self, name: Option<String>) -> Self {
        self.model = name;
        self
    }

    /// The same with other domains to choose from.
    pub fn domains(mut self, domains: DomainList) -> Self {
        self.domains = domains;
        self
    }

    pub(super) fn ask(
        &self,
        request: &Value,
    ) -> Result<String, Box<dyn std::error::Error + Send + Sync>> {
        (self.ask)(request)
    }

    /// `qwen3 at http://localhost:8080/v1/chat/completions`
    pub fn description(&self) -> String {
        match &self.model {
            Some(model) => format!("{model} at {}", self.endpoint),
            None => self.endpoint.clone(),
        }
    }

    /// The identity of its answers. A named model is the same wherever it runs.
    pub(super) fn identity(&self) -> Value {
        json!({
            "model": self.model,
            "endpoint": self.model.is_none().then_some(&self.endpoint),
            "domains": self.domains.name(),
        })
    }

    /// The body of a request for the domain of `prompt`, one of `domains`.
    ///
    /// A server may ignore `seed`, `max_tokens` and `chat_template_kwargs` (no thinking, for models
    /// that do it): they do not belong to the question.
    pub(super) fn request(&self, domains: &[&str], prompt: &str, seed: u64) -> Value {
        let text = format!(
            "A hub has models for many domains. Decide which domain the request at the end \
             belongs to, so \
             that it can be sent to a model of that domain.\n\n\
             Domains: {}\n\n\
             Answer with exactly one name from this list, as it is written there, and nothing else. If you \
             are unsure, answer with the closest one.\n\n\
             Request: {prompt}",
            domains.join(", ")
        );
        let mut body = json!({
            "messages": [{"role": "user", "content": text}],
            "temperature": 0.6,
            "top_p": 0.95,
            "seed": seed,
            "max_tokens": MOST_TOKENS,
            "chat_template_kwargs": {"enable_thinking": false},
        });
        if let Some(model) = &self.model {
            body["model"] = model.as_str().into();
        }
        body
    }
}

impl fmt::Debug for Chat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chat")
            .field("endpoint", &self.endpoint)
            .field("model", &self.model)
            .field("domains", &self.domains)
            .finish_non_exhaustive()
    }
}

/// Whether an answer names the domain: equal except for case, white space and punctuation at the
/// end (carve.md section 12.9).
pub(super) fn names(answer: &str, domain: &str) -> bool {
    let plain = |text: &str| {
        let words: Vec<String> = text.split_whitespace().map(str::to_lowercase).collect();
        let text = words.join(" ");
        text.trim_end_matches(['.', ',', ';', ':', '!', '?', ' '])
            .to_owned()
    };
    plain(answer) == plain(domain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_says_what_section_12_9_wants() {
        let chat = Chat::new("x", |_| Ok(String::new())).model(Some("qwen3".into()));
        let body = chat.request(&["Audio", "Text Translation"], "Translate \"this\".", 7);
        for (key, want) in [
            ("temperature", json!(0.6)),
            ("top_p", json!(0.95)),
            ("seed", json!(7)),
            ("model", json!("qwen3")),
            ("chat_template_kwargs", json!({"enable_thinking": false})),
        ] {
            assert_eq!(body[key], want, "{key}");
        }
        let text = body["messages"][0]["content"].as_str().unwrap_or_default();
        assert!(
            text.contains("Domains: Audio, Text Translation\n"),
            "{text}"
        );
        assert!(text.ends_with("\n\nRequest: Translate \"this\"."), "{text}");
        let unnamed = Chat::new("x", |_| Ok(String::new()));
        assert!(unnamed.request(&[], "", 0).get("model").is_none());
    }

    #[test]
    fn only_the_name_itself_is_a_hit() {
        for hit in [
            "Text Classification",
            " text\n classification. ",
            "TEXT CLASSIFICATION ?!",
        ] {
            assert!(names(hit, "Text  Classification"), "{hit}");
        }
        for miss in [
            "",
            "Text",
            "Classification",
            "Domain: Text Classification",
            "\"Text Classification\"",
            "Text Classification, Audio",
            "Text-Classification",
        ] {
            assert!(!names(miss, "Text Classification"), "{miss}");
        }
    }

    /// Its key in a debug line would be a leak; so would be a cell that is another model's.
    #[test]
    fn a_model_is_known_by_its_name_or_else_by_its_place() {
        let at = |place: &str, model: Option<&str>| {
            let chat = Chat::new(place, |_| Ok(String::new()));
            chat.model(model.map(str::to_owned)).identity()
        };
        assert_eq!(at("a", Some("m")), at("b", Some("m")));
        assert_ne!(at("a", None), at("b", None));
        assert_ne!(at("a", Some("m")), at("a", Some("n")));
    }
}
