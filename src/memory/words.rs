//! Counts of prompts by word and domain, for naive Bayes.

use std::collections::BTreeMap;

use safetensors::Dtype;

use super::packing::{pack, unpack};
use crate::error::{Result, bail};
use crate::num::to_u32;
use crate::weights::{ANY, Tensors, to_safetensors};

/// Its name in a generation.
pub(crate) const WORDS: &str = "words.safetensors";
const ENTRIES: &str = "entries";
const PACKED: &str = "word_domain_count";
const DOMAINS: &str = "domains";

/// Numbers of prompts by word (its hash) and domain (its number in the hub).
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Words {
    /// Keys of the hub's domains, by number.
    domains: Vec<String>,
    counts: BTreeMap<(u32, u32), u32>,
}

impl Words {
    /// No counts, for a hub with these domains.
    pub(super) fn new(domains: Vec<String>) -> Self {
        Self {
            domains,
            counts: BTreeMap::new(),
        }
    }

    /// Changes the numbers to those of a hub that has grown.
    ///
    /// Errors: an old domain is not among `domains`.
    pub(super) fn renumber(&mut self, domains: Vec<String>) -> Result<()> {
        let numbers = numbers_in(&domains, &self.domains)?;
        let counts = std::mem::take(&mut self.counts).into_iter();
        self.counts = counts
            .map(|((word, domain), count)| ((word, numbers[domain as usize]), count))
            .collect();
        self.domains = domains;
        Ok(())
    }

    /// Adds a prompt of `domain` with these words, each once.
    pub(super) fn add(&mut self, domain: u32, words: &[u32]) {
        for word in words {
            let count = self.counts.entry((*word, domain)).or_default();
            *count = count.saturating_add(1);
        }
    }

    /// Removes a prompt that was added.
    pub(super) fn subtract(&mut self, domain: u32, words: &[u32]) {
        for word in words {
            if let Some(count) = self.counts.get_mut(&(*word, domain)) {
                *count -= 1;
                if *count == 0 {
                    self.counts.remove(&(*word, domain));
                }
            }
        }
    }

    /// Word, domain and number of prompts, by word.
    pub(crate) fn each(&self) -> impl Iterator<Item = (u32, u32, u32)> {
        self.counts
            .iter()
            .map(|((word, domain), count)| (*word, *domain, *count))
    }

    /// The bytes of the part.
    pub(super) fn write(&self) -> Result<Vec<u8>> {
        let (mut packed, mut before) = (Vec::new(), 0);
        let steps = self.each().map(|(word, _, _)| {
            let step = word - before;
            before = word;
            i64::from(step)
        });
        pack(steps, &mut packed);
        pack(self.each().map(|entry| i64::from(entry.1)), &mut packed);
        pack(self.each().map(|entry| i64::from(entry.2)), &mut packed);
        let count = (self.counts.len() as u64).to_le_bytes();
        // A domain's key contains no line break.
        let names = self.domains.join("\n");
        let tensors = [
            (ENTRIES, Dtype::U64, vec![1], &count[..]),
            (PACKED, Dtype::U8, vec![packed.len()], &packed),
            (DOMAINS, Dtype::U8, vec![names.len()], names.as_bytes()),
        ];
        to_safetensors(WORDS, &tensors, None)
    }

    /// Reads the part of a hub with `domains`.
    ///
    /// Errors: as [`entries`].
    pub(crate) fn read(bytes: &[u8], domains: Vec<String>) -> Result<Self> {
        let entries = entries(bytes, &domains)?.into_iter();
        let counts = entries.map(|(word, domain, prompts)| ((word, domain), prompts));
        Ok(Self {
            counts: counts.collect(),
            domains,
        })
    }
}

/// The place among `domains` of each of `old`.
///
/// Errors: one is not there.
fn numbers_in(domains: &[String], old: &[String]) -> Result<Vec<u32>> {
    let number = |old: &String| match domains.iter().position(|domain| domain == old) {
        Some(number) => Ok(to_u32(number)),
        None => bail!(
            Mismatch,
            "{DOMAINS}: expected those of the hub, found {old:?}"
        ),
    };
    old.iter().map(number).collect()
}

/// The entries of the part, ascending: word, domain and number of prompts.
///
/// Errors: the part is malformed; one of its domains is not among `domains`.
pub(crate) fn entries(bytes: &[u8], domains: &[String]) -> Result<Vec<(u32, u32, u32)>> {
    let file = Tensors::parse(bytes)?;
    let count = file.numbers::<u64>(ENTRIES, Dtype::U64, &[1])?[0];
    let mut packed = file.bytes(PACKED, Dtype::U8, &[ANY])?;
    // An entry takes at least three bits of a byte in its blocks.
    let most = packed.len().saturating_mul(32);
    let count = match usize::try_from(count) {
        Ok(count) if count <= most => count,
        _ => bail!(Format, "{ENTRIES}: expected at most {most}, found {count}"),
    };
    let mut numbers = || unpack(&mut packed, count);
    let [steps, of, prompts] = [numbers()?, numbers()?, numbers()?];
    let names = file.bytes(DOMAINS, Dtype::U8, &[ANY])?;
    let names: Vec<String> = String::from_utf8_lossy(names)
        .lines()
        .map(str::to_owned)
        .collect();
    let numbers = numbers_in(domains, &names)?;
    let mut entries = Vec::with_capacity(count);
    let mut word = 0u32;
    for ((step, of), prompts) in steps.into_iter().zip(of).zip(prompts) {
        let step = u32::try_from(step).ok();
        let next = step.and_then(|step| word.checked_add(step));
        let of = usize::try_from(of).ok().and_then(|of| numbers.get(of));
        let prompts = u32::try_from(prompts).ok().filter(|prompts| *prompts > 0);
        let (Some(next), Some(of), Some(prompts)) = (next, of, prompts) else {
            bail!(
                Format,
                "{PACKED}: expected words in order, domains below {} and counts, found others",
                names.len()
            );
        };
        word = next;
        entries.push((word, *of, prompts));
    }
    // By word already; domains have other numbers in a hub that has grown.
    entries.sort_unstable();
    if entries
        .windows(2)
        .any(|two| (two[0].0, two[0].1) == (two[1].0, two[1].1))
    {
        bail!(
            Format,
            "{PACKED}: expected each word once in a domain, found one twice"
        );
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn domains(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn words() -> Words {
        let mut words = Words::new(domains(&["a", "c"]));
        words.add(1, &[5, u32::MAX]);
        words.add(0, &[5]);
        words.add(1, &[5]);
        words
    }

    #[test]
    fn prompts_are_counted_and_taken_back() {
        let mut words = words();
        let found: Vec<_> = words.each().collect();
        assert_eq!(found, [(5, 0, 1), (5, 1, 2), (u32::MAX, 1, 1)]);
        words.subtract(1, &[5, u32::MAX, 9]);
        let found: Vec<_> = words.each().collect();
        assert_eq!(found, [(5, 0, 1), (5, 1, 1)]);
    }

    #[test]
    fn the_part_keeps_everything_and_is_checked() {
        let bytes = words().write().unwrap();
        let read = |names: &[&str]| Words::read(&bytes, domains(names));
        assert_eq!(read(&["a", "c"]).unwrap(), words());
        // The hub has one more by now.
        let found: Vec<_> = read(&["a", "b", "c"]).unwrap().each().collect();
        assert_eq!(found, [(5, 0, 1), (5, 2, 2), (u32::MAX, 2, 1)]);
        let error = read(&["a", "b"]).unwrap_err().to_string();
        assert!(error.contains("found \"c\""), "{error}");
        assert!(Words::read(&bytes[..bytes.len() - 1], Vec::new()).is_err());
        let none = Words::default();
        assert_eq!(
            Words::read(&none.write().unwrap(), Vec::new()).unwrap(),
            none
        );
    }
}
