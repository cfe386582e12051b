//! Removes from the parent's kept prompts what the child may not keep.

use serde::Serialize;

use crate::encoder::Encoder;
use crate::error::Result;
use crate::learn::kept::replay::Replay;
use crate::learn::settings::Privacy;

/// Kept prompts of the parent that the child drops or shortens.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Withheld {
    /// The setting `replay.privacy`.
    pub privacy: Privacy,
    /// Prompts for replay that lose their text.
    pub texts: usize,
    /// Prompts for replay that lose their vector.
    pub vectors: usize,
    /// Held-out prompts that are dropped: later updates cannot measure by them.
    pub held_out: usize,
}

impl Withheld {
    /// True if the child keeps as much as its parent.
    pub fn is_nothing(&self) -> bool {
        (self.texts, self.vectors, self.held_out) == (0, 0, 0)
    }
}

/// Removes what `privacy` does not allow. A text is replaced by its vector, of the encoder without
/// adapters, or both by a hash. A held-out prompt loses its text, and stays if vectors may be kept
/// and it has one.
pub(crate) fn withhold(
    replay: &mut Replay,
    held_out: &mut Replay,
    privacy: Privacy,
    encoder: &Encoder,
) -> Result<Withheld> {
    let mut withheld = Withheld {
        privacy,
        texts: 0,
        vectors: 0,
        held_out: 0,
    };
    if privacy == Privacy::Text {
        return Ok(withheld);
    }
    for entry in &mut replay.entries {
        let text = entry.text.take();
        withheld.texts += usize::from(text.is_some());
        if privacy == Privacy::Hashes {
            withheld.vectors += usize::from(entry.embedding.take().is_some());
        } else if let Some(text) = text
            && let Some(vector) = encoder.embed(&[&text]).pop()
        {
            entry.set_embedding(&vector?);
        }
    }
    let before = held_out.entries.len();
    for entry in &mut held_out.entries {
        entry.text = None;
        if privacy == Privacy::Hashes {
            entry.seen = None;
        }
    }
    held_out.entries.retain(|entry| entry.seen.is_some());
    withheld.held_out = before - held_out.entries.len();
    Ok(withheld)
}
