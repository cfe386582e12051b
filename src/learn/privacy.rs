//! What a child keeps of its parent's prompts when less may be kept than the parent kept.

use serde::Serialize;

use crate::encoder::Encoder;
use crate::error::Result;
use crate::learn::replay::Replay;
use crate::learn::settings::Privacy;

/// What a child does not keep of what its parent kept.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Withheld {
    /// What may be kept: `replay.privacy`.
    pub privacy: Privacy,
    /// Prompts for replay whose text is not kept.
    pub texts: usize,
    /// Prompts for replay whose vector is not kept.
    pub vectors: usize,
    /// Held-out prompts that are not kept: later updates cannot measure what they forget of them.
    pub held_out: usize,
}

impl Withheld {
    /// True where the child keeps as much as its parent.
    pub fn is_nothing(&self) -> bool {
        (self.texts, self.vectors, self.held_out) == (0, 0, 0)
    }
}

/// Takes from what the parent kept what `privacy` does not allow: a text becomes the vector of the
/// frozen encoder or, with that, a hash. Of a held-out prompt stays what was seen of it, if that is kept.
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
