//! The hybrid of a generation: its strengths in `calibration.json`, its vectors beside them.

use serde::{Deserialize, Serialize};

use crate::error::{Result, bail};
use crate::files;
use crate::generation::Contents;
use crate::generation::cards::CARDS;
use crate::generation::exemplars::{EXEMPLARS, Exemplars};
use crate::hub::hybrid::{Hybrid, Memory, Strengths};

/// Its name in a generation.
pub(crate) const CALIBRATION: &str = "calibration.json";

/// Largest strength: a part times this is still exact enough beside the others in f32.
const STRONGEST: f64 = 1e3;

/// Strengths, and what they were fitted on: `calibration.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Calibration {
    /// Version of this form; 1.
    schema_version: u32,
    /// Of each part.
    pub strengths: Strengths,
    /// Held-out prompts that they were fitted on; with its parent's where these were not kept.
    pub rows: usize,
    /// Mean negative log-likelihood of those prompts' models with the strengths of
    /// [`Strengths::default`], or of that parent, in nats, in which experiences with few prompts and
    /// with many count the same (`learn::calibrate`); none without prompts.
    pub loss_before: Option<f64>,
    /// The same with [`Calibration::strengths`].
    pub loss_after: Option<f64>,
}

impl Calibration {
    pub(crate) fn new(strengths: Strengths, rows: usize, losses: Option<(f64, f64)>) -> Self {
        Self {
            schema_version: 1,
            strengths,
            rows,
            loss_before: losses.map(|(before, _)| before),
            loss_after: losses.map(|(_, after)| after),
        }
    }

    /// Errors: another version, or strengths that are none.
    fn check(&self) -> Result<()> {
        if self.schema_version != 1 {
            bail!(
                Unsupported,
                "schema_version: expected 1, found {}",
                self.schema_version
            );
        }
        let s = &self.strengths;
        for (name, value, least) in [
            // A cosine is read back from this part.
            ("learned", s.learned, 1e-6),
            ("card", s.card, 0.0),
            ("exemplar", s.exemplar, 0.0),
            ("domain", s.domain, 0.0),
            ("balance", s.balance, 0.0),
            ("prior", s.prior, -1.0),
        ] {
            if !(least..=STRONGEST).contains(&value) {
                bail!(
                    Numeric,
                    "strengths.{name}: expected a number from {least} to {STRONGEST}, found {value}"
                );
            }
        }
        Ok(())
    }
}

impl Contents {
    /// What the frozen encoder remembers; none: its vectors were not kept.
    fn memory(&self) -> Result<Option<Memory>> {
        if !self.parts.contains_key(CARDS) {
            return Ok(None);
        }
        let width = self.manifest.encoder.width;
        let exemplars = self.exemplars()?;
        Ok(Some(Memory::new(
            &self.hub,
            self.cards()?,
            exemplars.each(),
            exemplars.balance(),
            width,
        )))
    }

    /// Centroids of the models' prompts; without the part, of none.
    pub(crate) fn exemplars(&self) -> Result<Exemplars> {
        let (models, width) = (self.hub.len(), self.manifest.encoder.width);
        match self.parts.get(EXEMPLARS) {
            Some(bytes) => Exemplars::read(bytes, models, width).map_err(|e| e.at(EXEMPLARS)),
            None => Ok(Exemplars::none(models, width)),
        }
    }

    /// The hybrid, if the generation has one.
    ///
    /// Errors: one of its parts is missing or malformed.
    pub(crate) fn hybrid(&self) -> Result<Option<Hybrid>> {
        let Some(calibration) = self.calibration()? else {
            return Ok(None);
        };
        match self.memory()? {
            Some(memory) => Ok(Some(Hybrid {
                strengths: calibration.strengths,
                memory,
            })),
            None => bail!(
                Format,
                "{CALIBRATION}: expected {CARDS} beside it, found none"
            ),
        }
    }

    /// How the hybrid was fitted, if there is one.
    pub(crate) fn calibration(&self) -> Result<Option<Calibration>> {
        let Some(bytes) = self.parts.get(CALIBRATION) else {
            return Ok(None);
        };
        let calibration: Calibration = files::parse_json(CALIBRATION.as_ref(), bytes)?;
        calibration.check().map_err(|e| e.at(CALIBRATION))?;
        Ok(Some(calibration))
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn strengths_are_checked() {
        let good = Calibration::new(Strengths::default(), 3, Some((2.0, 1.5)));
        good.check().unwrap();
        let refused = |change: &dyn Fn(&mut Calibration), kind: ErrorKind, want: &str| {
            let mut bad = good.clone();
            change(&mut bad);
            let error = bad.check().unwrap_err();
            assert!(error.to_string().contains(want), "{error}");
            assert_eq!(error.kind(), kind);
        };
        let numeric = ErrorKind::Numeric;
        refused(&|c| c.strengths.card = -0.1, numeric, "strengths.card: ");
        refused(
            &|c| c.strengths.learned = 0.0,
            numeric,
            "strengths.learned: ",
        );
        refused(&|c| c.strengths.prior = f64::NAN, numeric, "found NaN");
        refused(&|c| c.strengths.prior = -1.5, numeric, "from -1 to 1000");
        refused(
            &|c| c.schema_version = 2,
            ErrorKind::Unsupported,
            "expected 1, found 2",
        );
    }
}
