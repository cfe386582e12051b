//! From a stated task to a domain: the names of the bundled hub, by Hugging Face's tags.

use std::collections::HashMap;

use crate::hub::domain_key;

/// A task by its tag on Hugging Face, and as a domain: the group, and the name within it.
#[derive(Debug, PartialEq)]
pub(super) struct KnownTask {
    tag: &'static str,
    group: &'static str,
    name: &'static str,
}

const NLP: &str = "Natural Language Processing";
const VISION: &str = "Computer Vision";
const AUDIO: &str = "Audio";
const MULTIMODAL: &str = "Multimodal";
const TABULAR: &str = "Tabular";
const REINFORCEMENT: &str = "Reinforcement Learning";

const fn task(tag: &'static str, group: &'static str, name: &'static str) -> KnownTask {
    KnownTask { tag, group, name }
}

/// The tasks of Hugging Face. Where the bundled hub has two groups, the one with more models.
static TASKS: [KnownTask; 57] = [
    task("any-to-any", MULTIMODAL, "Any-to-Any"),
    task("audio-classification", AUDIO, "Audio Classification"),
    task("audio-text-to-text", MULTIMODAL, "Audio-Text-to-Text"),
    task("audio-to-audio", AUDIO, "Audio-to-Audio"),
    task(
        "automatic-speech-recognition",
        AUDIO,
        "Automatic Speech Recognition",
    ),
    task("conversational", NLP, "Conversational"),
    task("depth-estimation", VISION, "Depth Estimation"),
    task(
        "document-question-answering",
        MULTIMODAL,
        "Document Question Answering",
    ),
    task("feature-extraction", NLP, "Feature Extraction"),
    task("fill-mask", NLP, "Fill-Mask"),
    task("graph-ml", MULTIMODAL, "Graph Machine Learning"),
    task("image-classification", VISION, "Image Classification"),
    task(
        "image-feature-extraction",
        VISION,
        "Image Feature Extraction",
    ),
    task("image-segmentation", VISION, "Image Segmentation"),
    task("image-text-to-image", MULTIMODAL, "Image-Text-to-Image"),
    task("image-text-to-text", MULTIMODAL, "Image-Text-to-Text"),
    task("image-text-to-video", MULTIMODAL, "Image-Text-to-Video"),
    task("image-to-3d", VISION, "Image-to-3D"),
    task("image-to-image", VISION, "Image-to-Image"),
    task("image-to-text", MULTIMODAL, "Image-to-Text"),
    task("image-to-video", VISION, "Image-to-Video"),
    task("keypoint-detection", VISION, "Keypoint Detection"),
    task("mask-generation", VISION, "Mask Generation"),
    task("object-detection", VISION, "Object Detection"),
    task("question-answering", NLP, "Question Answering"),
    task("reinforcement-learning", "", REINFORCEMENT),
    task("robotics", REINFORCEMENT, "Robotics"),
    task("sentence-similarity", NLP, "Sentence Similarity"),
    task("summarization", NLP, "Summarization"),
    task("table-question-answering", NLP, "Table Question Answering"),
    task("tabular-classification", TABULAR, "Tabular Classification"),
    task("tabular-regression", TABULAR, "Tabular Regression"),
    task("text-classification", NLP, "Text Classification"),
    task("text-generation", NLP, "Text Generation"),
    task("text-ranking", NLP, "Text Ranking"),
    task("text-to-3d", VISION, "Text-to-3D"),
    task("text-to-audio", AUDIO, "Text-to-Audio"),
    task("text-to-image", VISION, "Text-to-Image"),
    task("text-to-speech", AUDIO, "Text-to-Speech"),
    task("text-to-video", VISION, "Text-to-Video"),
    task("text2text-generation", NLP, "Text2Text Generation"),
    task("time-series-forecasting", "", "Time Series Forecasting"),
    task("token-classification", NLP, "Token Classification"),
    task("translation", NLP, "Translation"),
    task(
        "unconditional-image-generation",
        VISION,
        "Unconditional Image Generation",
    ),
    task("video-classification", VISION, "Video Classification"),
    task("video-text-to-text", MULTIMODAL, "Video-Text-to-Text"),
    task("video-to-video", VISION, "Video-to-Video"),
    task(
        "visual-document-retrieval",
        MULTIMODAL,
        "Visual Document Retrieval",
    ),
    task(
        "visual-question-answering",
        MULTIMODAL,
        "Visual Question Answering",
    ),
    task(
        "voice-activity-detection",
        AUDIO,
        "Voice Activity Detection",
    ),
    task("zero-shot-classification", NLP, "Zero-Shot Classification"),
    task(
        "zero-shot-image-classification",
        VISION,
        "Zero-Shot Image Classification",
    ),
    task(
        "zero-shot-object-detection",
        VISION,
        "Zero-Shot Object Detection",
    ),
    // Tags of before, on many cards.
    task("sentence-transformers", NLP, "Sentence Similarity"),
    task("speech-recognition", AUDIO, "Automatic Speech Recognition"),
    task("text-to-text-generation", NLP, "Text2Text Generation"),
];

/// A domain as a source states it.
#[derive(Debug, PartialEq)]
pub(super) enum StatedDomain {
    /// A task that is known.
    KnownTask(&'static KnownTask),
    /// In the source's own words.
    Words(String),
}

impl StatedDomain {
    /// The task of `tag`; a tag that is not known is spelled as words.
    pub(super) fn tag(tag: &str) -> Option<Self> {
        if let Some(task) = known(tag) {
            return Some(Self::KnownTask(task));
        }
        let fits = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if tag.is_empty() || tag.len() > 64 || !tag.chars().all(fits) {
            return None;
        }
        let words = tag.split(['-', '_']).map(|word| {
            let mut letters = word.chars();
            let first = letters.next().map(|c| c.to_ascii_uppercase());
            first.into_iter().chain(letters).collect::<String>()
        });
        Some(Self::Words(words.collect::<Vec<_>>().join(" ")))
    }

    /// A task that `tag` names, as it may stand among other tags.
    pub(super) fn known(tag: &str) -> Option<Self> {
        known(tag).map(Self::KnownTask)
    }

    /// The domain's name among `there`: with the group or without it, as the hub has it; with the
    /// group if it has neither.
    pub(super) fn name(&self, there: &DomainSpellings) -> String {
        match self {
            Self::Words(words) => there.spelled(words).unwrap_or(words).to_owned(),
            Self::KnownTask(task) => {
                let whole = match task.group {
                    "" => task.name.to_owned(),
                    group => format!("{group} {}", task.name),
                };
                let own = there.spelled(&whole).or_else(|| there.spelled(task.name));
                own.map_or(whole, str::to_owned)
            }
        }
    }
}

/// The domains of a hub, by their key.
#[derive(Default)]
pub(super) struct DomainSpellings(HashMap<String, String>);

impl DomainSpellings {
    pub(super) fn of(hub: &crate::Hub) -> Self {
        let mut there = HashMap::new();
        for (_, model) in hub.iter() {
            let own = || model.domain.to_string();
            there.entry(domain_key(&model.domain)).or_insert_with(own);
        }
        Self(there)
    }

    fn spelled(&self, domain: &str) -> Option<&str> {
        self.0.get(&domain_key(domain)).map(String::as_str)
    }
}

fn known(tag: &str) -> Option<&'static KnownTask> {
    TASKS.iter().find(|task| task.tag == tag)
}

/// The task of a model with these inputs and outputs, as OpenRouter names them: `text`, `image`,
/// `audio`, `video`, `file`, `embeddings`.
pub(super) fn of_modality(inputs: &[&str], outputs: &[&str]) -> Option<StatedDomain> {
    let from = |name: &str| inputs.contains(&name);
    let only = |name: &str| inputs.iter().all(|input| *input == name);
    let tag = match outputs {
        ["text"] => match (from("image"), from("audio"), from("video")) {
            (false, false, false) if from("text") => "text-generation",
            (_, true, false) if only("audio") => "automatic-speech-recognition",
            (true, true, _) => "any-to-any",
            (false, true, true) => "any-to-any",
            (true, false, _) => "image-text-to-text",
            (false, true, false) => "audio-text-to-text",
            (false, false, true) => "video-text-to-text",
            _ => return None,
        },
        ["image"] if only("text") => "text-to-image",
        ["image"] if from("image") => "image-to-image",
        ["video"] if only("text") => "text-to-video",
        ["video"] if from("image") => "image-to-video",
        ["audio" | "speech"] if only("text") => "text-to-speech",
        ["embeddings" | "embedding"] => "feature-extraction",
        ["text", "image"] | ["image", "text"] => "any-to-any",
        ["text", "audio"] | ["audio", "text"] if from("audio") => "any-to-any",
        _ => return None,
    };
    StatedDomain::known(tag)
}

/// The task behind a word for a model's kind, as LiteLLM (`mode`) and others (`type`) use them.
pub(super) fn of_kind(kind: &str) -> Option<StatedDomain> {
    let tag = match kind {
        "chat" | "completion" | "responses" | "language" | "llm" | "code" => "text-generation",
        "vlm" => "image-text-to-text",
        "embedding" | "embeddings" => "feature-extraction",
        "rerank" => "text-ranking",
        "image" | "image_generation" => "text-to-image",
        "video_generation" => "text-to-video",
        "audio_transcription" => "automatic-speech-recognition",
        "audio_speech" => "text-to-speech",
        "moderation" => "text-classification",
        _ => return None,
    };
    StatedDomain::known(tag)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::{Hub, Model};

    fn named(stated: Option<StatedDomain>) -> Option<String> {
        stated.map(|stated| stated.name(&DomainSpellings::default()))
    }

    /// All but those that the bundled hub has no model of.
    #[test]
    fn tasks_are_domains_of_the_bundled_hub() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        let store = crate::Store::open(root.join("weights/cmrbench")).unwrap();
        let hub = store.hub(&store.current().unwrap()).unwrap();
        let there = DomainSpellings::of(&hub);
        let without: Vec<&str> = TASKS
            .iter()
            .filter(|task| {
                let whole = format!("{} {}", task.group, task.name);
                there.spelled(&whole).is_none()
            })
            .map(|task| task.tag)
            .collect();
        assert_eq!(
            without,
            [
                "any-to-any",
                "image-text-to-image",
                "image-text-to-video",
                "time-series-forecasting"
            ]
        );
    }

    #[test]
    fn a_hub_keeps_its_own_spelling() {
        let stated = StatedDomain::tag("token-classification").unwrap();
        let whole = "Natural Language Processing Token Classification";
        for (domain, want) in [
            ("token  Classification", "token  Classification"),
            ("x", whole),
        ] {
            let hub = Hub::default().with([Model::new("m", domain)]).unwrap();
            assert_eq!(stated.name(&DomainSpellings::of(&hub)), want);
        }
        let hub = Hub::default()
            .with([
                Model::new("a", "Token Classification"),
                Model::new("b", whole),
            ])
            .unwrap();
        assert_eq!(stated.name(&DomainSpellings::of(&hub)), whole);
    }

    #[test]
    fn tags_that_are_not_known_are_spelled_as_words() {
        let want = |text: &str| Some(text.to_owned());
        assert_eq!(named(StatedDomain::tag("other")), want("Other"));
        assert_eq!(
            named(StatedDomain::tag("video-to-scent")),
            want("Video To Scent")
        );
        for none in ["", "two words", "é", &"x".repeat(65)] {
            assert_eq!(StatedDomain::tag(none), None);
        }
        assert_eq!(StatedDomain::known("pytorch"), None);
    }

    #[test]
    fn inputs_and_outputs_are_a_task() {
        for (inputs, outputs, want) in [
            (&["text"][..], &["text"][..], Some("text-generation")),
            (&["text", "file"], &["text"], Some("text-generation")),
            (
                &["text", "image", "file"],
                &["text"],
                Some("image-text-to-text"),
            ),
            (
                &["text", "image", "video"],
                &["text"],
                Some("image-text-to-text"),
            ),
            (&["text", "video"], &["text"], Some("video-text-to-text")),
            (&["text", "audio"], &["text"], Some("audio-text-to-text")),
            (&["audio"], &["text"], Some("automatic-speech-recognition")),
            (
                &["text", "image", "audio", "video"],
                &["text"],
                Some("any-to-any"),
            ),
            (&["text"], &["image"], Some("text-to-image")),
            (&["text", "image"], &["image"], Some("image-to-image")),
            (&["text", "image"], &["image", "text"], Some("any-to-any")),
            (&["text"], &["audio"], Some("text-to-speech")),
            (&["text", "image"], &["video"], Some("image-to-video")),
            (&["text"], &["embeddings"], Some("feature-extraction")),
            (&["scent"], &["text"], None),
            (&["text"], &["scent"], None),
            (&["text"], &[], None),
        ] {
            assert_eq!(
                of_modality(inputs, outputs),
                want.and_then(StatedDomain::known)
            );
        }
    }
}
