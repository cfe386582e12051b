//! What a chat request demands of a model, as constraints on attributes.

use crate::error::Result;
use crate::route::chat::{ChatNeeds, ResponseFormat};
use crate::route::policy::constraint::Constraint;
use crate::route::policy::facts::Facts;

/// A need that a request has or does not have, its name, and what a model must state.
struct Need {
    name: &'static str,
    has: fn(&ChatNeeds) -> bool,
    constraint: &'static str,
}

/// The order is that of the bits of [`Abilities`].
const NEEDS: [Need; 9] = [
    Need {
        name: "tools",
        has: |needs| needs.has_tools,
        constraint: "tools = true or capabilities has tools or supported_parameters has tools",
    },
    Need {
        name: "images",
        has: |needs| needs.has_images,
        constraint: "modality has image or input_modalities has image or capabilities has vision",
    },
    Need {
        name: "audio",
        has: |needs| needs.has_audio,
        constraint: "modality has audio or input_modalities has audio or capabilities has audio",
    },
    Need {
        name: "video",
        has: |needs| needs.has_video,
        constraint: "modality has video or input_modalities has video or capabilities has video",
    },
    Need {
        name: "files",
        has: |needs| needs.has_files,
        constraint: "modality has file or input_modalities has file or capabilities has files",
    },
    Need {
        name: "a spoken answer",
        has: |needs| needs.wants_audio,
        constraint: "output_modalities has audio or capabilities has speech",
    },
    Need {
        name: "a JSON object",
        has: |needs| needs.response_format == ResponseFormat::JsonObject,
        constraint: "json = true or capabilities has json or \
                     supported_parameters has response_format or \
                     supported_parameters has structured_outputs",
    },
    Need {
        name: "JSON by a schema",
        has: |needs| needs.response_format == ResponseFormat::JsonSchema,
        constraint: "json_schema = true or capabilities has json_schema or \
                     supported_parameters has structured_outputs",
    },
    Need {
        name: "an answer of a form",
        has: |needs| needs.response_format == ResponseFormat::Other,
        constraint: "capabilities has grammar",
    },
];

/// Tokens of the whole conversation, the answer included.
const CONTEXT: &str = "context_length";

/// Tokens of an answer; a model that does not state it is not excluded.
const OUTPUT: &str = "max_output_tokens";

/// The constraints of [`NEEDS`], read once.
pub(super) struct NeedConstraints(Vec<Constraint>);

/// What a model states about the needs of chat requests.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Abilities {
    /// Bit n: the constraint of need n is true.
    met: u16,
    /// Bit n: it is false, rather than unknown.
    refused: u16,
    context: Option<f64>,
    output: Option<f64>,
}

impl NeedConstraints {
    pub(super) fn read() -> Result<Self> {
        let read = NEEDS.iter().map(|need| need.constraint.parse());
        read.collect::<Result<_>>().map(Self)
    }

    pub(super) fn abilities(&self, facts: &Facts<'_>) -> Abilities {
        let mut found = Abilities {
            context: facts.number(CONTEXT),
            output: facts.number(OUTPUT),
            ..Abilities::default()
        };
        for (bit, constraint) in self.0.iter().enumerate() {
            match constraint.holds(facts) {
                Some(true) => found.met |= 1 << bit,
                Some(false) => found.refused |= 1 << bit,
                None => (),
            }
        }
        found
    }
}

/// The needs of one request.
pub(super) struct Demands<'n> {
    needs: &'n ChatNeeds,
    /// Bit n: need n is there.
    wanted: u16,
    /// Tokens of the request and its answer.
    context: f64,
}

/// Parts of a policy that a chat request adds: those of [`NEEDS`], then the two of tokens.
pub(super) const PARTS: usize = NEEDS.len() + 2;

impl<'n> Demands<'n> {
    pub(super) fn new(needs: &'n ChatNeeds) -> Self {
        let all = NEEDS.iter().enumerate();
        let wanted = all.filter(|(_, need)| (need.has)(needs));
        let tokens = needs
            .input_tokens
            .saturating_add(needs.max_output_tokens.unwrap_or(0));
        Self {
            needs,
            wanted: wanted.fold(0, |bits, (bit, _)| bits | 1 << bit),
            context: tokens as f64,
        }
    }

    /// What part `part` of [`PARTS`] is called.
    pub(super) fn name(&self, part: usize) -> String {
        match NEEDS.get(part) {
            Some(need) => format!("needs {}", need.name),
            None if part == NEEDS.len() => format!("needs {CONTEXT} >= {}", self.context),
            None => format!(
                "needs {OUTPUT} >= {}",
                self.needs.max_output_tokens.unwrap_or(0)
            ),
        }
    }

    /// Whether a model of these abilities meets part `part`; `None`: it does not say.
    pub(super) fn meets(&self, part: usize, has: &Abilities) -> Option<bool> {
        if part < NEEDS.len() {
            let bit = 1 << part;
            return match (self.wanted & bit != 0, has.met & bit != 0) {
                (false, _) | (_, true) => Some(true),
                _ => (has.refused & bit != 0).then_some(false),
            };
        }
        if part == NEEDS.len() {
            return has.context.map(|context| context >= self.context);
        }
        let wanted = self.needs.max_output_tokens.map(|tokens| tokens as f64);
        match (wanted, has.output) {
            (Some(wanted), Some(output)) => Some(output >= wanted),
            _ => Some(true),
        }
    }

    /// Whether a model of these abilities meets all parts.
    pub(super) fn all(&self, has: &Abilities) -> bool {
        self.wanted & !has.met == 0
            && (NEEDS.len()..PARTS).all(|part| self.meets(part, has) == Some(true))
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use serde_json::json;

    use super::*;
    use crate::hub::Model;

    fn abilities(attributes: serde_json::Value) -> Abilities {
        let mut model = Model::new("m", "d");
        model.attributes = serde_json::from_value(attributes).unwrap();
        let facts = Facts {
            id: 0,
            model: &model,
            deployment: None,
        };
        NeedConstraints::read().unwrap().abilities(&facts)
    }

    #[test]
    fn needs_are_met_by_what_hubs_and_gateways_state() {
        let mut needs = ChatNeeds {
            has_tools: true,
            has_images: true,
            response_format: ResponseFormat::JsonSchema,
            input_tokens: 900,
            max_output_tokens: Some(100),
            ..ChatNeeds::default()
        };
        let open_router = json!({"context_length": 1000, "input_modalities": ["text", "image"],
            "supported_parameters": ["tools", "structured_outputs"]});
        let own = json!({"context_length": 1000, "modality": "text+image->text", "tools": true,
            "json_schema": true, "max_output_tokens": 100});
        for good in [open_router, own.clone()] {
            let demands = Demands::new(&needs);
            assert!(demands.all(&abilities(good.clone())), "{good}");
            let parts = (0..PARTS).map(|part| demands.meets(part, &abilities(good.clone())));
            assert!(parts.into_iter().all(|met| met == Some(true)));
        }
        let fails = |key: &str, value: serde_json::Value, needs: &ChatNeeds| {
            let mut changed = own.clone();
            changed[key] = value;
            let (demands, has) = (Demands::new(needs), abilities(changed));
            assert!(!demands.all(&has), "{key}");
            let failed = (0..PARTS).filter(|part| demands.meets(*part, &has) != Some(true));
            failed
                .map(|part| (demands.name(part), demands.meets(part, &has)))
                .collect::<Vec<_>>()
        };
        let found = fails("context_length", 999.into(), &needs);
        assert_eq!(
            found,
            [("needs context_length >= 1000".to_owned(), Some(false))]
        );
        let found = fails("context_length", serde_json::Value::Null, &needs);
        assert_eq!(found, [("needs context_length >= 1000".to_owned(), None)]);
        let found = fails("max_output_tokens", 99.into(), &needs);
        assert_eq!(
            found,
            [("needs max_output_tokens >= 100".to_owned(), Some(false))]
        );
        let found = fails("tools", serde_json::Value::Null, &needs);
        assert_eq!(found, [("needs tools".to_owned(), None)]);
        needs.has_audio = true;
        let found = fails("tools", true.into(), &needs);
        assert_eq!(found, [("needs audio".to_owned(), None)]);
    }

    #[test]
    fn a_plain_request_needs_room_alone() {
        let needs = ChatNeeds {
            input_tokens: 10,
            ..ChatNeeds::default()
        };
        assert!(Demands::new(&needs).all(&abilities(json!({"context_length": 10}))));
        assert!(!Demands::new(&needs).all(&abilities(json!({}))));
    }
}
