//! What a reader meets first: a banner over quick runs, three lines, a glossary.

use super::{number, runs};
use crate::cmrbench::{
    AccuracyMatrix, EvalRows, Group, MethodOutcome, Metric, Quantity, Results, Tables, compare,
};

/// The method that others are measured above.
const FLOOR: &str = "centroid";

/// Over everything else where the numbers are no results; empty otherwise.
pub(super) fn banner(results: &Results) -> String {
    let plan = &results.plan;
    let mut parts = Vec::new();
    if results.is_quick() {
        parts.push(format!(
            "**A quick run, not a result.** Each experience was learned in {} and each method ran \
             under {}: \
             trained methods score lower than in a full run, and differences of a few points mean nothing.",
            match plan.epochs.as_slice() {
                [1, ..] => "one epoch".to_owned(),
                epochs => format!("{} epochs", list(epochs, ", ")),
            },
            match plan.seeds.len() {
                1 => "one seed".to_owned(),
                seeds => format!("{seeds} seeds"),
            },
        ));
    }
    if let Some(rows) = plan.data.limit {
        parts.push(format!(
            "**A trial.** At most {rows} eval rows of each experience were predicted."
        ));
    }
    match parts.is_empty() {
        true => String::new(),
        false => format!("> {}\n\n", parts.join(" ")),
    }
}

/// What was asked, which method won by how much, what limits the result.
pub(super) fn lines(results: &Results) -> String {
    format!(
        "**Asked:** {}\n\n**Won:** {}\n\n**Limits:** {}\n",
        asked(results),
        won(results),
        limits(results)
    )
}

fn list<T: ToString>(values: &[T], between: &str) -> String {
    let texts: Vec<String> = values.iter().map(T::to_string).collect();
    texts.join(between)
}

/// `1 prompt`, `1842 prompts`.
fn counted(count: usize, noun: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {noun}{plural}")
}

fn eval_rows(results: &Results) -> usize {
    let experiences = results.plan.data.experiences.iter();
    experiences.map(|e| e.eval.len()).sum()
}

fn asked(results: &Results) -> String {
    let data = &results.plan.data;
    let tables = Tables::new(data, results.plan.steps());
    let models: Vec<&str> = tables.models().collect();
    let domains: std::collections::BTreeSet<_> = models.iter().map(|m| tables.domain(m)).collect();
    let learned: usize = data.experiences.iter().map(|e| e.train.len()).sum();
    format!(
        "which of {} in {} should answer a prompt, when the models arrive in {}? {} to learn \
         from, {} to \
         predict, {}.",
        counted(models.len(), "model"),
        counted(domains.len(), "domain"),
        match results.plan.steps() {
            1 => "one batch".to_owned(),
            steps => format!("{steps} batches"),
        },
        counted(learned, "prompt"),
        eval_rows(results),
        counted(results.methods.len(), "method"),
    )
}

/// A method with its value.
type Scored<'r> = (&'r MethodOutcome, f64);

/// The methods that compete, the best first: those that learn one experience after the other, or all
/// where only the floor does.
fn standing(results: &Results, metric: Metric) -> Vec<Scored<'_>> {
    let continual = |method: &MethodOutcome| method.info.group == Group::Continual;
    let competes = |method: &MethodOutcome| continual(method) && method.info.name != FLOOR;
    let all = !results.methods.iter().any(competes);
    let methods = results.methods.iter().filter(|m| all || continual(m));
    let mut standing: Vec<Scored<'_>> = methods
        .filter_map(|method| {
            let (mean, _) = method.over_seeds(metric, AccuracyMatrix::acc)?;
            Some((method, mean))
        })
        .collect();
    standing.sort_by(|a, b| b.1.total_cmp(&a.1));
    standing
}

fn won(results: &Results) -> String {
    let (domain, model) = (
        standing(results, Metric::Domain),
        standing(results, Metric::Model),
    );
    let Some((first, acc)) = domain.first() else {
        return "no method names a domain.".to_owned();
    };
    let mut text = format!(
        "{}, with the right domain for {} % of the prompts",
        first.info.label,
        number(*acc)
    );
    let best_model = model.first().map(|(method, acc)| (method.info, *acc));
    match best_model {
        Some((info, acc)) if info.name == first.info.name => {
            text += &format!(" and the right model for {} %", number(acc));
        }
        Some((info, acc)) => {
            text += &format!(
                "; by models {} is first, with {} %",
                info.label,
                number(acc)
            );
        }
        None => {}
    }
    text += &format!(" ({}).", runs(first));
    if let Some((second, _)) = domain.get(1) {
        text += &ahead(results, first, second);
    }
    if let Some((fgt, _)) = first.over_seeds(Metric::Domain, AccuracyMatrix::forgetting) {
        text += &format!(
            " {} forgot {} points of domain accuracy.",
            first.info.label,
            number(fgt)
        );
    }
    let shown = domain.iter().take(2).any(|(m, _)| m.info.name == FLOOR);
    let floor = results.method(FLOOR).filter(|_| !shown);
    let floor = floor.and_then(|m| m.over_seeds(Metric::Domain, AccuracyMatrix::acc));
    if let Some((floor, _)) = floor {
        text += &format!(" The continual floor has {} %.", number(floor));
    }
    text
}

/// How far the first is ahead of the second, and whether the eval rows tell them apart.
fn ahead(results: &Results, first: &MethodOutcome, second: &MethodOutcome) -> String {
    let steps = results.plan.steps();
    let found = compare(first, second, Metric::Domain, Quantity::Accuracy, steps);
    let Some(found) = found else {
        return String::new();
    };
    let interval = format!(
        "95 % interval {} to {}",
        number(found.low),
        number(found.high)
    );
    // As it is shown: an interval from 0.0 tells nothing.
    if found.low >= 0.05 {
        return format!(
            " That is {} points more than the next, {} ({interval}).",
            number(found.difference),
            second.info.label
        );
    }
    format!(
        " The next, {}, is {} points behind, which these rows do not tell from 0 ({interval}).",
        second.info.label,
        number(found.difference)
    )
}

fn limits(results: &Results) -> String {
    let plan = &results.plan;
    let mut parts = Vec::new();
    if let Some((here, all)) = super::missing::training(results) {
        let percent = 100.0 * here as f64 / all.max(1) as f64;
        parts.push(format!(
            "{here} of about {all} official training rows are there ({percent:.0} %), so levels \
             cannot be \
             compared with the poster's"
        ));
    }
    match plan.eval {
        EvalRows::Development => {
            parts.push("the rows to predict are training rows held out: no result".to_owned());
        }
        EvalRows::Public if !plan.data.own => {
            parts.push("the public half of the eval rows is predicted".to_owned());
        }
        _ => {}
    }
    let rows = eval_rows(results);
    // Half the 95 % interval of a share of one half.
    let half = 98.0 / (rows.max(1) as f64).sqrt();
    parts.push(format!(
        "{} leave an accuracy uncertain by {} points",
        counted(rows, "eval row"),
        number(half)
    ));
    if results.methods.iter().all(|method| method.runs.len() == 1) {
        parts.push("1 run of each method, so no spread over seeds is known".to_owned());
    }
    parts.push("one model counts as right for each prompt, although others may do".to_owned());
    parts.join("; ") + "."
}

/// Words of every page, with their meanings.
const WORDS: [(&str, &str); 13] = [
    (
        "M, F, D",
        "what a prediction has to match to be a hit. M: the model that the row is labelled with. F: a \
         model of its family. D: a model of the row's domain.",
    ),
    (
        "Acc",
        "accuracy after the last step, percent: the mean over experiences, each with the same weight. \
         M-Acc is that of models.",
    ),
    (
        "Fgt",
        "forgetting, points: the accuracy on an experience right after it was learned minus that \
         after the last step, as the mean over all experiences but the last. Less is better. Below 0, \
         later experiences have improved earlier ones.",
    ),
    (
        "± and runs",
        "the sample standard deviation over the runs, one run for each seed. 1 run has none: the \
         method draws nothing, or one seed was run.",
    ),
    (
        "Retrieval",
        "methods that compare a prompt with the cards of models and learn nothing from prompts.",
    ),
    (
        "Continual",
        "methods that learn one experience after the other.",
    ),
    (
        "Continual floor",
        "a router without a network, made of centroids of prompts, and of cards. Its forgetting is \
         the work of the growing hub alone.",
    ),
    (
        "Bounds",
        "methods that learn all rows of the past again, which a continual method may not.",
    ),
    (
        "Replay (10 %)",
        "that share of the rows of every earlier experience is learned again with each new one.",
    ),
    (
        "CARvE",
        "Continual Anchored Router via contrastive Embeddings, the method of the paper: it trains \
         adapters, a projection and one vector a model, which anchors and replay hold.",
    ),
    (
        "Memory",
        "a linear map from prompts to models that is solved, not trained.",
    ),
    ("Ablation", "a method with one thing changed."),
    (
        "Coverage, risk, AURC",
        "prompts are answered from the surest on. Coverage is the share that is answered, risk the \
         error among those, AURC the area under the risk.",
    ),
];

/// A section with the words of the page, one a line.
pub(super) fn glossary(results: &Results) -> String {
    let experiences = results.plan.data.experiences.iter();
    let named: Vec<String> = experiences
        .map(|e| match e.label == e.name {
            true => e.label.clone(),
            false => format!("{} ({})", e.label, e.name.replace(['|', '*', '`'], "/")),
        })
        .collect();
    let first = format!(
        "an experience is one batch of new models with labelled prompts: {}. They are learned one \
         after the other. After each of these steps the prompts of all experiences so far are \
         predicted, among all models known by then.",
        named.join(", ")
    );
    let mut words = vec![("Experience, step", first.as_str())];
    words.extend(WORDS);
    if results.bundled.is_some() {
        words.push((
            "Bundled",
            "the router that comes with the program and that `hubrouter route` asks.",
        ));
    }
    if !results.plan.data.own {
        words.push((
            "Poster",
            "results of the paper's authors, on the official data and with encoders of 4 to 7 billion \
             parameters.",
        ));
    }
    let lines = words
        .iter()
        .map(|(word, text)| format!("- **{word}**: {text}\n"));
    format!("\n## Glossary\n\n{}", lines.collect::<String>())
}
