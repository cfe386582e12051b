//! The poster's results, shown beside ours and never mixed with them: they have the official train
//! and eval data, and language models as encoders.
//!
//! Source: Bell, Carfi, Gramaglia, Lomonaco, "Continual Model Routing in Evolving Model Hubs",
//! poster at ICML 2026.

use super::{CsvText, fields, plain};
use crate::cmrbench::{Metric, Quantity, Results};
use crate::error::Result;

/// Setting, then M, F, D accuracy, then M, F, D forgetting.
pub(super) const MAIN: [[&str; 7]; 18] = [
    [
        "BGE-M3",
        "13.6 ± 0.0",
        "16.2 ± 0.0",
        "44.0 ± 0.0",
        "2.5 ± 0.0",
        "3.9 ± 0.0",
        "3.3 ± 0.0",
    ],
    [
        "Gorilla RAG",
        "6.7 ± 0.2",
        "10.4 ± 0.2",
        "43.0 ± 0.5",
        "0.0 ± 0.2",
        "0.8 ± 0.2",
        "0.1 ± 0.2",
    ],
    [
        "HuggingGPT Qwen3-32B",
        "–",
        "–",
        "51.7 ± 0.2",
        "–",
        "–",
        "–",
    ],
    [
        "Random Replay (5%)",
        "36.5 ± 0.4",
        "44.2 ± 0.4",
        "70.2 ± 4.2",
        "19.5 ± 0.5",
        "23.2 ± 0.5",
        "24.0 ± 4.4",
    ],
    [
        "Random Replay (10%)",
        "39.1 ± 0.5",
        "47.3 ± 0.7",
        "75.9 ± 0.2",
        "14.0 ± 0.1",
        "16.8 ± 0.3",
        "13.1 ± 0.2",
    ],
    [
        "Random Replay (20%)",
        "41.3 ± 0.2",
        "49.8 ± 0.2",
        "78.1 ± 0.1",
        "8.6 ± 0.4",
        "11.1 ± 0.3",
        "7.8 ± 0.1",
    ],
    [
        "Random Replay Qwen2.5-7B (10%)",
        "40.7 ± 0.5",
        "49.2 ± 0.4",
        "78.2 ± 0.2",
        "14.2 ± 0.6",
        "16.5 ± 0.6",
        "10.3 ± 0.5",
    ],
    [
        "Random Replay Qwen3-4B (10%)",
        "39.6 ± 0.2",
        "47.9 ± 0.1",
        "77.2 ± 0.2",
        "14.9 ± 0.2",
        "18.2 ± 0.4",
        "11.2 ± 0.4",
    ],
    [
        "Sequential Finetuning",
        "28.0 ± 0.1",
        "34.8 ± 0.1",
        "64.3 ± 0.2",
        "34.6 ± 0.2",
        "41.8 ± 0.2",
        "37.2 ± 0.2",
    ],
    [
        "Model Merging (TIES)",
        "7.6 ± 0.3",
        "10.9 ± 0.2",
        "28.6 ± 0.5",
        "15.0 ± 0.2",
        "19.7 ± 0.1",
        "32.6 ± 0.2",
    ],
    [
        "LwF",
        "28.8 ± 0.3",
        "35.9 ± 0.5",
        "56.4 ± 0.2",
        "20.8 ± 0.3",
        "25.7 ± 0.2",
        "39.5 ± 0.2",
    ],
    [
        "EWC",
        "31.3 ± 0.4",
        "38.4 ± 0.4",
        "66.2 ± 0.1",
        "26.6 ± 0.3",
        "32.7 ± 0.2",
        "31.4 ± 0.5",
    ],
    [
        "CARvE EWC (10% replay)",
        "42.2 ± 2.4",
        "47.7 ± 2.3",
        "80.5 ± 2.2",
        "9.1 ± 1.9",
        "9.8 ± 3.3",
        "6.1 ± 4.8",
    ],
    [
        "CARvE (5% replay)",
        "40.5 ± 0.7",
        "45.4 ± 0.6",
        "78.5 ± 0.4",
        "15.9 ± 1.7",
        "17.4 ± 1.1",
        "10.1 ± 0.7",
    ],
    [
        "CARvE (10% replay)",
        "43.1 ± 0.2",
        "48.5 ± 0.3",
        "80.7 ± 0.0",
        "11.4 ± 0.4",
        "12.5 ± 0.3",
        "5.9 ± 0.3",
    ],
    [
        "CARvE Qwen3-4B (10% replay)",
        "36.7 ± 3.4",
        "42.1 ± 3.9",
        "78.6 ± 3.3",
        "13.5 ± 3.3",
        "14.3 ± 4.5",
        "9.1 ± 5.0",
    ],
    [
        "CARvE Qwen2.5-7B (10% replay)",
        "42.4 ± 0.1",
        "48.1 ± 0.3",
        "81.5 ± 0.3",
        "11.2 ± 0.2",
        "12.3 ± 0.1",
        "6.2 ± 0.6",
    ],
    [
        "CARvE (20% replay)",
        "46.4 ± 0.1",
        "51.9 ± 0.2",
        "82.9 ± 0.2",
        "6.4 ± 0.8",
        "7.3 ± 0.8",
        "3.0 ± 0.3",
    ],
];

/// Ablation with 10 % replay, D-Acc, D-Fgt, change of D-Fgt.
pub(super) const ABLATIONS: [[&str; 4]; 5] = [
    ["CARvE (full)", "80.7", "5.9", "—"],
    ["No emb. anchor", "78.4", "7.4", "+1.5"],
    ["No proj. anchor", "74.2", "9.4", "+3.5"],
    ["Domain emb. initialisation", "78.8", "10.2", "+4.3"],
    ["Sequential FT", "64.3", "35.7", "+29.8"],
];

/// Methods here and their settings on the poster, where it has one
/// (cmrbench.md section 8.2).
const SAME: [(&str, &str); 14] = [
    ("hybrid", "BGE-M3"),
    ("rar-frozen", "Gorilla RAG"),
    ("llm", "HuggingGPT Qwen3-32B"),
    ("sequential", "Sequential Finetuning"),
    ("replay-5", "Random Replay (5%)"),
    ("replay-10", "Random Replay (10%)"),
    ("replay-20", "Random Replay (20%)"),
    ("ties-factors", "Model Merging (TIES)"),
    ("lwf", "LwF"),
    ("ewc", "EWC"),
    ("carve-ewc", "CARvE EWC (10% replay)"),
    ("carve-5", "CARvE (5% replay)"),
    ("carve-10", "CARvE (10% replay)"),
    ("carve-20", "CARvE (20% replay)"),
];

/// As [`SAME`], of [`ABLATIONS`].
const SAME_ABLATIONS: [(&str, &str); 3] = [
    ("no-embedding-anchor", "No emb. anchor"),
    ("no-projection-anchor", "No proj. anchor"),
    ("domain-rows", "Domain emb. initialisation"),
];

/// The poster's mean for the method called `method`; `None` where it has none, and for another hub.
pub(super) fn beside(
    results: &Results,
    method: &str,
    metric: Metric,
    quantity: Quantity,
) -> Option<f64> {
    (!results.plan.data.own)
        .then(|| value(method, metric, quantity))
        .flatten()
}

fn value(method: &str, metric: Metric, quantity: Quantity) -> Option<f64> {
    let named = |(name, setting): &(&str, &'static str)| (*name == method).then_some(*setting);
    let cell = if let Some(setting) = SAME.iter().find_map(named) {
        let row = MAIN.iter().find(|row| row[0] == setting)?;
        let column = match metric {
            Metric::Model => 1,
            Metric::Family => 2,
            Metric::Domain => 3,
        };
        match quantity {
            Quantity::Accuracy => row[column],
            Quantity::Forgetting => row[column + 3],
        }
    } else {
        let setting = SAME_ABLATIONS.iter().find_map(named)?;
        let row = ABLATIONS.iter().find(|row| row[0] == setting)?;
        match (metric, quantity) {
            (Metric::Domain, Quantity::Accuracy) => row[1],
            (Metric::Domain, Quantity::Forgetting) => row[2],
            _ => return None,
        }
    };
    cell.split(' ').next()?.parse().ok()
}

/// The poster's numbers for our methods; no rows for another hub.
pub(super) fn csv(results: &Results) -> Result<String> {
    let mut csv = CsvText::new("method,setting,metric,acc,fgt")?;
    if !results.plan.data.own {
        for row in rows() {
            csv.row(row)?;
        }
    }
    csv.finish()
}

fn rows() -> impl Iterator<Item = [String; 5]> {
    let pairs = SAME.iter().chain(&SAME_ABLATIONS);
    pairs.flat_map(|(method, setting)| {
        let row = move |metric: Metric| {
            let of = |quantity| plain(value(method, metric, quantity));
            let (acc, fgt) = (of(Quantity::Accuracy), of(Quantity::Forgetting));
            let row = fields![method, setting, metric.letter(), acc, fgt];
            (!(acc.is_empty() && fgt.is_empty())).then_some(row)
        };
        Metric::ALL.into_iter().filter_map(row)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_the_poster() {
        let of = |name| value(name, Metric::Domain, Quantity::Accuracy);
        assert_eq!(of("carve-10"), Some(80.7));
        assert_eq!(of("llm"), Some(51.7));
        assert_eq!(of("domain-rows"), Some(78.8));
        assert_eq!(of("centroid"), None);
        assert_eq!(value("llm", Metric::Model, Quantity::Accuracy), None);
        assert_eq!(
            value("ewc", Metric::Model, Quantity::Forgetting),
            Some(26.6)
        );
        // Every name on the right is a row.
        let rows: Vec<[String; 5]> = rows().collect();
        for (method, setting) in SAME.iter().chain(&SAME_ABLATIONS) {
            assert!(
                rows.iter().any(|row| row[..3] == [*method, *setting, "D"]),
                "{method}"
            );
        }
    }
}
