//! Which setting is probably the cause when numbers go out of range.

use crate::error::{Error, ErrorKind};
use crate::learn::settings::Settings;

/// Rates and strengths with which numbers grow.
const GROW: [&str; 13] = [
    "lr.lora",
    "lr.w",
    "lr.e",
    "lr.phase1.w",
    "lr.phase1.e",
    "lora.alpha",
    "weight_decay",
    "replay.weight",
    "anchor.embedding",
    "anchor.projection",
    "ewc.lambda",
    "lwf.alpha",
    "clip",
];

impl Settings {
    /// Adds to an error of numbers out of range the setting that is most above its recipe.
    pub(super) fn blame(&self, error: Error) -> Error {
        if error.kind() != ErrorKind::Numeric {
            return error;
        }
        match suspect(self) {
            Some((key, value, usual)) => error.but(format!(
                "{key} = {value:e} is probably too large (the recipe edge has {usual:e})"
            )),
            None => error.but("lr.lora, lr.w or lr.e is probably too large for these examples"),
        }
    }
}

/// The setting that is most times above the recipe `edge`, with its value there.
fn suspect(settings: &Settings) -> Option<(&'static str, f64, f64)> {
    let (all, usual) = (settings.pairs(), Settings::edge().pairs());
    let value = |pairs: &[(String, serde_json::Value)], key: &str| {
        let pair = pairs.iter().find(|(name, _)| name == key)?;
        pair.1.as_f64()
    };
    let above = GROW.into_iter().filter_map(|key| {
        let (value, usual) = (value(&all, key)?, value(&usual, key)?);
        // A setting that is 0 in the recipe counts as 1 there.
        let times = value / if usual > 0.0 { usual } else { 1.0 };
        (times > 1.0).then_some((times, key, value, usual))
    });
    let most = above.max_by(|a, b| a.0.total_cmp(&b.0))?;
    Some((most.1, most.2, most.3))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn the_setting_most_above_its_recipe_is_suspected() {
        let mut settings = Settings::edge();
        assert_eq!(suspect(&settings), None);
        settings.set("lr.w", "3").unwrap();
        settings.set("lr.e", "2").unwrap();
        settings.set("lr.lora", "0").unwrap();
        assert_eq!(suspect(&settings), Some(("lr.w", 3.0, 3e-4)));
        settings.set("lwf.alpha", "1e6").unwrap();
        assert_eq!(suspect(&settings), Some(("lwf.alpha", 1e6, 0.0)));
    }
}
