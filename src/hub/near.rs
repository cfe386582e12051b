//! Finds the known name that a misspelt one probably meant: a typing error must not become a new
//! model.

use crate::hub::domain_key;

/// Typing errors in a name, at most.
const MOST_SLIPS: usize = 2;

/// Known names, in which to look for a similar one.
#[derive(Default)]
pub(crate) struct Known<'k> {
    names: Vec<(Name, &'k str)>,
}

/// A name in lower case; the owner is the part before the last `/`.
struct Name {
    owner: Vec<char>,
    last: Vec<char>,
    digits: Vec<char>,
}

impl<'k> Known<'k> {
    /// Names of models: `owner/name`, or only a name.
    pub(crate) fn models(names: impl Iterator<Item = &'k str>) -> Self {
        let names = names.map(|name| (Name::model(name), name)).collect();
        Self { names }
    }

    /// Domains, compared by their [`domain_key`].
    pub(crate) fn domains(domains: impl Iterator<Item = &'k str>) -> Self {
        let names = domains.map(|name| (Name::domain(name), name)).collect();
        Self { names }
    }

    /// The model that the unknown name `wanted` probably means: it differs in case, in a missing or
    /// added owner, or by one or two typing errors. Names with other digits are other models.
    pub(crate) fn near_model(&self, wanted: &str) -> Option<&'k str> {
        let wanted = Name::model(wanted);
        self.nearest(|name| wanted.slips(name))
    }

    /// The models that `wanted` may mean, at most `most`: those of [`Known::near_model`] by typing
    /// errors, then those whose name contains it or is contained in it.
    pub(crate) fn near_models(&self, wanted: &str, most: usize) -> Vec<&'k str> {
        let (name, lower) = (Name::model(wanted), wanted.trim().to_lowercase());
        let part = |known: &str| {
            let known = known.to_lowercase();
            let parts = known.contains(&lower) || lower.contains(&known);
            parts.then(|| MOST_SLIPS + 1 + known.len().abs_diff(lower.len()))
        };
        let near = self.names.iter().filter_map(|(known, whole)| {
            let slips = name.slips(known).or_else(|| part(whole))?;
            Some((slips, *whole))
        });
        let mut near: Vec<(usize, &str)> = near.collect();
        near.sort_unstable();
        near.truncate(most);
        near.into_iter().map(|(_, whole)| whole).collect()
    }

    /// As [`Known::near_model`] for domains. A domain without its group is similar too.
    pub(crate) fn near_domain(&self, wanted: &str) -> Option<&'k str> {
        let wanted = Name::domain(wanted);
        self.nearest(|name| wanted.slips(name).or_else(|| name.ends_in(&wanted)))
    }

    /// Among equals the first in alphabetical order.
    fn nearest(&self, slips: impl Fn(&Name) -> Option<usize>) -> Option<&'k str> {
        let near = self
            .names
            .iter()
            .filter_map(|(name, whole)| Some((slips(name)?, *whole)));
        near.min().map(|(_, whole)| whole)
    }
}

impl Name {
    fn new(owner: &str, last: &str) -> Self {
        let digits = owner.chars().chain(last.chars());
        Self {
            owner: owner.chars().collect(),
            last: last.chars().collect(),
            digits: digits.filter(char::is_ascii_digit).collect(),
        }
    }

    fn model(name: &str) -> Self {
        let name = name.trim().to_lowercase();
        let (owner, last) = name.rsplit_once('/').unwrap_or(("", &name));
        Self::new(owner, last)
    }

    fn domain(domain: &str) -> Self {
        Self::new("", &domain_key(domain))
    }

    /// Typing errors between the names; `None`: too many.
    fn slips(&self, other: &Self) -> Option<usize> {
        if self.owner.is_empty() != other.owner.is_empty() {
            return (self.last == other.last).then_some(1);
        }
        if self.digits != other.digits {
            return None;
        }
        let slips = close(&self.owner, &other.owner)? + close(&self.last, &other.last)?;
        (slips <= MOST_SLIPS).then_some(slips)
    }

    /// Some if this name ends in the words of `wanted`, which are several.
    fn ends_in(&self, wanted: &Self) -> Option<usize> {
        let before = self.last.strip_suffix(&wanted.last[..])?;
        (before.last() == Some(&' ') && wanted.last.contains(&' ')).then_some(1)
    }
}

/// Typing errors between two names; `None` if they are too many. They are counted word by word,
/// since other short words (`xl`, `en`) are meant as they are.
fn close(a: &[char], b: &[char]) -> Option<usize> {
    let words = |name: &[char]| -> Vec<Vec<char>> {
        let words = name.split(|c| "-_. ".contains(*c));
        words.map(<[char]>::to_vec).collect()
    };
    let (first, second) = (words(a), words(b));
    if first.len() != second.len() {
        return close_words(a, b);
    }
    let pairs = first.iter().zip(&second);
    pairs.map(|(a, b)| close_words(a, b)).sum()
}

/// Typing errors between two words.
fn close_words(a: &[char], b: &[char]) -> Option<usize> {
    let most = match a.len().max(b.len()) {
        0..4 => 0,
        4..8 => 1,
        _ => MOST_SLIPS,
    };
    if a.len().abs_diff(b.len()) > most {
        return None;
    }
    let slips = distance(a, b);
    (slips <= most).then_some(slips)
}

/// Letters to insert, delete, replace, or swap with the next (optimal string alignment).
fn distance(a: &[char], b: &[char]) -> usize {
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let changed = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            row[j] = changed.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(before[j - 2] + 1);
            }
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_are_counted() {
        for (a, b, want) in [
            ("", "", 0),
            ("ner", "ner", 0),
            ("ner", "nerr", 1),
            ("acme", "amce", 1),
            ("abcd", "acbd", 1),
            ("kitten", "sitting", 3),
            ("", "ab", 2),
        ] {
            let chars = |text: &str| text.chars().collect::<Vec<_>>();
            assert_eq!(distance(&chars(a), &chars(b)), want, "{a} {b}");
            assert_eq!(distance(&chars(b), &chars(a)), want, "{b} {a}");
        }
    }

    #[test]
    fn a_model_is_near_by_its_case_its_owner_or_a_slip() {
        let known = [
            "acme/ner",
            "acme/whale-songs",
            "google/flan-t5-xl",
            "model-5",
            "x",
        ];
        let known = Known::models(known.into_iter());
        for (wanted, near) in [
            ("acme/nerr", Some("acme/ner")),
            ("Acme/NER", Some("acme/ner")),
            ("ner", Some("acme/ner")),
            ("acme/model-5", Some("model-5")),
            ("acne/whale_songs", Some("acme/whale-songs")),
            ("amce/whale-song", Some("acme/whale-songs")),
            ("acme/whalesongs", Some("acme/whale-songs")),
            // Other digits, owners, words, sizes: other models.
            ("google/flan-t5-xxl", None),
            ("acme/nerrr", None),
            ("google/flan-t6-xl", None),
            ("model-6", None),
            ("other/ner", None),
            ("acme/nes", None),
            ("acme/shark-songs", None),
            ("y", None),
        ] {
            assert_eq!(known.near_model(wanted), near, "{wanted}");
        }
    }

    #[test]
    fn near_models_are_those_of_slips_then_those_of_parts() {
        let known = ["acme/ner", "acme/ner-large", "acme/nerr-x", "other"];
        let known = Known::models(known.into_iter());
        assert_eq!(
            known.near_models("acme/nre", 3),
            Vec::<&str>::new(),
            "three letters are meant as they are"
        );
        assert_eq!(
            known.near_models("acme/nerr", 3),
            ["acme/ner", "acme/nerr-x"]
        );
        assert_eq!(
            known.near_models("NER", 2),
            ["acme/ner", "acme/nerr-x"],
            "the owner is missing"
        );
        assert!(known.near_models("whales", 3).is_empty());
    }

    #[test]
    fn a_domain_is_near_by_a_slip_or_without_its_group() {
        let known = [
            "Token Classification",
            "Audio Audio Classification",
            "Text-to-3D",
        ];
        let known = Known::domains(known.into_iter());
        for (wanted, near) in [
            ("Tokn  classification", Some("Token Classification")),
            ("Audio Classification", Some("Audio Audio Classification")),
            ("Text-to-4D", None),
            ("Video Classification", None),
            ("classification", None),
            ("cation", None),
        ] {
            let near = near.map(str::to_owned);
            assert_eq!(
                known.near_domain(wanted).map(str::to_owned),
                near,
                "{wanted}"
            );
        }
    }
}
