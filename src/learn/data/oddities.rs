//! Remarks on odd examples that can still be learned.

use std::collections::HashMap;

use crate::hub::{Hub, domain_key};
use crate::learn::data::examples::Example;
use crate::text::query::query_digest;

/// One sentence for each kind of oddity, with a count and the first case. `hub`: with the
/// experience's new models.
pub(crate) fn oddities(hub: &Hub, examples: &[Example]) -> Vec<String> {
    [other_domains(hub, examples), two_golds(examples)]
        .into_iter()
        .flatten()
        .collect()
}

/// Examples whose domain is not their model's.
fn other_domains(hub: &Hub, examples: &[Example]) -> Option<String> {
    let other = |(place, example): (usize, &Example)| {
        let domain = example.domain.clone()?;
        let model = hub.get(hub.find(&example.model_name)?)?;
        let differs = domain_key(&domain) != domain_key(&model.domain);
        differs.then(|| (place + 1, domain, model.domain.to_string()))
    };
    let mut others = examples.iter().enumerate().filter_map(other);
    let (place, domain, own) = others.next()?;
    let count = 1 + others.count();
    Some(format!(
        "{count} of {} examples have another domain than their model has in the hub; it counts \
         for measuring, and the model stays in its own; the first is example {place}: {domain:?}, \
         not {own:?}",
        examples.len()
    ))
}

/// The same prompt under two models.
fn two_golds(examples: &[Example]) -> Option<String> {
    let mut first: HashMap<String, (usize, &str)> = HashMap::new();
    let mut pairs = Vec::new();
    for (place, example) in examples.iter().enumerate() {
        let own = (place + 1, example.model_name.as_str());
        let before = *first.entry(query_digest(&example.prompt)).or_insert(own);
        if before.1 != own.1 {
            pairs.push((before, own));
        }
    }
    let ((one, a), (other, b)) = *pairs.first()?;
    Some(format!(
        "{} of {} examples have the prompt of another one and a different model; both are learned; \
         the first are examples {one} and {other}: {a:?} and {b:?}",
        pairs.len(),
        examples.len()
    ))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::hub::Model;

    fn example(prompt: &str, model: &str, domain: Option<&str>) -> Example {
        Example {
            domain: domain.map(str::to_owned),
            ..Example::new(prompt, model)
        }
    }

    #[test]
    fn what_agrees_is_not_odd() {
        let hub = Hub::default().with([Model::new("a", "Graph")]).unwrap();
        let examples = [
            example("x", "a", Some(" graph ")),
            example("X", "a", None),
            example("y", "unknown", Some("Audio")),
        ];
        assert!(oddities(&hub, &examples).is_empty());
    }

    #[test]
    fn what_is_odd_is_counted_and_its_first_case_named() {
        let models = [Model::new("a", "Graph"), Model::new("b", "Audio")];
        let hub = Hub::default().with(models).unwrap();
        let examples = [
            example("one", "a", None),
            example("two", "a", Some("Grahp")),
            example("###Instruction: One", "b", Some("Graph")),
        ];
        let [domains, golds] = oddities(&hub, &examples).try_into().unwrap();
        assert!(domains.starts_with("2 of 3 examples"), "{domains}");
        assert!(
            domains.ends_with("example 2: \"Grahp\", not \"Graph\""),
            "{domains}"
        );
        assert!(golds.starts_with("1 of 3 examples"), "{golds}");
        assert!(
            golds.ends_with("examples 1 and 3: \"a\" and \"b\""),
            "{golds}"
        );
    }
}
