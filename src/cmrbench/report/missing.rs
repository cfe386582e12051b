//! The official data that is missing, which decides what the numbers can be compared with.

use crate::cmrbench::{BenchExperience, EvalRows, Results};

/// Stem of an experience's files, then its official training rows, about, and eval rows
/// (cmrbench.md section 1.1).
const OFFICIAL: [(&str, usize, usize); 4] = [
    ("apibench-hf", 7824, 867),
    ("mllm", 4583, 809),
    ("hugging-bench-1", 8850, 984),
    ("hugging-bench-2", 9297, 1033),
];

/// Official rows of the experiences, where they are CMRBench's.
fn official(experiences: &[BenchExperience]) -> Option<Vec<(usize, usize)>> {
    let of = |experience: &BenchExperience| {
        let same = |row: &&(&str, usize, usize)| experience.name == row.0;
        OFFICIAL.iter().find(same).map(|row| (row.1, row.2))
    };
    experiences.iter().map(of).collect()
}

/// `E1 1174 of 7824`, for each experience with fewer rows.
fn less(
    experiences: &[BenchExperience],
    pairs: impl Iterator<Item = (usize, usize)>,
) -> Vec<String> {
    experiences
        .iter()
        .zip(pairs)
        .filter(|(_, (here, all))| here < all)
        .map(|(experience, (here, all))| format!("{} {here} of {all}", experience.label))
        .collect()
}

/// Training rows that are there and that the official data has, where some are missing.
pub(super) fn training(results: &Results) -> Option<(usize, usize)> {
    let experiences = &results.plan.data.experiences;
    let all = official(experiences)?.iter().map(|(train, _)| train).sum();
    let here = experiences.iter().map(|e| e.train.len()).sum();
    (here < all).then_some((here, all))
}

/// A paragraph; empty where nothing is known to be missing.
pub(super) fn paragraph(results: &Results) -> String {
    let data = &results.plan.data;
    let mut parts = Vec::new();
    if !data.missing.is_empty() {
        let names = data.missing.iter().map(|path| {
            let name = path.file_name().unwrap_or(path.as_os_str());
            name.to_string_lossy().into_owned()
        });
        parts.push(format!(
            "Not there: {}",
            names.collect::<Vec<_>>().join(", ")
        ));
    }
    if let Some(official) = official(&data.experiences) {
        let train = data.experiences.iter().map(|e| e.train.len());
        let train = less(&data.experiences, train.zip(official.iter().map(|o| o.0)));
        if !train.is_empty() {
            parts.push(format!(
                "Training rows: {} (the official numbers are estimated from the split)",
                train.join(", ")
            ));
        }
        let eval = data.experiences.iter().map(|e| e.eval.len());
        let eval = less(&data.experiences, eval.zip(official.iter().map(|o| o.1)));
        match results.plan.eval {
            EvalRows::Development => parts.push(
                "Eval rows: none; these are training rows that were held out for choosing settings"
                    .to_owned(),
            ),
            EvalRows::Public if !eval.is_empty() => {
                parts.push(format!("Eval rows, the public half: {}", eval.join(", ")))
            }
            _ if !eval.is_empty() => parts.push(format!("Eval rows: {}", eval.join(", "))),
            _ => {}
        }
    }
    if parts.is_empty() {
        return String::new();
    }
    format!(
        "**Missing data.** {}. Levels cannot be compared with the poster's; orderings and \
         forgetting can.\n\n",
        parts.join(". ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn experience(label: &'static str, name: &'static str) -> BenchExperience {
        BenchExperience {
            label: label.to_owned(),
            name: name.to_owned(),
            ..BenchExperience::default()
        }
    }

    #[test]
    fn only_what_is_less_is_said() {
        let both = [experience("E1", "apibench-hf"), experience("E2", "mllm")];
        assert_eq!(official(&both), Some(vec![(7824, 867), (4583, 809)]));
        let pairs = [(1174, 7824), (4583, 4583)];
        assert_eq!(less(&both, pairs.into_iter()), ["E1 1174 of 7824"]);
        let own = [experience("E1", "apibench-hf"), experience("E2", "mine")];
        assert_eq!(official(&own), None, "another hub has no official numbers");
    }
}
