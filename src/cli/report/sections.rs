//! The report in words: sections of lines and tables, for the terminal and for the page.

use super::clusters::PromptCluster;
use super::measure::{CostSums, FeedbackReport, Reliability};
use crate::cli::labelled::Share;
use crate::cli::observed::skipped_line;
use crate::cli::output::{self, TextTable};
use crate::error::Result;

/// Rows of a table on the terminal and the page; JSON has all.
pub(super) const MOST_ROWS: usize = 20;

/// Characters of a prompt that are shown.
const SHOWN: usize = 72;

/// A part of the report.
pub(super) struct ReportSection {
    pub(super) title: &'static str,
    /// Before the table.
    pub(super) intro: Vec<String>,
    pub(super) heads: Vec<&'static str>,
    pub(super) rows: Vec<Vec<String>>,
    /// After the table.
    pub(super) notes: Vec<String>,
}

impl ReportSection {
    fn new(title: &'static str, heads: &[&'static str]) -> Self {
        Self {
            title,
            intro: Vec::new(),
            heads: heads.to_vec(),
            rows: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// Keeps the first rows and says how many there are.
    fn cut(mut self) -> Self {
        let all = self.rows.len();
        if all > MOST_ROWS {
            self.rows.truncate(MOST_ROWS);
            self.notes
                .push(format!("the first {MOST_ROWS} of {all}; --json has all"));
        }
        self
    }

    pub(super) fn print(&self) -> Result<()> {
        output::line("")?;
        output::line(self.title)?;
        self.intro.iter().try_for_each(output::paragraph)?;
        if !self.rows.is_empty() {
            let mut table = TextTable::new(&self.heads);
            self.rows.iter().for_each(|row| table.row(row.clone()));
            table.print()?;
        }
        self.notes.iter().try_for_each(output::paragraph)
    }
}

/// The first line of the report.
pub(super) fn summary(report: &FeedbackReport) -> String {
    let days = match (&report.first_day, &report.last_day) {
        (Some(first), Some(last)) if first == last => format!(" of {first}"),
        (Some(first), Some(last)) => format!(" from {first} to {last}"),
        _ => String::new(),
    };
    let generations = match report.generations.len() {
        0 => String::new(),
        1 => report
            .generations
            .keys()
            .map(|id| format!(" by {id}"))
            .collect(),
        count => format!(" by {}", output::counted(count, "generation")),
    };
    let route = report.route_us.map_or(String::new(), |us| {
        format!("; a route took {:.1} ms on average", us / 1e3)
    });
    format!(
        "{}{days}: {} with a decision{generations}, {} in shadow{route}",
        output::counted(report.lines, "line"),
        report.decided,
        report.shadow,
    )
}

/// All sections, in order.
pub(super) fn all(report: &FeedbackReport) -> Vec<ReportSection> {
    vec![
        agreement(report),
        incumbents(report),
        domains(report),
        cost(&report.cost),
        calibration(&report.calibration),
        days(report),
        unrouted(report),
    ]
}

fn percent(part: f64) -> String {
    format!("{:.1}", 100.0 * part)
}

fn agreement(report: &FeedbackReport) -> ReportSection {
    let heads = [
        "the best model is",
        ">lines",
        ">model",
        ">among the logged",
        ">domain",
    ];
    let mut section = ReportSection::new("Agreement", &heads);
    for (name, of) in [
        ("the one that was used", &report.used),
        ("the expected one", &report.expected),
    ] {
        if of.model.rows > 0 {
            section.rows.push(vec![
                name.to_owned(),
                of.model.rows.to_string(),
                of.model.cell(),
                of.among.cell(),
                of.domain.cell(),
            ]);
        }
    }
    match section.rows.is_empty() {
        true => section
            .notes
            .push("no line says what was used or expected".into()),
        false => section.notes.push(
            "percent, with the 95 % interval (Wilson) in brackets; agreement is no accuracy: what \
             was used need not be right"
                .into(),
        ),
    }
    section
        .notes
        .extend(skipped_line(&report.skipped).map(|line| format!("skipped: {line}")));
    section
}

fn incumbents(report: &FeedbackReport) -> ReportSection {
    let heads = [
        "~used",
        ">lines",
        ">agreed",
        ">good answers",
        "~chosen instead",
        ">lines",
    ];
    let mut section = ReportSection::new("By the model that was used", &heads);
    for of in &report.incumbents {
        section.rows.push(vec![
            of.model.clone(),
            of.lines.to_string(),
            of.agreed.cell(),
            of.good.cell(),
            of.instead.clone().unwrap_or_else(|| "-".into()),
            of.instead_lines.to_string(),
        ]);
    }
    section.cut()
}

fn domains(report: &FeedbackReport) -> ReportSection {
    let heads = [
        "~domain of the used model",
        ">lines",
        ">same model",
        ">same domain",
    ];
    let mut section = ReportSection::new("By domain", &heads);
    for of in &report.domains {
        section.rows.push(vec![
            of.domain.clone(),
            of.lines.to_string(),
            of.model.cell(),
            of.same_domain.cell(),
        ]);
    }
    section.cut()
}

/// Names and sums of costs, those that are known.
pub(super) fn sums(cost: &CostSums) -> Vec<(String, f64)> {
    let baseline = cost.baseline.as_deref().unwrap_or_default();
    let all = [
        ("what was used".to_owned(), cost.used),
        ("what was routed".to_owned(), cost.routed),
        (format!("all by {baseline}"), cost.of_baseline),
    ];
    let known = all.into_iter();
    known.filter_map(|(name, sum)| Some((name, sum?))).collect()
}

fn cost(cost: &CostSums) -> ReportSection {
    let heads = ["~answers by", ">cost", ">against what was routed"];
    let mut section = ReportSection::new("Cost", &heads);
    let sums = sums(cost);
    for (name, sum) in &sums {
        let routed = cost.routed.filter(|routed| *routed > 0.0 && routed != sum);
        let against = match routed {
            Some(routed) => format!("{:+.1} %", 100.0 * (sum / routed - 1.0)),
            None => "-".into(),
        };
        section
            .rows
            .push(vec![name.clone(), format!("{sum:.4}"), against]);
    }
    if cost.lines > 0 {
        section.intro.push(format!(
            "{} with {} tokens; prices per {} tokens from the registry. It is assumed that every \
             model takes and makes as many tokens.",
            output::counted(cost.lines, "line"),
            cost.tokens,
            cost.per
        ));
    }
    if let (Some(baseline), Some(routed)) = (cost.of_baseline, cost.routed)
        && baseline > 0.0
    {
        let saved = 100.0 * (1.0 - routed / baseline);
        let name = cost.baseline.as_deref().unwrap_or_default();
        section
            .notes
            .push(format!("saved against {name}: {saved:.1} %"));
    }
    let left = [
        (cost.without_tokens, "without tokens"),
        (
            cost.without_price_of_routed,
            "whose chosen model states no price",
        ),
        (
            cost.without_price_of_used,
            "whose used model states no price",
        ),
    ];
    let left = left.into_iter().filter(|(count, _)| *count > 0);
    let left: Vec<String> = left.map(|(count, why)| format!("{count} {why}")).collect();
    if !left.is_empty() {
        section
            .notes
            .push(format!("not compared: {}", left.join(", ")));
    }
    if section.rows.is_empty() && section.notes.is_empty() {
        section.notes.push("no decision with a known hub".into());
    }
    section
}

fn calibration(found: &Reliability) -> ReportSection {
    let heads = ["confidence, %", ">lines", ">mean", ">right"];
    let mut section = ReportSection::new("Calibration", &heads);
    let (Some(error), Some(brier)) = (found.calibration_error, found.brier) else {
        section.notes.push(
            "no line says whether its decision was right: that takes an expected model, or an \
             outcome of the model that was chosen and used"
                .into(),
        );
        return section;
    };
    let step = 100.0 / found.bins.len().max(1) as f64;
    for bin in &found.bins {
        let from = 100.0 * bin.from;
        section.rows.push(vec![
            format!("{from:.0} to {:.0}", from + step),
            bin.right.rows.to_string(),
            bin.confidence.map_or("-".into(), percent),
            bin.right.cell(),
        ]);
    }
    section.notes.push(format!(
        "expected calibration error {} points, Brier score {brier:.3}, over {}",
        percent(error),
        output::counted(found.lines, "line")
    ));
    section.notes.push(match found.with_confidence {
        0 => "confidence is the probability of the best model".into(),
        stated if stated == found.lines => "confidence is that of the decision".into(),
        stated => format!(
            "confidence is that of the decision in {}, and the probability of the best model in \
             the others",
            output::counted(stated, "line")
        ),
    });
    section
}

fn days(report: &FeedbackReport) -> ReportSection {
    let heads = [
        "day (UTC)",
        ">lines",
        ">agreed",
        ">no answer",
        ">abstained",
        ">out of distr.",
        ">confidence",
    ];
    let mut section = ReportSection::new("Drift", &heads);
    let share = |share: Share| match share.rows {
        0 => "-".to_owned(),
        rows => percent(share.hits as f64 / rows as f64),
    };
    // The newest days tell most.
    let first = report.days.len().saturating_sub(MOST_ROWS);
    for day in &report.days[first..] {
        section.rows.push(vec![
            day.day.clone(),
            day.lines.to_string(),
            share(day.agreed),
            share(day.no_answer),
            share(day.abstained),
            share(day.out_of_distribution),
            day.confidence.map_or("-".into(), percent),
        ]);
    }
    if first > 0 {
        let all = report.days.len();
        section.notes.push(format!(
            "the last {MOST_ROWS} of {all} days; --json has all"
        ));
    }
    match section.rows.is_empty() {
        true => section.notes.push("no line has a time".into()),
        false => section.notes.push("percent of the day's lines".into()),
    }
    section
}

/// The beginning of the prompt in the middle, or its id.
pub(super) fn example(cluster: &PromptCluster) -> String {
    let Some(text) = &cluster.example else {
        return format!("prompt {}", cluster.prompt_id);
    };
    let words: Vec<&str> = text.split_whitespace().take(SHOWN).collect();
    let text = words.join(" ");
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{} ...", &text[..end]),
        None => text,
    }
}

fn unrouted(report: &FeedbackReport) -> ReportSection {
    let heads = [">prompts", "~nearest card", ">cosine", "in the middle"];
    let mut section = ReportSection::new("What could not be routed", &heads);
    let found = &report.unrouted;
    let reasons = [
        (found.no_answer, "without an answer"),
        (found.out_of_distribution, "out of distribution"),
        (found.abstained, "abstained"),
        (found.unsure, "below the confidence of --below"),
    ];
    let reasons = reasons.into_iter().filter(|(count, _)| *count > 0);
    let reasons: Vec<String> = reasons
        .map(|(count, why)| format!("{count} {why}"))
        .collect();
    section.intro.push(match found.lines {
        0 => "nothing: every line has a decision that does not abstain".into(),
        lines => format!("{}: {}", output::counted(lines, "line"), reasons.join(", ")),
    });
    for cluster in &found.clusters {
        let near = cluster.nearest.first();
        section.rows.push(vec![
            cluster.prompts.to_string(),
            near.map_or("-".into(), |near| near.model.clone()),
            near.map_or("-".into(), |near| format!("{:.2}", near.cosine)),
            example(cluster),
        ]);
    }
    if found.in_others > 0 {
        let others = output::counted(found.in_others, "prompt");
        section.notes.push(format!("{others} in smaller clusters"));
    }
    section.notes.extend(found.remarks.iter().cloned());
    section
}
