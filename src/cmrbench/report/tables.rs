//! Tables: Markdown for people, CSV for programs.

use serde_json::Value;

use super::claims::OURS;
use super::{COLUMNS, missing, number, poster, ranked, with_deviation};
use crate::cmrbench::{
    AccuracyMatrix, Group, MethodOutcome, Metric, Quantity, Results, mean_and_deviation,
};

/// Those that are made elsewhere.
pub(super) struct Sections {
    /// Behind the main table.
    pub(super) claims: String,
    /// Behind the ablations.
    pub(super) others: String,
}

pub(super) fn matrix_csv(results: &Results) -> String {
    let mut text = "method,seed,step,test,metric,hits,rows,accuracy\n".to_owned();
    let steps = results.plan.steps();
    for method in &results.methods {
        for run in &method.runs {
            for metric in Metric::ALL {
                for (step, test) in
                    (0..steps).flat_map(|step| (0..=step).map(move |test| (step, test)))
                {
                    if let Some((hits, rows)) = run.hits(metric, step, test) {
                        let percent = 100.0 * hits as f64 / rows.max(1) as f64;
                        text += &format!(
                            "{},{},{},E{},{},{hits},{rows},{percent}\n",
                            method.info.name,
                            run.seed,
                            step + 1,
                            test + 1,
                            metric.letter(),
                        );
                    }
                }
            }
        }
    }
    text
}

pub(super) fn summary_csv(results: &Results) -> String {
    let steps = results.plan.steps();
    let transfers: String = (2..=steps).map(|step| format!("bwt{step},")).collect();
    let mut text = format!(
        "method,metric,acc_mean,acc_sd,fgt_mean,fgt_sd,fgt_max_mean,{transfers}seeds,updates,seconds\n"
    );
    let plain = |value: Option<f64>| value.map_or_else(String::new, |value| value.to_string());
    for method in &results.methods {
        let cost = |of: fn(&crate::cmrbench::StepNote) -> f64| {
            let runs: Vec<f64> = method
                .runs
                .iter()
                .map(|run| run.cell.steps.iter().map(of).sum())
                .collect();
            mean_and_deviation(&runs).map_or(0.0, |(mean, _)| mean)
        };
        for metric in Metric::ALL
            .into_iter()
            .filter(|metric| method.measures(*metric))
        {
            let (acc, fgt) = (
                method.over_seeds(metric, AccuracyMatrix::acc),
                method.over_seeds(metric, AccuracyMatrix::forgetting),
            );
            let mean = |value: Option<(f64, Option<f64>)>| plain(value.map(|(mean, _)| mean));
            let deviation = |value: Option<(f64, Option<f64>)>| {
                plain(value.and_then(|(_, deviation)| deviation))
            };
            let best = method.over_seeds(metric, AccuracyMatrix::forgetting_from_best);
            let bwt = |step: usize| {
                mean(method.over_seeds(metric, |matrix| matrix.backward_transfer(step)))
            };
            let mut cells = vec![
                method.info.name.to_owned(),
                metric.letter().to_owned(),
                mean(acc),
                deviation(acc),
                mean(fgt),
                deviation(fgt),
                mean(best),
            ];
            cells.extend((1..steps).map(bwt));
            cells.extend([
                method.runs.len().to_string(),
                format!("{}", cost(|step| step.updates as f64)),
                format!("{:.1}", cost(|step| step.seconds)),
            ]);
            text += &cells.join(",");
            text.push('\n');
        }
    }
    text
}

/// `tables.md`; `sections` stand between the main tables and the matrices.
pub(super) fn markdown(results: &Results, about: &Value, sections: &Sections) -> String {
    let mut text = format!("# CMRBench\n\n{}", missing::paragraph(results));
    for line in head(results, about) {
        text += &format!("- {line}\n");
    }
    text += "\n## Methods\n\n";
    text += &main(results);
    text += &super::growth::section(results);
    text += &sections.claims;
    text += &ablations(results);
    text += &sections.others;
    text += "\n## Matrices\n\nPercent, mean over seeds; after learning the experience of the row, on the eval rows of the column, among all models known by then.\n";
    for method in &results.methods {
        for metric in Metric::ALL
            .into_iter()
            .filter(|metric| method.measures(*metric))
        {
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

/// What stands above every table.
fn head(results: &Results, about: &Value) -> Vec<String> {
    let plan = &results.plan;
    let word = |name: &str| match &about[name] {
        Value::String(text) => text.clone(),
        Value::Null => "unknown".to_owned(),
        other => other.to_string(),
    };
    let rows = |of: fn(&crate::cmrbench::BenchExperience) -> usize| {
        let rows: Vec<String> = plan
            .data
            .experiences
            .iter()
            .map(|e| of(e).to_string())
            .collect();
        rows.join(" / ")
    };
    let devices: std::collections::BTreeSet<&str> = results
        .methods
        .iter()
        .flat_map(|method| &method.runs)
        .flat_map(|run| &run.cell.steps)
        .map(|step| step.device.as_str())
        .collect();
    let devices: Vec<&str> = devices.into_iter().collect();
    let mut lines = vec![
        match plan.data.own {
            true => format!(
                "data: a hub of one's own, sha256 {}",
                &word("data_sha256")[..12]
            ),
            false => format!(
                "data: commit {}, sha256 {}",
                word("commit"),
                &word("data_sha256")[..12]
            ),
        },
        format!(
            "eval rows: {} ({}); training rows: {}",
            rows(|e| e.eval.len()),
            word("eval"),
            rows(|e| e.train.len())
        ),
        format!("prefix: {}; rule: {}", word("prefix"), word("rule")),
        format!(
            "encoder: {}; head: {}; epochs: {}",
            word("encoder"),
            word("head"),
            word("epochs")
        ),
        format!(
            "seeds: {} (± is the sample standard deviation over them; deterministic methods run once)",
            word("seeds")
        ),
        format!(
            "hardware: {} ({}), threads {}; hubrouter {}",
            devices.join(", "),
            word("processor"),
            about["threads"]
                .as_u64()
                .map_or("as many as cores, at most 4".to_owned(), |threads| threads
                    .to_string()),
            word("version")
        ),
    ];
    if let Some(chat) = &plan.chat {
        lines.push(format!(
            "LLM controller: {}, choosing from the domains of the {}; temperature 0.6, top-p 0.95, thinking off; domains alone, at the last step",
            chat.description(),
            chat.domains.name()
        ));
    }
    lines.extend(plan.data.notes.iter().cloned());
    for (method, reason) in &plan.left_out {
        lines.push(format!("not run: {} ({reason})", method.label));
    }
    if about["changes"]
        .as_array()
        .is_some_and(|changes| !changes.is_empty())
    {
        lines.push(format!("changed settings: {}", word("changes")));
    }
    lines
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

/// What of the poster stands beside a method's own numbers.
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
    let heads = COLUMNS.iter().map(|(_, name, _)| (*name).to_owned());
    let columns = if results.plan.data.own {
        0
    } else {
        BESIDE.len()
    };
    let posters = BESIDE.iter().take(columns);
    let posters = posters.map(|(name, ..)| format!("*poster {name}*"));
    let heads: Vec<String> = heads.chain(posters).collect();
    let mut text = format!(
        "| | {} |\n|---|{}\n",
        heads.join(" | "),
        "---|".repeat(heads.len())
    );
    for (group, name) in GROUPS {
        let methods = of_group(results, group);
        if methods.is_empty() {
            continue;
        }
        text += &format!("| *{name}* |{}\n", " |".repeat(heads.len()));
        for (method, cells) in methods.iter().zip(ranked(&methods)) {
            let cells = cells.into_iter().map(|(cell, place)| match place {
                1 => format!("**{cell}**"),
                2 => format!("<u>{cell}</u>"),
                _ => cell,
            });
            let posters = BESIDE.iter().take(columns);
            let cells = cells.chain(
                posters.map(|(_, metric, quantity)| beside(results, method, *metric, *quantity)),
            );
            text += &format!(
                "| {} | {} |\n",
                method.info.label,
                cells.collect::<Vec<_>>().join(" | ")
            );
        }
    }
    let posters = if columns > 0 {
        " The poster's columns have other data and larger encoders."
    } else {
        ""
    };
    text + &format!(
        "\nBest bold, second underlined, within a group.{posters} What exceeds the continual floor's Fgt is forgotten by the method itself; the rest is the growing hub's.\n"
    )
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
        "\n## Ablations\n\nCARvE with 10 % replay and one thing changed{note}.\n\n| | M-Acc | D-Acc | D-Fgt | change of D-Fgt |{heads}\n|---|---|---|---|---|{lines}\n",
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
            "| {} | {} | {} | {} | {change} |",
            method.info.label,
            with_deviation(
                method,
                method.over_seeds(Metric::Model, AccuracyMatrix::acc)
            ),
            with_deviation(
                method,
                method.over_seeds(Metric::Domain, AccuracyMatrix::acc)
            ),
            with_deviation(method, forgotten(method)),
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
        "\n## The same predictions by the reference's rule for CARvE\n\nNot comparable with the tables above: names that differ in case alone are one, rows whose gold is not registered are left out, and F-cond leaves out the rows whose prediction is no gold of the eval file, which flatters weak routers.\n\n| | M-Acc | D-Acc | F-cond Acc | F-all Acc | M-Fgt | D-Fgt |\n|---|---|---|---|---|---|---|\n",
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
        "\n## poster, other data\n\nOfficial train and eval data, routers with 4 to 7 billion parameters: orderings and forgetting can be compared, levels cannot.\n\n| setting | {} |\n|---|{}\n",
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
