//! `precision.json` of a generation: how near its answers in int8 are to those in f32.
//!
//! The file stands beside the manifest and is no part of it, so a generation's id does not depend
//! on it, and a generation of an earlier version can get one.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Result, bail};
use crate::generation::GenerationId;
use crate::generation::beside::Beside;

pub(crate) const PRECISION: &str = "precision.json";
const KIND: &str = "hubrouter-precision";
const LIMIT: u64 = 1 << 16;

/// Fewest prompts that tell: from as many on, an update's held-out prompts have full weight.
pub(crate) const FEWEST: usize = 64;

/// Smallest share of prompts whose best model is of the same domain.
const SAME_DOMAIN: f64 = 0.985;

/// Largest change of domain accuracy, up or down, as a share; of few prompts one may change.
const CHANGE: f64 = 0.003;

/// Smallest cosine of a prompt's two vectors.
const COSINE: f64 = 0.995;

/// How near a generation's answers in int8 are to those in f32, on the same prompts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Agreement {
    /// Prompts.
    pub prompts: usize,
    /// Prompts that the generation held out, so that it never learned them; else any others.
    pub held_out: bool,
    /// Prompts with the same best model.
    pub same_model: usize,
    /// Prompts whose best models are of the same domain.
    pub same_domain: usize,
    /// Prompts whose best model is the right one, in f32 and in int8.
    pub model_hits: [usize; 2],
    /// Prompts whose best model is of the right domain, in f32 and in int8.
    pub domain_hits: [usize; 2],
    /// Smallest cosine of a prompt's vectors in f32 and in int8.
    pub worst_cosine: f64,
    /// SHA-256 of the vector of a fixed prompt in int8, little-endian f32: a machine must compute
    /// the same bits to use this.
    pub vector_sha256: String,
    /// The ancestor that was measured, if it is another generation with the same vectors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured_on: Option<GenerationId>,
}

impl Agreement {
    /// Which bar int8 misses; `None`: it passed. `auto` takes int8 for a generation that passed.
    ///
    /// At least 98.5 % of the best models are of the same domain, domain accuracy changes by at
    /// most 0.3 points, up or down, or by one prompt where that is more, and every cosine is at
    /// least 0.995. [`Agreement::same_model`] and [`Agreement::model_hits`] are no bars.
    pub fn missed(&self) -> Option<String> {
        let n = self.prompts as f64;
        let most = (CHANGE * n).max(1.0);
        if self.prompts < FEWEST {
            return Some(format!(
                "expected at least {FEWEST} prompts, found {}",
                self.prompts
            ));
        }
        if (self.same_domain as f64) < SAME_DOMAIN * n {
            return Some(format!(
                "same domain: expected at least {:.1} %, found {:.1} %",
                100.0 * SAME_DOMAIN,
                100.0 * self.same_domain as f64 / n
            ));
        }
        let [full, bytes] = self.domain_hits;
        if full.abs_diff(bytes) as f64 > most {
            return Some(format!(
                "domain accuracy: expected a change of at most {:.1} points, found {:.1} % in f32 \
                 and {:.1} % in int8",
                100.0 * most / n,
                100.0 * full as f64 / n,
                100.0 * bytes as f64 / n
            ));
        }
        (self.worst_cosine.is_nan() || self.worst_cosine < COSINE).then(|| {
            format!(
                "cosine with f32: expected at least {COSINE}, found {:.4}",
                self.worst_cosine
            )
        })
    }

    /// As a child's, whose vectors are those of `parent`.
    pub(crate) fn inherited(mut self, parent: &GenerationId) -> Self {
        self.measured_on.get_or_insert_with(|| parent.clone());
        self
    }

    /// Errors: figures that no measurement has.
    fn check(&self) -> Result<()> {
        let counts = [self.same_model, self.same_domain].into_iter();
        let hits = [self.model_hits, self.domain_hits].concat();
        if counts.chain(hits).any(|count| count > self.prompts)
            || self.same_model > self.same_domain
            || !(-1.01..=1.01).contains(&self.worst_cosine)
        {
            bail!(Format, "agreement: expected counts of prompts and a cosine");
        }
        Ok(())
    }
}

/// The file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    schema_version: u32,
    kind: String,
    generation: GenerationId,
    /// SHA-256 of the encoder's manifest.
    encoder: String,
    agreement: Agreement,
    /// Of this file with an empty text here.
    sha256: String,
}

impl Beside for Record {
    const NAME: &str = PRECISION;
    const KIND: &str = KIND;
    const LIMIT: u64 = LIMIT;

    fn belongs_to(&self) -> (&GenerationId, &str) {
        (&self.generation, &self.encoder)
    }

    fn sha256(&mut self) -> &mut String {
        &mut self.sha256
    }
}

/// The file's bytes for generation `id`, whose encoder has the hash `encoder`.
pub(crate) fn to_bytes(id: &GenerationId, encoder: &str, agreement: &Agreement) -> Result<Vec<u8>> {
    let record = Record {
        schema_version: 1,
        kind: KIND.to_owned(),
        generation: id.clone(),
        encoder: encoder.to_owned(),
        agreement: agreement.clone(),
        sha256: String::new(),
    };
    record.sealed()
}

/// The agreement that is recorded in `folder`, which is generation `id` with the encoder `encoder`;
/// `None`: nothing is.
///
/// Errors: the file is damaged, or belongs to another generation or encoder.
pub(crate) fn read(folder: &Path, id: &GenerationId, encoder: &str) -> Result<Option<Agreement>> {
    let Some(record) = Record::read(folder, id, encoder)? else {
        return Ok(None);
    };
    let place = folder.join(PRECISION);
    record
        .agreement
        .check()
        .map_err(|e| e.at(place.display()))?;
    Ok(Some(record.agreement))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::files;
    use crate::testing::Folder;

    fn good(prompts: usize) -> Agreement {
        Agreement {
            prompts,
            held_out: true,
            same_model: prompts,
            same_domain: prompts,
            model_hits: [prompts / 3; 2],
            domain_hits: [prompts / 2; 2],
            worst_cosine: 0.996,
            vector_sha256: "0".repeat(64),
            measured_on: None,
        }
    }

    #[test]
    fn each_bar_is_held() {
        let missed = |change: fn(&mut Agreement), n: usize| {
            let mut agreement = good(n);
            change(&mut agreement);
            agreement.missed()
        };
        assert_eq!(missed(|_| (), 1000), None);
        assert_eq!(missed(|a| a.same_domain = 985, 1000), None);
        assert_eq!(missed(|a| a.domain_hits[0] += 3, 1000), None);
        assert_eq!(missed(|a| a.domain_hits[1] += 3, 1000), None);
        assert_eq!(missed(|a| a.domain_hits[1] += 1, 64), None);
        assert_eq!(missed(|a| a.model_hits[1] += 9, 1000), None);
        assert_eq!(missed(|a| a.model_hits[1] -= 9, 1000), None);
        assert_eq!(missed(|a| a.same_model = 900, 1000), None);
        assert_eq!(missed(|a| a.worst_cosine = 0.995, 1000), None);
        for (change, n, name) in [
            ((|_| ()) as fn(&mut Agreement), 63, "at least 64 prompts"),
            (|a| a.same_domain = 984, 1000, "same domain"),
            (|a| a.domain_hits[1] -= 4, 1000, "domain accuracy"),
            (|a| a.domain_hits[1] += 4, 1000, "domain accuracy"),
            (|a| a.domain_hits[1] += 2, 64, "domain accuracy"),
            (|a| a.worst_cosine = 0.9949, 1000, "cosine"),
            (|a| a.worst_cosine = f64::NAN, 1000, "cosine"),
        ] {
            let missed = missed(change, n);
            assert!(
                missed.as_ref().is_some_and(|m| m.contains(name)),
                "{missed:?}"
            );
        }
    }

    #[test]
    fn a_record_that_is_damaged_or_of_another_generation_is_an_error() {
        let folder = Folder::new("precision");
        let id: GenerationId = "g0001-0123456789ab".parse().unwrap();
        let path = folder.join(PRECISION);
        assert_eq!(read(&folder, &id, "e").unwrap(), None);
        let bytes = to_bytes(&id, "e", &good(100)).unwrap();
        files::replace(&path, &bytes).unwrap();
        assert_eq!(read(&folder, &id, "e").unwrap(), Some(good(100)));
        let other: GenerationId = "g0002-0123456789ab".parse().unwrap();
        let error = |id: &GenerationId, encoder: &str| {
            let error = read(&folder, id, encoder).unwrap_err();
            error.to_string()
        };
        assert!(error(&other, "e").contains("expected a record of g0002"));
        assert!(error(&id, "f").contains("encoder f"));
        let text = String::from_utf8(bytes.clone()).unwrap();
        for (from, to, why) in [
            ("\"same_domain\": 100", "\"same_domain\": 99", "sha256"),
            ("0.996", "0.997", "sha256"),
            ("hubrouter-precision", "hubrouter-other", "kind"),
            ("\"prompts\"", "\"promptz\"", "promptz"),
        ] {
            let damaged = text.replacen(from, to, 1);
            assert_ne!(damaged, text);
            files::replace(&path, damaged.as_bytes()).unwrap();
            let error = error(&id, "e");
            assert!(error.contains(why), "{error}");
        }
        files::replace(&path, &bytes[..bytes.len() / 2]).unwrap();
        assert!(error(&id, "e").contains(PRECISION));
        let mut odd = good(100);
        odd.same_model = 101;
        files::replace(&path, &to_bytes(&id, "e", &odd).unwrap()).unwrap();
        assert!(error(&id, "e").contains("expected counts"));
    }
}
