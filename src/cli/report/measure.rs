//! What lines of feedback add up to.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;
use serde_json::Value;

use super::clusters::Unrouted;
use crate::cli::labelled::Share;
use crate::cli::prices::Prices;
use crate::feedback::{FeedbackLine, SkippedLines};
use crate::hub::domain_key;
use crate::{ErrorKind, Hub, Model, ModelId};

/// Bins of the reliability table.
const BINS: usize = 10;

/// Prompts without a route that are kept to be clustered: the newest ones.
pub(super) const MOST_UNROUTED: usize = 2000;

/// A report on logs of feedback.
#[derive(Serialize)]
pub(super) struct FeedbackReport {
    schema_version: u32,
    pub(super) logs: Vec<PathBuf>,
    pub(super) lines: usize,
    pub(super) skipped: SkippedLines,
    /// Lines on whose decisions nobody acted.
    pub(super) shadow: usize,
    /// Lines with a decision.
    pub(super) decided: usize,
    /// Days of the first and the last line.
    pub(super) first_day: Option<String>,
    pub(super) last_day: Option<String>,
    /// Lines of each generation.
    pub(super) generations: BTreeMap<String, usize>,
    /// Mean microseconds of a route.
    pub(super) route_us: Option<f64>,
    pub(super) used: AgreedWith,
    pub(super) expected: AgreedWith,
    /// By the model that was really used, the most frequent first.
    pub(super) incumbents: Vec<Incumbent>,
    /// By the domain of the model that was really used.
    pub(super) domains: Vec<AgreedDomain>,
    pub(super) cost: CostSums,
    pub(super) calibration: Reliability,
    pub(super) days: Vec<DayOfLog>,
    pub(super) unrouted: Unrouted,
}

/// How often the decisions agree with a model that a line names.
#[derive(Clone, Copy, Default, Serialize)]
pub(super) struct AgreedWith {
    pub(super) model: Share,
    /// It is among the models that the line has.
    pub(super) among: Share,
    /// Among lines that state its domain, or whose hub does.
    pub(super) domain: Share,
}

#[derive(Serialize)]
pub(super) struct Incumbent {
    pub(super) model: String,
    pub(super) lines: usize,
    pub(super) agreed: Share,
    /// Good answers of the model, among those that are judged.
    pub(super) good: Share,
    /// The model that was chosen most often in its place.
    pub(super) instead: Option<String>,
    pub(super) instead_lines: usize,
    #[serde(skip)]
    others: HashMap<String, usize>,
}

#[derive(Serialize)]
pub(super) struct AgreedDomain {
    pub(super) domain: String,
    pub(super) lines: usize,
    pub(super) model: Share,
    pub(super) same_domain: Share,
}

/// Costs over the lines where all that is compared is known.
#[derive(Default, Serialize)]
pub(super) struct CostSums {
    pub(super) lines: usize,
    pub(super) baseline: Option<String>,
    /// Tokens that a price is for.
    pub(super) per: f64,
    pub(super) tokens: u64,
    pub(super) used: Option<f64>,
    pub(super) routed: Option<f64>,
    pub(super) of_baseline: Option<f64>,
    /// Lines with a decision that are not compared.
    pub(super) without_tokens: usize,
    pub(super) without_price_of_routed: usize,
    pub(super) without_price_of_used: usize,
}

/// How often a decision of some confidence is right.
#[derive(Default, Serialize)]
pub(super) struct Reliability {
    /// Lines whose decision is known to be right or wrong.
    pub(super) lines: usize,
    /// Lines whose confidence is that of the decision; else it is the best model's probability.
    pub(super) with_confidence: usize,
    pub(super) bins: Vec<ReliabilityBin>,
    /// Expected calibration error, 0 to 1: the mean gap between confidence and accuracy.
    pub(super) calibration_error: Option<f64>,
    /// Brier score: the mean square of confidence minus 1 or 0.
    pub(super) brier: Option<f64>,
    #[serde(skip)]
    squares: f64,
}

#[derive(Clone, Copy, Default, Serialize)]
pub(super) struct ReliabilityBin {
    /// Confidences from here on.
    pub(super) from: f64,
    pub(super) right: Share,
    /// Mean confidence.
    pub(super) confidence: Option<f64>,
    #[serde(skip)]
    sum: f64,
}

/// One day in UTC.
#[derive(Serialize)]
pub(super) struct DayOfLog {
    pub(super) day: String,
    pub(super) lines: usize,
    pub(super) agreed: Share,
    /// The router had no answer.
    pub(super) no_answer: Share,
    /// The decision abstains. Lines of versions that do not abstain count as not.
    pub(super) abstained: Share,
    /// Out of distribution, among lines that say so or not.
    pub(super) out_of_distribution: Share,
    /// Mean confidence.
    pub(super) confidence: Option<f64>,
    #[serde(skip)]
    sum: f64,
    #[serde(skip)]
    sure: usize,
}

/// What the lines are measured with.
pub(super) struct Rules {
    pub(super) hub: Option<Arc<Hub>>,
    pub(super) prices: Prices,
    pub(super) baseline: Option<ModelId>,
    /// Decisions of a smaller confidence count as not routed.
    pub(super) below: Option<f64>,
    /// Out of distribution above this.
    pub(super) out: f64,
}

/// A prompt that could not be routed.
pub(super) struct UnroutedLine {
    pub(super) prompt_id: String,
    pub(super) text: Option<String>,
    pub(super) vector: Option<(Vec<f32>, String)>,
    pub(super) best: Option<String>,
}

/// Adds lines up.
pub(super) struct Measure {
    rules: Rules,
    report: FeedbackReport,
    incumbents: HashMap<String, Incumbent>,
    domains: BTreeMap<String, AgreedDomain>,
    days: BTreeMap<String, DayOfLog>,
    bins: [ReliabilityBin; BINS],
    pub(super) unrouted: VecDeque<UnroutedLine>,
    route: (f64, usize),
}

/// The part `name` of `value`, if that is an object and the part a number; a number is itself.
fn number(value: Option<&Value>, name: &str) -> Option<f64> {
    match value? {
        Value::Number(number) => number.as_f64(),
        Value::Object(parts) => parts.get(name)?.as_f64(),
        _ => None,
    }
}

/// The confidence of a line's decision, 0 to 1, and whether the decision states it.
fn confidence(line: &FeedbackLine) -> Option<(f64, bool)> {
    let stated = number(line.confidence.as_ref(), "model");
    match stated.filter(|confidence| (0.0..=1.0).contains(confidence)) {
        Some(confidence) => Some((confidence, true)),
        None => Some((f64::from(line.best()?.probability), false)),
    }
}

/// Whether the line has no answer or abstains for lack of time or of a device, and not because of
/// its prompt.
fn is_passing(line: &FeedbackLine) -> bool {
    let reason = line.abstained.as_ref();
    let reason = reason.and_then(|why| why.get("reason").unwrap_or(why).as_str());
    let kind = line.no_answer.as_ref().map(|why| why.kind);
    reason == Some("deadline")
        || kind.is_some_and(|kind| {
            kind.is_device() || matches!(kind, ErrorKind::Deadline | ErrorKind::Overloaded)
        })
}

fn abstained(line: &FeedbackLine) -> bool {
    !matches!(
        line.abstained,
        None | Some(Value::Null | Value::Bool(false))
    )
}

/// Whether the prompt is out of distribution, if the line says so or not.
fn is_out(line: &FeedbackLine, out: f64) -> Option<bool> {
    const NAME: &str = "out_of_distribution";
    let because = line.abstained.as_ref().is_some_and(|why| {
        let reason = why.get("reason").unwrap_or(why);
        reason.as_str() == Some(NAME)
    });
    let far = line.confidence.as_ref().filter(|value| value.is_object());
    let far = number(far, NAME).map(|far| far > out);
    match because {
        true => Some(true),
        false => far,
    }
}

impl Rules {
    fn model(&self, name: &str) -> Option<&Model> {
        let hub = self.hub.as_deref()?;
        hub.get(hub.find(name)?)
    }

    /// Whether two names are of one model.
    fn same(&self, a: &str, b: &str) -> bool {
        let id = |name| self.hub.as_deref().and_then(|hub| hub.find(name));
        a == b || (id(a).is_some() && id(a) == id(b))
    }

    /// The domain of the model `name`, by the hub or the line.
    fn domain<'l>(&'l self, name: &str, line: &'l FeedbackLine) -> Option<&'l str> {
        let known = self.model(name).map(|model| &*model.domain);
        known.or_else(|| {
            let ranked = line.ranked.iter().find(|ranked| ranked.model == name);
            ranked.map(|ranked| ranked.domain.as_str())
        })
    }

    /// Whether the best model of `line` is the right one, if that is known.
    fn right(&self, line: &FeedbackLine) -> Option<bool> {
        let best = &line.best()?.model;
        match (line.expected_model(), line.used_model()) {
            (Some(expected), _) => Some(self.same(best, expected)),
            (None, Some(used)) if self.same(best, used) => line.feedback.good(),
            _ => None,
        }
    }
}

impl AgreedWith {
    /// Counts a line whose decision is compared with the model `name`.
    fn add(&mut self, rules: &Rules, line: &FeedbackLine, name: &str) {
        let Some(best) = line.best() else {
            return;
        };
        self.model.add(Some(rules.same(&best.model, name)));
        let among = line.ranked.iter().any(|r| rules.same(&r.model, name));
        self.among.add(Some(among));
        let domain = rules.domain(name, line);
        self.domain
            .add(domain.map(|domain| domain_key(domain) == domain_key(&best.domain)));
    }
}

impl Measure {
    pub(super) fn new(rules: Rules, logs: Vec<PathBuf>) -> Self {
        let mut bins = [ReliabilityBin::default(); BINS];
        for (place, bin) in bins.iter_mut().enumerate() {
            bin.from = place as f64 / BINS as f64;
        }
        let report = FeedbackReport {
            schema_version: 1,
            logs,
            lines: 0,
            skipped: SkippedLines::default(),
            shadow: 0,
            decided: 0,
            first_day: None,
            last_day: None,
            generations: BTreeMap::new(),
            route_us: None,
            used: AgreedWith::default(),
            expected: AgreedWith::default(),
            incumbents: Vec::new(),
            domains: Vec::new(),
            cost: CostSums::default(),
            calibration: Reliability::default(),
            days: Vec::new(),
            unrouted: Unrouted::default(),
        };
        Self {
            rules,
            report,
            incumbents: HashMap::new(),
            domains: BTreeMap::new(),
            days: BTreeMap::new(),
            bins,
            unrouted: VecDeque::new(),
            route: (0.0, 0),
        }
    }

    pub(super) fn add(&mut self, mut line: FeedbackLine) {
        let report = &mut self.report;
        report.lines += 1;
        report.shadow += usize::from(line.shadow);
        report.decided += usize::from(line.best().is_some());
        if let Some(id) = &line.generation {
            *report.generations.entry(id.to_string()).or_default() += 1;
        }
        if let Some(us) = line.route_us.filter(|us| us.is_finite()) {
            self.route = (self.route.0 + us, self.route.1 + 1);
        }
        if let Some(used) = line.used_model() {
            report.used.add(&self.rules, &line, used);
        }
        if let Some(expected) = line.expected_model() {
            report.expected.add(&self.rules, &line, expected);
        }
        self.add_incumbent(&line);
        self.add_cost(&line);
        self.add_calibration(&line);
        self.add_day(&line);
        self.add_unrouted(&mut line);
    }

    fn add_incumbent(&mut self, line: &FeedbackLine) {
        let (Some(used), Some(best)) = (line.used_model(), line.best()) else {
            return;
        };
        let rules = &self.rules;
        let name = rules.model(used).map_or(used, |model| &*model.name);
        let agrees = rules.same(&best.model, used);
        let own = self
            .incumbents
            .entry(name.to_owned())
            .or_insert_with(|| Incumbent {
                model: name.to_owned(),
                lines: 0,
                agreed: Share::default(),
                good: Share::default(),
                instead: None,
                instead_lines: 0,
                others: HashMap::new(),
            });
        own.lines += 1;
        own.agreed.add(Some(agrees));
        own.good.add(line.feedback.good());
        if !agrees {
            *own.others.entry(best.model.clone()).or_default() += 1;
        }
        let domain = rules.domain(used, line).unwrap_or("unknown");
        let key = domain_key(domain);
        let own = self
            .domains
            .entry(key.clone())
            .or_insert_with(|| AgreedDomain {
                domain: domain.to_owned(),
                lines: 0,
                model: Share::default(),
                same_domain: Share::default(),
            });
        own.lines += 1;
        own.model.add(Some(agrees));
        let known = rules.domain(used, line).is_some();
        own.same_domain
            .add(known.then(|| key == domain_key(&best.domain)));
    }

    fn add_cost(&mut self, line: &FeedbackLine) {
        let (Some(best), Some(_)) = (line.best(), &self.rules.hub) else {
            return;
        };
        let went = &line.feedback;
        let sums = &mut self.report.cost;
        if (went.input_tokens, went.output_tokens) == (None, None) {
            sums.without_tokens += 1;
            return;
        }
        let rules = &self.rules;
        let price = |name: &str| rules.prices.cost(rules.model(name)?, went);
        let Some(routed) = price(&best.model) else {
            sums.without_price_of_routed += 1;
            return;
        };
        let used = line.used_model();
        let paid = went.cost.or_else(|| price(used?));
        if used.is_some() && paid.is_none() {
            sums.without_price_of_used += 1;
            return;
        }
        let baseline = rules.baseline.and_then(|id| {
            let model = rules.hub.as_deref()?.get(id)?;
            rules.prices.cost(model, went)
        });
        sums.lines += 1;
        let tokens = [went.input_tokens, went.output_tokens];
        for count in tokens.into_iter().flatten() {
            sums.tokens = sums.tokens.saturating_add(count);
        }
        for (sum, cost) in [
            (&mut sums.routed, Some(routed)),
            (&mut sums.used, paid),
            (&mut sums.of_baseline, baseline),
        ] {
            if let Some(cost) = cost {
                *sum = Some(sum.unwrap_or(0.0) + cost);
            }
        }
    }

    fn add_calibration(&mut self, line: &FeedbackLine) {
        let Some((confidence, stated)) = confidence(line) else {
            return;
        };
        let Some(right) = self.rules.right(line) else {
            return;
        };
        let all = &mut self.report.calibration;
        all.lines += 1;
        all.with_confidence += usize::from(stated);
        all.squares += (confidence - f64::from(u8::from(right))).powi(2);
        #[expect(clippy::cast_possible_truncation, reason = "0 to 10")]
        #[expect(clippy::cast_sign_loss, reason = "from 0 on")]
        let place = ((confidence * BINS as f64) as usize).min(BINS - 1);
        let bin = &mut self.bins[place];
        bin.right.add(Some(right));
        bin.sum += confidence;
    }

    fn add_day(&mut self, line: &FeedbackLine) {
        let time = line.feedback.time;
        let time = time.and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
        let Some(time) = time else {
            return;
        };
        let day = time.to_zoned(jiff::tz::TimeZone::UTC).date().to_string();
        let own = self.days.entry(day.clone()).or_insert_with(|| DayOfLog {
            day,
            lines: 0,
            agreed: Share::default(),
            no_answer: Share::default(),
            abstained: Share::default(),
            out_of_distribution: Share::default(),
            confidence: None,
            sum: 0.0,
            sure: 0,
        });
        own.lines += 1;
        let both = line.used_model().zip(line.best());
        own.agreed
            .add(both.map(|(used, best)| self.rules.same(&best.model, used)));
        own.no_answer.add(Some(line.no_answer.is_some()));
        own.abstained.add(Some(abstained(line)));
        own.out_of_distribution.add(is_out(line, self.rules.out));
        if let Some((confidence, _)) = confidence(line) {
            own.sum += confidence;
            own.sure += 1;
        }
    }

    /// Keeps a prompt that could not be routed; its text and vector are taken out of the line.
    fn add_unrouted(&mut self, line: &mut FeedbackLine) {
        let unsure = match (self.rules.below, confidence(line)) {
            (Some(below), Some((confidence, _))) => confidence < below,
            _ => false,
        };
        let counts = &mut self.report.unrouted;
        let place = match line {
            _ if is_passing(line) => return,
            _ if line.no_answer.is_some() => &mut counts.no_answer,
            _ if is_out(line, self.rules.out) == Some(true) => &mut counts.out_of_distribution,
            _ if abstained(line) => &mut counts.abstained,
            _ if unsure => &mut counts.unsure,
            _ => return,
        };
        *place += 1;
        counts.lines += 1;
        if self.unrouted.len() == MOST_UNROUTED {
            self.unrouted.pop_front();
        }
        self.unrouted.push_back(UnroutedLine {
            best: line.best().map(|best| best.model.clone()),
            prompt_id: std::mem::take(&mut line.prompt_id),
            text: line.prompt.take().filter(|text| !text.trim().is_empty()),
            vector: line.prompt_vector.take().zip(line.vector_encoder.take()),
        });
    }

    /// The report; clusters are added by the caller.
    pub(super) fn finish(self, skipped: SkippedLines) -> (FeedbackReport, VecDeque<UnroutedLine>) {
        let mut report = self.report;
        report.skipped = skipped;
        report.first_day = self.days.keys().next().cloned();
        report.last_day = self.days.keys().next_back().cloned();
        let (sum, routes) = self.route;
        report.route_us = (routes > 0).then(|| sum / routes as f64);
        report.incumbents = self
            .incumbents
            .into_values()
            .map(Incumbent::finished)
            .collect();
        let order = |a: &Incumbent, b: &Incumbent| {
            let by_lines = b.lines.cmp(&a.lines);
            by_lines.then_with(|| a.model.cmp(&b.model))
        };
        report.incumbents.sort_by(order);
        report.domains = self.domains.into_values().collect();
        report.domains.sort_by_key(|of| std::cmp::Reverse(of.lines));
        let days = self.days.into_values().map(|mut day| {
            day.confidence = (day.sure > 0).then(|| day.sum / day.sure as f64);
            day
        });
        report.days = days.collect();
        let hub = self.rules.hub.as_deref();
        let baseline = self.rules.baseline.and_then(|id| hub?.get(id));
        report.cost.baseline = baseline.map(|model| model.name.to_string());
        report.cost.per = self.rules.prices.per();
        report.calibration.finish(self.bins);
        report.unrouted.kept = self.unrouted.len();
        (report, self.unrouted)
    }
}

impl Incumbent {
    fn finished(mut self) -> Self {
        let most = std::mem::take(&mut self.others).into_iter();
        let most = most.max_by(|a, b| a.1.cmp(&b.1).then_with(|| b.0.cmp(&a.0)));
        if let Some((model, lines)) = most {
            (self.instead, self.instead_lines) = (Some(model), lines);
        }
        self
    }
}

impl Reliability {
    fn finish(&mut self, bins: [ReliabilityBin; BINS]) {
        if self.lines == 0 {
            return;
        }
        let all = self.lines as f64;
        let mut gap = 0.0;
        self.bins = bins.to_vec();
        for bin in &mut self.bins {
            let rows = bin.right.rows as f64;
            if bin.right.rows > 0 {
                bin.confidence = Some(bin.sum / rows);
                gap += (bin.sum - bin.right.hits as f64).abs() / all;
            }
        }
        self.calibration_error = Some(gap);
        self.brier = Some(self.squares / all);
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::cli::prices::PriceArgs;
    use serde_json::json;

    fn hub() -> Arc<Hub> {
        let models = json!({"schema_version": 1, "models": [
            {"name": "big", "domain": "Text", "attributes": {"price": 10}, "aliases": ["large"]},
            {"name": "small", "domain": "Text", "attributes": {"price": 1}},
            {"name": "ears", "domain": "Audio"},
        ]});
        Arc::new(serde_json::from_value(models).unwrap())
    }

    fn rules() -> Rules {
        let hub = hub();
        let price = None;
        Rules {
            baseline: hub.find("big"),
            hub: Some(hub),
            prices: PriceArgs { price, per: 1000 }.prices().unwrap(),
            below: None,
            out: 0.95,
        }
    }

    /// A line whose decision is `best` with the probability `p`, and more keys.
    fn line(best: &str, p: f64, more: &Value) -> FeedbackLine {
        let domain = if best == "ears" { "audio" } else { "Text" };
        let mut all = json!({
            "kind": "hubrouter-feedback", "schema_version": 1,
            "ranked": [
                {"model": best, "domain": domain, "score": 1, "probability": p},
                {"model": "second", "domain": "Other", "score": 0, "probability": 0.0},
            ],
        });
        for (key, value) in more.as_object().unwrap() {
            all[key] = value.clone();
        }
        serde_json::from_value(all).unwrap()
    }

    fn report(lines: Vec<FeedbackLine>) -> FeedbackReport {
        let mut measure = Measure::new(rules(), Vec::new());
        lines.into_iter().for_each(|line| measure.add(line));
        measure.finish(SkippedLines::default()).0
    }

    fn share(share: Share) -> (usize, usize) {
        (share.hits, share.rows)
    }

    #[test]
    fn agreement_is_by_model_alias_and_domain() {
        let report = report(vec![
            line("big", 0.9, &json!({"used": "large"})),
            line("small", 0.9, &json!({"used": "big"})),
            line("ears", 0.9, &json!({"used": "big"})),
            line("ears", 0.9, &json!({"used": "second"})),
            line("ears", 0.9, &json!({"used": "nobody"})),
            line("ears", 0.9, &json!({"expected_model": "ears"})),
        ]);
        assert_eq!(share(report.used.model), (1, 5));
        assert_eq!(share(report.used.among), (2, 5));
        assert_eq!(share(report.used.domain), (2, 4));
        assert_eq!(share(report.expected.model), (1, 1));
        let first = &report.incumbents[0];
        assert_eq!((first.model.as_str(), first.lines), ("big", 3));
        assert_eq!(share(first.agreed), (1, 3));
        assert_eq!(first.instead.as_deref(), Some("ears"));
        assert_eq!(report.domains[0].domain, "Text");
        assert_eq!(share(report.domains[0].same_domain), (2, 3));
    }

    #[test]
    fn costs_are_of_the_same_lines() {
        let tokens = |used: Option<&str>| {
            let used = used.map_or(Value::Null, Value::from);
            json!({"used": used, "input_tokens": 600, "output_tokens": 400})
        };
        let report = report(vec![
            line("small", 0.5, &tokens(Some("big"))),
            line("small", 0.5, &tokens(None)),
            line("ears", 0.5, &tokens(Some("big"))),
            line("small", 0.5, &tokens(Some("ears"))),
            line("small", 0.5, &json!({"used": "big"})),
        ]);
        let cost = report.cost;
        assert_eq!((cost.lines, cost.tokens), (2, 2000));
        assert_eq!(
            (cost.used, cost.routed, cost.of_baseline),
            (Some(10.0), Some(2.0), Some(20.0))
        );
        let left = [
            cost.without_tokens,
            cost.without_price_of_routed,
            cost.without_price_of_used,
        ];
        assert_eq!(left, [1, 1, 1]);
    }

    /// 0.95 right and 0.95 wrong, 0.25 wrong: |1.9 - 1| / 3 + |0.25 - 0| / 3.
    #[test]
    fn calibration_by_hand() {
        let stated = json!({"expected_model": "small", "confidence": {"model": 0.95}});
        let report = report(vec![
            line("big", 0.95, &json!({"used": "big", "success": true})),
            line("big", 0.15, &stated),
            line("big", 0.25, &json!({"used": "big", "rating": 0.1})),
            line("big", 0.25, &json!({"used": "small", "success": true})),
            line("big", 0.25, &json!({"used": "big"})),
        ]);
        let found = report.calibration;
        assert_eq!((found.lines, found.with_confidence), (3, 1));
        let error = (0.9 + 0.25) / 3.0;
        assert!((found.calibration_error.unwrap() - error).abs() < 1e-6);
        let brier = (0.05_f64.powi(2) + 0.95_f64.powi(2) + 0.25_f64.powi(2)) / 3.0;
        assert!((found.brier.unwrap() - brier).abs() < 1e-6);
        assert_eq!(share(found.bins[9].right), (1, 2));
        assert_eq!(share(found.bins[2].right), (0, 1));
    }

    #[test]
    fn drift_is_by_day_and_reads_what_there_is() {
        let out = |far: f64| json!({"model": 0.5, "out_of_distribution": far});
        let report = report(vec![
            line("big", 0.5, &json!({"time": "2026-03-01T23:59:59Z"})),
            line(
                "big",
                0.5,
                &json!({"time": "2026-03-02T00:00:00Z", "confidence": out(0.99)}),
            ),
            line(
                "big",
                0.5,
                &json!({"time": "2026-03-02T10:00:00Z", "confidence": out(0.1)}),
            ),
            line(
                "big",
                0.5,
                &json!({
                    "time": "2026-03-02T11:00:00Z",
                    "abstained": {"reason": "out_of_distribution", "detail": "far"},
                }),
            ),
            line(
                "big",
                0.5,
                &json!({
                    "time": "2026-03-02T12:00:00Z", "ranked": [],
                    "no_answer": {"kind": "no_candidate"},
                }),
            ),
            line(
                "big",
                0.5,
                &json!({"time": "2026-03-02T13:00:00Z", "abstained": {"reason": "deadline"}}),
            ),
            line(
                "big",
                0.5,
                &json!({"time": "2026-03-02T14:00:00Z", "abstained": {"reason": "low_confidence"}}),
            ),
        ]);
        let [first, second] = &report.days[..] else {
            panic!("two days");
        };
        assert_eq!((first.day.as_str(), first.lines), ("2026-03-01", 1));
        assert_eq!(share(first.out_of_distribution), (0, 0), "not said");
        assert_eq!(share(second.out_of_distribution), (2, 3));
        assert_eq!(share(second.abstained), (3, 6));
        assert_eq!(share(second.no_answer), (1, 6));
        let found = &report.unrouted;
        assert_eq!((found.lines, found.kept), (4, 4));
        let reasons = (found.out_of_distribution, found.no_answer, found.abstained);
        assert_eq!(reasons, (2, 1, 1));
    }
}
