//! Models to allow or deny: by id, name, glob, domain or family.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, bail};
use crate::hub::{Hub, Model, domain_key};
use crate::route::policy::truth::glob;

/// Models by what they are called.
///
/// | text | models |
/// |---|---|
/// | `acme/ner` | that name or alias |
/// | `acme/*` | names and aliases that fit; `*` is any text, `?` any character |
/// | `id:17` | that id |
/// | `domain:audio*` | of that domain, which may have `*` and `?` |
/// | `family:llama` | of that family, which may have `*` and `?` |
///
/// Names are compared exactly, domains and families without regard to case.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(
    feature = "cli",
    derive(schemars::JsonSchema),
    schemars(with = "String")
)]
#[serde(try_from = "String", into = "String")]
#[non_exhaustive]
pub enum ModelPattern {
    /// An id.
    Id(u32),
    /// A name, an alias, or a glob of them.
    Name(String),
    /// A domain, or a glob.
    Domain(String),
    /// A family, or a glob.
    Family(String),
}

impl std::str::FromStr for ModelPattern {
    type Err = Error;

    /// Errors: nothing is named; `id:` without a number.
    fn from_str(text: &str) -> Result<Self> {
        let text = text.trim();
        let read = match text.split_once(':') {
            Some(("id", id)) => match id.trim().parse() {
                Ok(id) => return Ok(Self::Id(id)),
                Err(_) => bail!(
                    InvalidRequest,
                    "{text:?}: expected id: and a number, found {id:?}"
                ),
            },
            Some(("domain", domain)) => Self::Domain(domain.trim().to_owned()),
            Some(("family", family)) => Self::Family(family.trim().to_owned()),
            _ => Self::Name(text.to_owned()),
        };
        let (Self::Name(named) | Self::Domain(named) | Self::Family(named)) = &read else {
            return Ok(read);
        };
        if named.is_empty() {
            bail!(
                InvalidRequest,
                "{text:?}: expected the name of a model, id:, domain: or family:, found nothing"
            );
        }
        Ok(read)
    }
}

impl TryFrom<String> for ModelPattern {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<ModelPattern> for String {
    fn from(pattern: ModelPattern) -> Self {
        pattern.to_string()
    }
}

impl fmt::Display for ModelPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => write!(f, "id:{id}"),
            Self::Name(name) => f.write_str(name),
            Self::Domain(domain) => write!(f, "domain:{domain}"),
            Self::Family(family) => write!(f, "family:{family}"),
        }
    }
}

fn is_glob(text: &str) -> bool {
    text.contains(['*', '?'])
}

impl ModelPattern {
    /// Errors: the pattern names one model, and `hub` does not have it; `others`: names beside the
    /// hub's.
    pub(super) fn check(&self, hub: &Hub, others: &[&str]) -> Result<()> {
        match self {
            Self::Name(name) if !is_glob(name) && !others.contains(&name.as_str()) => {
                hub.resolve(name).map(drop)
            }
            Self::Id(id) if *id as usize >= hub.len() => bail!(
                InvalidRequest,
                "id:{id}: expected an id below {}, the number of models",
                hub.len()
            ),
            _ => Ok(()),
        }
    }

    /// Whether the model `id`, or its deployment of that name, is meant.
    pub(super) fn fits(&self, id: u32, model: &Model, deployment: Option<&str>) -> bool {
        match self {
            Self::Id(wanted) => *wanted == id,
            Self::Name(wanted) => {
                let aliases = model.aliases.iter().map(|alias| &**alias);
                let mut names = aliases.chain([&*model.name]).chain(deployment);
                match is_glob(wanted) {
                    true => names.any(|name| glob(wanted, name)),
                    false => names.any(|name| name == wanted),
                }
            }
            Self::Domain(wanted) => glob(&domain_key(wanted), &domain_key(&model.domain)),
            Self::Family(wanted) => model
                .family
                .as_deref()
                .is_some_and(|family| glob(&wanted.to_lowercase(), &family.to_lowercase())),
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn patterns_are_read_and_written() {
        for text in [
            "acme/ner",
            "acme/*",
            "id:17",
            "domain:audio*",
            "family:llama",
        ] {
            let read: ModelPattern = text.parse().unwrap();
            assert_eq!(read.to_string(), text);
            let json = serde_json::to_string(&read).unwrap();
            assert_eq!(serde_json::from_str::<ModelPattern>(&json).unwrap(), read);
        }
        for (text, want) in [
            ("id:x", "expected id: and a number, found \"x\""),
            (" ", "found nothing"),
            ("domain:", "found nothing"),
        ] {
            let error = text.parse::<ModelPattern>().unwrap_err().to_string();
            assert!(error.contains(want), "{error}");
        }
    }

    #[test]
    fn a_pattern_fits_the_models_that_it_names() {
        let mut model = Model::new("acme/ner", "Audio  Classification");
        model.aliases = vec!["tagger".into()];
        model.family = Some("Llama".into());
        for (text, want) in [
            ("acme/ner", true),
            ("Acme/ner", false),
            ("tagger", true),
            ("acme/*", true),
            ("*/other", false),
            ("id:3", true),
            ("id:4", false),
            ("domain:audio classification", true),
            ("domain:audio*", true),
            ("domain:audio", false),
            ("family:llama", true),
            ("family:ll?ma", true),
            ("family:mistral", false),
            ("eu-1", true),
            ("eu-*", true),
        ] {
            let pattern: ModelPattern = text.parse().unwrap();
            assert_eq!(pattern.fits(3, &model, Some("eu-1")), want, "{text}");
        }
    }

    #[test]
    fn unknown_names_and_ids_are_errors() {
        let hub = Hub::default()
            .with([Model::new("acme/ner-large", "x")])
            .unwrap();
        let check = |text: &str| text.parse::<ModelPattern>().unwrap().check(&hub, &["eu-1"]);
        for known in [
            "acme/ner-large",
            "eu-1",
            "acme/*",
            "nobody*",
            "id:0",
            "domain:y",
        ] {
            check(known).unwrap();
        }
        let error = check("acme/ner-lagre").unwrap_err().to_string();
        assert!(error.contains("did you mean acme/ner-large?"), "{error}");
        let error = check("id:1").unwrap_err().to_string();
        assert!(error.contains("below 1"), "{error}");
    }
}
