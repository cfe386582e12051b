//! A policy against the hub of a serving: masks, and the rows of few models.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use crate::error::{Error, Result, bail, error};
use crate::generation::NewModel;
use crate::hub::{Hub, ModelCard, ModelId, ModelMask};
use crate::route::chat::ChatNeeds;
use crate::route::confidence::AbstainLimits;
use crate::route::policy::deployment::Deployment;
use crate::route::policy::excluded::{Exclusions, in_words};
use crate::route::policy::facts::Facts;
use crate::route::policy::needs::{Abilities, Demands, NeedConstraints, PARTS};
use crate::route::policy::policy::MOST_FALLBACKS;
use crate::route::policy::trade::{Stated, pareto};
use crate::route::policy::{
    Constraint, Excluded, ModelPattern, ParetoPoint, Policy, PolicyRecord, Weighed,
};
use crate::serve::index::Index;
use crate::serve::{Serving, serial};
use crate::store::Store;

/// Names in an error about candidates.
const NAMED: usize = 5;

/// A policy, ready for requests.
pub(crate) struct CompiledPolicy {
    /// Of [`serial`]: another one each time that a policy is compiled.
    pub(crate) serial: u64,
    /// The serving that it was compiled against.
    pub(crate) base: Arc<Serving>,
    /// `base`, or that with the models that only cards describe.
    pub(crate) serving: Arc<Serving>,
    policy: Policy,
    entries: Vec<PolicyEntry>,
    /// Entries of each model, where candidates or a trade-off look for them.
    entries_of: HashMap<u32, Vec<usize>>,
    /// `constraint`, then the fallbacks.
    levels: Vec<PolicyLevel>,
    excluded: Vec<Excluded>,
    /// `None`: it never abstains.
    limits: Option<AbstainLimits>,
}

/// A model, or a deployment of one, that may answer at some level.
struct PolicyEntry {
    model: u32,
    deployment: Option<Arc<str>>,
    /// Bit n: it passes level n.
    passes: u16,
    abilities: Abilities,
    stated: Stated,
}

struct PolicyLevel {
    mask: ModelMask,
    models: usize,
    /// The rows of few models on the CPU.
    index: Option<Index>,
    /// The constraint, of a fallback.
    fallback: Option<Arc<str>>,
}

/// What a policy lets answer one request.
pub(crate) struct Admitted {
    /// Which of the constraint and the fallbacks admits some models, from 0.
    pub(crate) level: usize,
    /// The models that meet its needs; `None`: all of the level.
    mask: Option<ModelMask>,
    /// Models that may answer.
    models: usize,
    needs: Option<ChatNeeds>,
    excluded_by_needs: Vec<Excluded>,
}

impl CompiledPolicy {
    /// Errors: a candidate or a name that is allowed or denied is not in the hub; two deployments
    /// have the same name; a card's name is taken; the trade-off is not valid.
    pub(crate) fn new(policy: &Policy, base: &Arc<Serving>, store: &Store) -> Result<Self> {
        check(policy)?;
        let measured = base.confidences.as_ref();
        let measured = measured.map(|confidences| &confidences.calibration);
        let abstain = policy.abstain.as_ref();
        let limits = abstain.map(|rule| rule.limits(&base.id, measured));
        let limits = limits.transpose()?;
        let serving = match unknown_cards(policy, &base.hub)? {
            cards if cards.is_empty() => Arc::clone(base),
            cards => {
                let models: Vec<NewModel> = cards.iter().map(NewModel::from).collect();
                Arc::new(extended(base, &models, store)?)
            }
        };
        let hub = Arc::clone(&serving.hub);
        let subjects = subjects(policy, &hub)?;
        check_patterns(policy, &hub)?;
        let needs = match policy.chat_needs {
            true => Some(NeedConstraints::read()?),
            false => None,
        };
        let mut exclusions = parts(policy);
        let mut entries = Vec::new();
        let mut masks = vec![ModelMask::none(hub.len()); 1 + policy.fallbacks.len()];
        for (id, deployment) in subjects {
            let Some(model) = hub.get(ModelId(id)) else {
                continue;
            };
            let name = deployment.map(|deployment| &deployment.name);
            let facts = Facts {
                id,
                model,
                deployment: deployment.map(|d| (&*d.name, &d.attributes)),
            };
            let passes = passes(policy, &facts, &mut exclusions);
            for (level, mask) in masks.iter_mut().enumerate() {
                if passes & (1 << level) != 0 {
                    mask.insert(id);
                }
            }
            if passes != 0 {
                let needs = needs.as_ref();
                let prefer = policy.prefer.as_ref();
                entries.push(PolicyEntry {
                    model: id,
                    deployment: name.map(|name| name.as_str().into()),
                    passes,
                    abilities: needs
                        .map(|needs| needs.abilities(&facts))
                        .unwrap_or_default(),
                    stated: prefer
                        .map(|prefer| prefer.stated(&facts))
                        .unwrap_or_default(),
                });
            }
        }
        let mut entries_of: HashMap<u32, Vec<usize>> = HashMap::new();
        let looked_up = policy.candidates.is_some() || policy.prefer.is_some();
        for (place, entry) in entries.iter().enumerate().filter(|_| looked_up) {
            entries_of.entry(entry.model).or_default().push(place);
        }
        let constraints = std::iter::once(None).chain(policy.fallbacks.iter().map(Some));
        let levels = masks.into_iter().zip(constraints);
        let levels = levels
            .map(|(mask, fallback)| PolicyLevel::new(mask, fallback, &serving))
            .collect::<Result<_>>()?;
        Ok(Self {
            serial: serial(),
            base: Arc::clone(base),
            serving,
            policy: policy.clone(),
            entries,
            entries_of,
            levels,
            excluded: exclusions.finish(),
            limits,
        })
    }

    /// The constraint or fallback that lets some models answer a request without needs.
    fn level(&self) -> Option<&PolicyLevel> {
        self.levels.iter().find(|level| level.models > 0)
    }

    /// Models that may answer a request without needs.
    pub(crate) fn models(&self) -> usize {
        self.level().map_or(0, |level| level.models)
    }

    /// The fallback that lets them answer, if it is one.
    pub(crate) fn fallback(&self) -> Option<Arc<str>> {
        self.level()?.fallback.clone()
    }

    /// What was excluded for every request.
    pub(crate) fn excluded(&self) -> &[Excluded] {
        &self.excluded
    }

    /// When it abstains; `None`: never.
    pub(crate) fn limits(&self) -> Option<&AbstainLimits> {
        self.limits.as_ref()
    }

    /// The models that may answer a request with these needs, at the level `from` or a later one.
    ///
    /// Errors: none may.
    pub(crate) fn admit(&self, needs: Option<&ChatNeeds>, from: usize) -> Result<Admitted> {
        let Some(needs) = needs.filter(|_| self.policy.chat_needs) else {
            let mut levels = self.levels.iter().enumerate().skip(from);
            return match levels.find(|(_, level)| level.models > 0) {
                Some((level, found)) => Ok(Admitted {
                    level,
                    mask: None,
                    models: found.models,
                    needs: None,
                    excluded_by_needs: Vec::new(),
                }),
                None => Err(self.nobody(&self.excluded)),
            };
        };
        let demands = Demands::new(needs);
        let excluded_by_needs = self.excluded_by(&demands);
        for (level, found) in self.levels.iter().enumerate().skip(from) {
            let mut mask = ModelMask::none(self.serving.hub.len());
            for entry in &self.entries {
                if entry.passes & (1 << level) != 0 && demands.all(&entry.abilities) {
                    mask.insert(entry.model);
                }
            }
            let models = mask.count();
            if models > 0 {
                return Ok(Admitted {
                    level,
                    mask: (models < found.models).then_some(mask),
                    models,
                    needs: Some(needs.clone()),
                    excluded_by_needs,
                });
            }
        }
        Err(self.nobody(&self.refused(Some(needs)).excluded))
    }

    /// The record of a request with these needs for which nothing is eligible.
    pub(crate) fn refused(&self, needs: Option<&ChatNeeds>) -> PolicyRecord {
        let needs = needs.filter(|_| self.policy.chat_needs);
        let by_needs = needs.map(|needs| self.excluded_by(&Demands::new(needs)));
        let excluded = self.excluded.iter().cloned();
        PolicyRecord {
            eligible: 0,
            fallback: None,
            excluded: excluded.chain(by_needs.into_iter().flatten()).collect(),
            pareto: Vec::new(),
        }
    }

    /// Of what passes the first level, or any where nothing does, what the needs exclude.
    fn excluded_by(&self, demands: &Demands<'_>) -> Vec<Excluded> {
        let mut exclusions = Exclusions::default();
        (0..PARTS).for_each(|part| exclusions.part(demands.name(part)));
        let first = match self.levels.first() {
            Some(level) if level.models > 0 => 1,
            _ => u16::MAX,
        };
        for entry in self
            .entries
            .iter()
            .filter(|entry| entry.passes & first != 0)
        {
            for part in 0..PARTS {
                let met = demands.meets(part, &entry.abilities);
                if met != Some(true) {
                    exclusions.failed(part, met);
                }
            }
            exclusions.next();
        }
        exclusions.finish()
    }

    fn nobody(&self, excluded: &[Excluded]) -> Error {
        let why = match excluded.is_empty() {
            true => "the hub has no model that is not retired".to_owned(),
            false => format!("excluded by {}", in_words(excluded)),
        };
        error!(
            NoCandidate,
            "{}: no model may answer: {why}; loosen the policy, or give it a fallback",
            self.base.id
        )
    }

    /// The constraint and the fallbacks.
    pub(crate) fn levels(&self) -> usize {
        self.levels.len()
    }

    /// The rows of a level's models, if they have an index of their own.
    pub(crate) fn index(&self, level: usize) -> Option<&Index> {
        self.levels[level].index.as_ref()
    }

    /// The masks of requests of one level; empty if its index has no other models.
    pub(crate) fn masks<'c>(
        &'c self,
        level: usize,
        admitted: &[&'c Admitted],
    ) -> Vec<&'c ModelMask> {
        let level = &self.levels[level];
        let whole = level.index.is_some() || level.models == self.serving.index.eligible();
        if whole && admitted.iter().all(|admitted| admitted.mask.is_none()) {
            return Vec::new();
        }
        let mask = |admitted: &&'c Admitted| admitted.mask.as_ref().unwrap_or(&level.mask);
        admitted.iter().map(mask).collect()
    }

    /// The last fallback and the models that it lets answer, in the order of the trade-off, else of
    /// the candidates, else of ids: for an answer that may look at no score. `None` without a
    /// fallback, or if it admits no model.
    pub(crate) fn last_resort(&self, needs: Option<&ChatNeeds>) -> Option<(Admitted, Vec<u32>)> {
        let level = self.levels.len() - 1;
        let needs = needs.filter(|_| self.policy.chat_needs);
        let demands = needs.map(Demands::new);
        let able = self.entries.iter().filter(|entry| {
            let meets = |demands: &Demands<'_>| demands.all(&entry.abilities);
            entry.passes & (1 << level) != 0 && demands.as_ref().is_none_or(meets)
        });
        let mut able: Vec<&PolicyEntry> = able.collect();
        if let Some(prefer) = &self.policy.prefer {
            let key = |entry: &PolicyEntry| prefer.penalty(entry.stated).unwrap_or(f64::INFINITY);
            able.sort_by(|a, b| key(a).total_cmp(&key(b)));
        }
        let mut seen = HashSet::new();
        let models = able.iter().map(|entry| entry.model);
        let models: Vec<u32> = models.filter(|model| seen.insert(*model)).collect();
        if level == 0 || models.is_empty() {
            return None;
        }
        let excluded = demands.as_ref().map(|demands| self.excluded_by(demands));
        let admitted = Admitted {
            level,
            mask: None,
            models: models.len(),
            needs: needs.cloned(),
            excluded_by_needs: excluded.unwrap_or_default(),
        };
        Some((admitted, models))
    }

    /// Whether the needs of a chat request restrict who may answer it.
    pub(crate) fn looks_at_needs(&self) -> bool {
        self.policy.chat_needs
    }

    /// Whether all eligible models must be ranked to answer.
    pub(crate) fn ranks_all(&self) -> bool {
        self.policy.prefer.is_some()
    }

    /// The deployments of `model` that may answer, the cheapest in the sense of the trade-off
    /// first; empty without candidates.
    pub(crate) fn deployments(&self, model: u32, admitted: &Admitted) -> Vec<Arc<str>> {
        let mut able: Vec<&PolicyEntry> = self.able(model, admitted).collect();
        if let Some(prefer) = &self.policy.prefer {
            let key = |entry: &PolicyEntry| prefer.penalty(entry.stated).unwrap_or(f64::INFINITY);
            able.sort_by(|a, b| key(a).total_cmp(&key(b)));
        }
        let names = able.iter().filter_map(|entry| entry.deployment.as_ref());
        names.map(Arc::clone).collect()
    }

    /// The entries of `model` that may answer the request.
    fn able<'c>(
        &'c self,
        model: u32,
        admitted: &'c Admitted,
    ) -> impl Iterator<Item = &'c PolicyEntry> {
        let places = self.entries_of.get(&model).into_iter().flatten();
        let demands = admitted.needs.as_ref().map(Demands::new);
        let able = move |entry: &&PolicyEntry| {
            let meets = |demands: &Demands<'_>| demands.all(&entry.abilities);
            entry.passes & (1 << admitted.level) != 0 && demands.as_ref().is_none_or(meets)
        };
        places.map(|place| &self.entries[*place]).filter(able)
    }

    /// The models by utility, if the policy trades; `best`: by score.
    pub(crate) fn weigh(&self, best: &[(u32, f32)], admitted: &Admitted) -> Option<Vec<Weighed>> {
        let prefer = self.policy.prefer.as_ref()?;
        let cheapest = |model: u32| {
            let key = |entry: &&PolicyEntry| prefer.penalty(entry.stated).unwrap_or(f64::INFINITY);
            let able = self.able(model, admitted);
            let least = able.min_by(|a, b| key(a).total_cmp(&key(b)));
            least.map_or(Stated::default(), |entry| entry.stated)
        };
        let scores = best.iter().map(|(model, score)| (*score, cheapest(*model)));
        Some(prefer.weigh(scores))
    }

    /// The Pareto front of `weighed`.
    pub(crate) fn front(&self, weighed: &[Weighed], best: &[(u32, f32)]) -> Vec<ParetoPoint> {
        let point = |weighed: &Weighed| {
            let (model, _) = best.get(weighed.place)?;
            let model = self.serving.hub.get(ModelId(*model))?;
            Some(weighed.point(&model.name))
        };
        pareto(weighed).into_iter().filter_map(point).collect()
    }

    /// What the policy did for the request, but for the front.
    pub(crate) fn record(&self, admitted: &Admitted) -> PolicyRecord {
        let excluded = self.excluded.iter().chain(&admitted.excluded_by_needs);
        PolicyRecord {
            eligible: admitted.models,
            fallback: self.levels[admitted.level].fallback.clone(),
            excluded: excluded.cloned().collect(),
            pareto: Vec::new(),
        }
    }
}

impl PolicyLevel {
    fn new(mask: ModelMask, fallback: Option<&Constraint>, serving: &Serving) -> Result<Self> {
        let models = mask.count();
        // More rows than that cost as much to gather and to keep as they save.
        let few = models > 0 && models <= serving.hub.len() / 4;
        let index = match few {
            true => serving.gathered(&mask.ids())?,
            false => None,
        };
        Ok(Self {
            mask,
            models,
            index,
            fallback: fallback.map(|constraint| constraint.to_string().into()),
        })
    }
}

/// `base` with `models` as [`crate::Edit::add`] adds them; nothing is published.
fn extended(base: &Serving, models: &[NewModel], store: &Store) -> Result<Serving> {
    let mut contents = store.contents(&base.id)?;
    contents.grow(&base.encoder, models, &mut |_, _| {})?;
    base.extended(&contents)
}

fn check(policy: &Policy) -> Result<()> {
    if let Some(prefer) = &policy.prefer {
        prefer.check()?;
    }
    if policy.fallbacks.len() > MOST_FALLBACKS {
        bail!(
            InvalidRequest,
            "fallbacks: expected at most {MOST_FALLBACKS}, found {}",
            policy.fallbacks.len()
        );
    }
    if policy.candidates.as_ref().is_some_and(Vec::is_empty) {
        bail!(
            InvalidRequest,
            "candidates: expected at least one deployment, found none"
        );
    }
    Ok(())
}

/// Cards of models that the hub does not have, each once.
///
/// Errors: two cards of one name differ.
fn unknown_cards(policy: &Policy, hub: &Hub) -> Result<Vec<ModelCard>> {
    let mut cards: BTreeMap<&str, &ModelCard> = BTreeMap::new();
    for deployment in policy.candidates.iter().flatten() {
        let Some(card) = &deployment.card else {
            continue;
        };
        if hub.find(deployment.model_name()).is_some() {
            continue;
        }
        let before = cards.insert(&card.model_name, card);
        if before.is_some_and(|before| before != card) {
            bail!(
                InvalidRequest,
                "candidates: {:?} has two cards that differ",
                card.model_name
            );
        }
    }
    Ok(cards.into_values().cloned().collect())
}

/// The models to look at: those of the hub that are not retired, or the candidates in their order.
///
/// Errors: a candidate's model is not in the hub; two have the same name.
fn subjects<'p>(policy: &'p Policy, hub: &Hub) -> Result<Vec<(u32, Option<&'p Deployment>)>> {
    let Some(candidates) = &policy.candidates else {
        let active = hub.iter().filter(|(_, model)| !model.retired);
        return Ok(active.map(|(id, _)| (id.0, None)).collect());
    };
    let (mut found, mut wrong, mut names) = (Vec::new(), Vec::new(), HashSet::new());
    for deployment in candidates {
        if !names.insert(&deployment.name) {
            bail!(
                InvalidRequest,
                "candidates: expected different names, found {:?} twice",
                deployment.name
            );
        }
        match hub.resolve(deployment.model_name()) {
            Ok(id) => found.push((id.0, Some(deployment))),
            Err(error) => wrong.push(error.to_string()),
        }
    }
    if !wrong.is_empty() {
        let more = match wrong.len().saturating_sub(NAMED) {
            0 => String::new(),
            more => format!("; and {more} more"),
        };
        wrong.truncate(NAMED);
        bail!(
            InvalidRequest,
            "candidates: {}{more}; name the model with \"model\", or describe it with a \"card\"",
            wrong.join("; ")
        );
    }
    Ok(found)
}

/// Errors: a name that is allowed or denied is neither a model's nor a deployment's.
fn check_patterns(policy: &Policy, hub: &Hub) -> Result<()> {
    let names = policy.candidates.iter().flatten();
    let names: Vec<&str> = names.map(|deployment| &*deployment.name).collect();
    for (place, patterns) in [("allow", &policy.allow), ("deny", &policy.deny)] {
        for pattern in patterns {
            let checked = pattern.check(hub, &names);
            checked.map_err(|error| error.at(place))?;
        }
    }
    Ok(())
}

/// The parts that every model is held against: retired, allow, each deny, each condition.
fn parts(policy: &Policy) -> Exclusions {
    let mut exclusions = Exclusions::default();
    exclusions.part("retired");
    exclusions.part("allow");
    for pattern in &policy.deny {
        exclusions.part(format!("deny {pattern}"));
    }
    for condition in policy.constraint.iter().flat_map(Constraint::conjuncts) {
        exclusions.part(condition.to_string());
    }
    exclusions
}

/// The levels that the model passes, as bits; counts what excludes it from the first.
fn passes(policy: &Policy, facts: &Facts<'_>, exclusions: &mut Exclusions) -> u16 {
    let deployment = facts.deployment.map(|(name, _)| name);
    let fits = |pattern: &ModelPattern| pattern.fits(facts.id, facts.model, deployment);
    // The parts in the order of `parts`.
    let mut part = 0;
    let mut hold = |holds: Option<bool>| {
        if holds != Some(true) {
            exclusions.failed(part, holds);
        }
        part += 1;
        holds == Some(true)
    };
    let mut may = hold(Some(!facts.model.retired));
    may &= hold(Some(
        policy.allow.is_empty() || policy.allow.iter().any(fits),
    ));
    for pattern in &policy.deny {
        may &= hold(Some(!fits(pattern)));
    }
    let mut first = may;
    for condition in policy.constraint.iter().flat_map(Constraint::conjuncts) {
        first &= hold(condition.holds(facts));
    }
    exclusions.next();
    let mut passes = u16::from(first);
    for (place, fallback) in policy.fallbacks.iter().enumerate() {
        if may && fallback.holds(facts) == Some(true) {
            passes |= 2 << place;
        }
    }
    passes
}
