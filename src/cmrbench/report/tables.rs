//! Tables: Markdown for people, CSV for programs.

use std::collections::BTreeSet;

use serde_json::Value;

use super::claims::OURS;
use super::{
    COLUMNS, CsvText, fields, headline, missing, number, plain, poster, ranked, runs,
    with_deviation,
};
use crate::cmrbench::grid::StepNote;
use crate::cmrbench::{
    AccuracyMatrix, BenchExperience, CellSettings, Group, MethodOutcome, Metric, Percent, Quantity,
    Results, mean_and_deviation,
};
use crate::error::Result;

/// Parts of `tables.md` that are made elsewhere.
pub(super) struct Sections {
    /// Threads and processors.
    pub(super) hardware: String,
    /// Behind the main table.
    pub(super) claims: String,
    /// Behind the ablations.
    pub(super) others: String,
}

pub(super) fn matrix_csv(results: &Results) -> Result<String> {
    let mut csv = CsvText::new("method,seed,step,test,metric,hits,rows,accuracy")?;
    let steps = results.plan.steps();
    for method in &results.methods {
        for run in &method.runs {
            for metric in Metric::ALL {
                let places = (0..steps).flat_map(|step| (0..=step).map(move |test| (step, test)));
                for (step, test) in places {
                    let Some((hits, rows)) = run.hits(metric, step, test) else {
                        continue;
                    };
                    csv.row(fields![
                        method.info.name,
                        run.seed,
                        step + 1,
                        format!("E{}", test + 1),
                        metric.letter(),
                        hits,
                        rows,
                        100.0 * hits as f64 / rows.max(1) as f64
                    ])?;
                }
            }
        }
    }
    csv.finish()
}

pub(super) fn summary_csv(results: &Results) -> Result<String> {
    let steps = results.plan.steps();
    let transfers: String = (2..=steps).map(|step| format!("bwt{step},")).collect();
    let mut csv = CsvText::new(&format!(
        "method,metric,acc_mean,acc_sd,fgt_mean,fgt_sd,fgt_max_mean,{transfers}seeds,updates,seconds"
    ))?;
    for method in &results.methods {
        let cost = |of: fn(&StepNote) -> f64| {
            let sums = method.runs.iter();
            let sums: Vec<f64> = sums
                .map(|run| run.cell.steps.iter().map(of).sum())
                .collect();
            mean_and_deviation(&sums).map_or(0.0, |(mean, _)| mean)
        };
        let measured = Metric::ALL.into_iter().filter(|m| method.measures(*m));
        for metric in measured {
            let of = |of: fn(&AccuracyMatrix) -> Option<f64>| method.over_seeds(metric, of);
            let mean = |value: Option<(f64, Option<f64>)>| plain(value.map(|(mean, _)| mean));
            let deviation = |value: Option<(f64, Option<f64>)>| plain(value.and_then(|(_, sd)| sd));
            let (acc, fgt) = (of(AccuracyMatrix::acc), of(AccuracyMatrix::forgetting));
            let best = of(AccuracyMatrix::forgetting_from_best);
            let transfers = (1..steps)
                .map(|step| mean(method.over_seeds(metric, |m| m.backward_transfer(step))));
            let head = fields![
                method.info.name,
                metric.letter(),
                mean(acc),
                deviation(acc),
                mean(fgt),
                deviation(fgt),
                mean(best)
            ];
            let tail = fields![
                method.runs.len(),
                cost(|step| step.updates as f64),
                format!("{:.1}", cost(|step| step.seconds))
            ];
            csv.row(head.into_iter().chain(transfers).chain(tail))?;
        }
    }
    csv.finish()
}

/// `tables.md`; `sections` stand between the main tables and the matrices.
pub(super) fn markdown(results: &Results, about: &Value, sections: &Sections) -> String {
    let mut text = format!(
        "# CMRBench\n\n{}{}",
        headline::banner(results),
        headline::lines(results)
    );
    text += &headline::glossary(results);
    text += &format!("\n## Settings\n\n{}", missing::paragraph(results));
    for line in settings(results, about, &sections.hardware) {
        text += &format!("- {line}\n");
    }
    text += "\n## Methods\n\n";
    text += &main(results);
    text += &super::growth::section(results);
    text += &sections.claims;
    text += &ablations(results);
    text += &sections.others;
    text += "\n## Matrices\n\nPercent, mean over seeds: after learning the experience of the row, \
     on the eval rows of the column, among all models known by then.\n";
    for method in &results.methods {
        let measured = Metric::ALL.into_iter().filter(|m| method.measures(*m));
        for metric in measured {
            text += &format!(
                "\n{}, {} accuracy:\n\n{}",
                method.info.label,
                metric.name(),
                matrix(results, method, metric)
            );
        }
    }
    if !results.plan.data.own {
        text += &by_carve_rule(results);
        text += &poster_table();
    }
    text
}

/// What the numbers of the tables depend on, one line each.
fn settings(results: &Results, about: &Value, hardware: &str) -> Vec<String> {
    let plan = &results.plan;
    let word = |name: &str| match &about[name] {
        Value::String(text) => text.clone(),
        Value::Null => "unknown".to_owned(),
        other => other.to_string(),
    };
    let digest = &word("data_sha256")[..12];
    let mut lines = vec![
        match plan.data.own {
            true => format!("data: a hub of your own, sha256 {digest}"),
            false => format!("data: commit {}, sha256 {digest}", word("commit")),
        },
        format!(
            "eval rows: {} ({}); training rows: {}",
            rows(results, |e| e.eval.len()),
            word("eval"),
            rows(results, |e| e.train.len())
        ),
    ];
    if let Some(most) = plan.data.limit {
        lines.push(format!("eval rows of each experience: at most {most}"));
    }
    lines.extend([
        format!("prefix: {}; rule: {}", word("prefix"), word("rule")),
        format!(
            "encoder: {}; head: {}; epochs: {}",
            word("encoder"),
            word("head"),
            word("epochs")
        ),
        format!(
            "seeds: {} (± is the sample standard deviation over them; a method that draws nothing \
             has 1 run)",
            word("seeds")
        ),
        format!(
            "hardware: {}; {hardware}; hubrouter {}",
            devices(results),
            word("version")
        ),
    ]);
    if let Some(chat) = &plan.chat {
        lines.push(format!(
            "LLM controller: {}, choosing from the domains of the {}; temperature 0.6, top-p \
             0.95, thinking off; \
             domains alone, at the last step",
            chat.description(),
            chat.domains.name()
        ));
    }
    lines.extend(plan.data.notes.iter().cloned());
    for (method, reason) in &plan.left_out {
        lines.push(format!("not run: {} ({reason})", method.label));
    }
    if !plan.changes.is_empty() {
        lines.push(format!("changed settings: {}", word("changes")));
    }
    lines
}

/// `443 / 388`: a count of rows of each experience.
fn rows(results: &Results, of: fn(&BenchExperience) -> usize) -> String {
    let experiences = results.plan.data.experiences.iter();
    let rows: Vec<String> = experiences.map(|e| of(e).to_string()).collect();
    rows.join(" / ")
}

/// The devices that computed, each once.
fn devices(results: &Results) -> String {
    let runs = results.methods.iter().flat_map(|method| &method.runs);
    let steps = runs.flat_map(|run| &run.cell.steps);
    let devices: BTreeSet<&str> = steps.map(|step| step.device.as_str()).collect();
    devices.into_iter().collect::<Vec<_>>().join(", ")
}

/// Threads and processors of the runs that are shown, each once.
pub(super) fn hardware(noted: &[Option<&CellSettings>]) -> String {
    let of = |settings: &Option<&CellSettings>| {
        let Some(settings) = settings else {
            return "threads and processor not noted".to_owned();
        };
        let threads = match settings.threads {
            None => "as many threads as cores, at most 4".to_owned(),
            Some(1) => "1 thread".to_owned(),
            Some(threads) => format!("{threads} threads"),
        };
        let processor = settings.processor.as_deref();
        format!(
            "{threads} of {}",
            processor.unwrap_or("an unknown processor")
        )
    };
    let all: BTreeSet<String> = noted.iter().map(of).collect();
    all.into_iter().collect::<Vec<_>>().join(", or ")
}

/// The groups of the main table.
const GROUPS: [(Group, &str); 3] = [
    (Group::Retrieval, "Retrieval"),
    (Group::Continual, "Continual"),
    (Group::Bound, "Bounds"),
];

fn of_group(results: &Results, group: Group) -> Vec<&MethodOutcome> {
    results
        .methods
        .iter()
        .filter(|method| method.info.group == group)
        .collect()
}

/// Columns of the main table with the poster's values.
const BESIDE: [(&str, Metric, Quantity); 3] = [
    ("M-Acc", Metric::Model, Quantity::Accuracy),
    ("D-Acc", Metric::Domain, Quantity::Accuracy),
    ("D-Fgt", Metric::Domain, Quantity::Forgetting),
];

/// The poster's value for this method, in italics.
fn beside(results: &Results, method: &MethodOutcome, metric: Metric, quantity: Quantity) -> String {
    let value = poster::beside(results, method.info.name, metric, quantity);
    value.map_or_else(String::new, |value| format!("*{}*", number(value)))
}

fn main(results: &Results) -> String {
    let has_poster = |method: &MethodOutcome| {
        let value =
            |(_, metric, quantity)| poster::beside(results, method.info.name, metric, quantity);
        BESIDE.map(value).iter().any(Option::is_some)
    };
    let beside_ours = match results.methods.iter().any(has_poster) {
        true => &BESIDE[..],
        false => &BESIDE[..0],
    };
    let heads = COLUMNS.iter().map(|(_, name, _)| (*name).to_owned());
    let posters = beside_ours
        .iter()
        .map(|(name, ..)| format!("*poster {name}*"));
    let heads: Vec<String> = ["runs".to_owned()]
        .into_iter()
        .chain(heads)
        .chain(posters)
        .collect();
    let mut text = format!(
        "| | {} |\n|---|{}\n",
        heads.join(" | "),
        "---|".repeat(heads.len())
    );
    let title = |name: &str| format!("| *{name}* |{}\n", " |".repeat(heads.len()));
    for (group, name) in GROUPS {
        let methods = of_group(results, group);
        if methods.is_empty() {
            continue;
        }
        text += &title(name);
        for (method, cells) in methods.iter().zip(ranked(&methods)) {
            let cells = cells.into_iter().map(|(cell, place)| match place {
                1 => format!("**{cell}**"),
                2 => format!("<u>{cell}</u>"),
                _ => cell,
            });
            let posters = beside_ours
                .iter()
                .map(|(_, metric, quantity)| beside(results, method, *metric, *quantity));
            let cells: Vec<String> = cells.chain(posters).collect();
            text += &format!(
                "| {} | {} | {} |\n",
                method.info.label,
                runs(method),
                cells.join(" | ")
            );
        }
    }
    if let Some(bundled) = &results.bundled {
        let Percent {
            model,
            family,
            domain,
        } = bundled.accuracy();
        text += &title("Bundled");
        text += &format!(
            "| Bundled router | 1 run | {} | {} | {} | – | – | – |{}\n",
            number(model),
            number(family),
            number(domain),
            " |".repeat(beside_ours.len())
        );
    }
    text + &notes(results)
}

/// How the main table is read.
fn notes(results: &Results) -> String {
    let mut text = "\nBest bold, second underlined, within a group.".to_owned();
    if !results.plan.data.own {
        text += " Columns of the poster have other data and larger encoders.";
    }
    text += " Fgt beyond that of the continual floor is forgotten by the method itself; the rest \
     is the growing hub's work.";
    match &results.bundled {
        Some(bundled) => {
            text += &format!(
                " The bundled router ({}, {} models) was made beforehand from the training rows \
                 of all experiences at once: read it beside the bounds.",
                bundled.generation, bundled.models
            );
        }
        None if !results.plan.data.own => {
            text += " The bundled router was not measured on these rows."
        }
        None => {}
    }
    text + "\n"
}

fn ablations(results: &Results) -> String {
    let (Some(full), ablations) = (results.method(OURS), of_group(results, Group::Ablation)) else {
        return String::new();
    };
    if ablations.is_empty() {
        return String::new();
    }
    let own = results.plan.data.own;
    let (note, heads, lines) = if own {
        ("", "", "")
    } else {
        (
            "; the poster's columns have other data",
            " *poster D-Acc* | *poster D-Fgt* |",
            "---|---|",
        )
    };
    let mut text = format!(
        "\n## Ablations\n\nCARvE with 10 % replay, and each time one thing changed{note}.\n\n| | \
         runs | M-Acc | D-Acc | D-Fgt | change of D-Fgt \
         |{heads}\n|---|---|---|---|---|---|{lines}\n",
    );
    let forgotten =
        |method: &MethodOutcome| method.over_seeds(Metric::Domain, AccuracyMatrix::forgetting);
    for method in [full]
        .into_iter()
        .chain(ablations)
        .chain(results.method("sequential"))
    {
        let change = match (forgotten(method), forgotten(full)) {
            _ if method.info.name == OURS => "–".to_owned(),
            (Some((now, _)), Some((then, _))) => format!("{:+.1}", now - then),
            _ => "–".to_owned(),
        };
        text += &format!(
            "| {} | {} | {} | {} | {} | {change} |",
            method.info.label,
            runs(method),
            with_deviation(method.over_seeds(Metric::Model, AccuracyMatrix::acc)),
            with_deviation(method.over_seeds(Metric::Domain, AccuracyMatrix::acc)),
            with_deviation(forgotten(method)),
        );
        if !own {
            let posters = [Quantity::Accuracy, Quantity::Forgetting]
                .map(|quantity| beside(results, method, Metric::Domain, quantity));
            text += &format!(" {} |", posters.join(" | "));
        }
        text.push('\n');
    }
    text
}

fn matrix(results: &Results, method: &MethodOutcome, metric: Metric) -> String {
    let experiences = &results.plan.data.experiences;
    let heads: Vec<&str> = experiences.iter().map(|e| e.label.as_str()).collect();
    let mut text = format!(
        "| after | {} |\n|---|{}\n",
        heads.join(" | "),
        "---|".repeat(heads.len())
    );
    for (step, label) in heads.iter().enumerate() {
        let cell = |test: usize| {
            method
                .cell(metric, step, test)
                .map_or("–".to_owned(), |(mean, _)| number(mean))
        };
        let cells: Vec<String> = (0..heads.len()).map(cell).collect();
        text += &format!("| {label} | {} |\n", cells.join(" | "));
    }
    text
}

fn by_carve_rule(results: &Results) -> String {
    let mut text = String::from(
        "\n## The same predictions by the reference's rule for CARvE\n\nThese cannot be compared \
         with the tables above: names that differ in case alone count as one, rows whose gold is \
         not registered are left out, and F-cond leaves out the rows whose prediction is no gold \
         of the eval file, which flatters weak routers.\n\n| | M-Acc | D-Acc | F-cond Acc | F-all \
         Acc | M-Fgt | D-Fgt |\n|---|---|---|---|---|---|---|\n",
    );
    for method in &results.methods {
        let mean = |place: usize, of: fn(&AccuracyMatrix) -> Option<f64>| {
            let values: Option<Vec<f64>> = method
                .runs
                .iter()
                .map(|run| of(&run.by_carve_rule[place]))
                .collect();
            values
                .and_then(|values| mean_and_deviation(&values))
                .map_or("–".to_owned(), |(mean, _)| number(mean))
        };
        let cells = [
            mean(0, AccuracyMatrix::acc),
            mean(1, AccuracyMatrix::acc),
            mean(2, AccuracyMatrix::acc),
            mean(3, AccuracyMatrix::acc),
            mean(0, AccuracyMatrix::forgetting),
            mean(1, AccuracyMatrix::forgetting),
        ];
        text += &format!("| {} | {} |\n", method.info.label, cells.join(" | "));
    }
    text
}

fn poster_table() -> String {
    let heads: Vec<&str> = COLUMNS.iter().map(|(_, name, _)| *name).collect();
    let mut text = format!(
        "\n## The poster, on other data\n\nOfficial train and eval data, routers with 4 to 7 \
         billion parameters: orderings and forgetting can be compared, levels cannot.\n\n| \
         setting | {} |\n|---|{}\n",
        heads.join(" | "),
        "---|".repeat(heads.len())
    );
    for row in poster::MAIN {
        text += &format!("| {} |\n", row.join(" | "));
    }
    text += "\n| ablation, 10 % replay | D-Acc | D-Fgt | change of D-Fgt |\n|---|---|---|---|\n";
    for row in poster::ABLATIONS {
        text += &format!("| {} |\n", row.join(" | "));
    }
    text + "\nThe poster gives two D-Fgt values for sequential fine-tuning, 37.2 and 35.7.\n"
}
