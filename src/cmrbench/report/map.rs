//! The map of the registry: a mark for each model, near the models that it is mistaken for.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::figures::{Figure, FigureKind, HALO, WIDTH};
use super::labels::{around, fitted};
use super::svg::{Anchor, Svg};
use super::{CsvText, chosen, fields, short};
use crate::cmrbench::{Group, MethodOutcome, RegistryMap, Results, SeedOutcome, Tables};
use crate::error::Result;
use crate::hub::{domain_key, parent_group};

/// Domains that are named.
const NAMED: usize = 12;

/// Hues of parent groups, the largest first. Further groups are grey.
const HUES: [f64; 8] = [212.0, 24.0, 135.0, 285.0, 345.0, 48.0, 185.0, 95.0];

/// A model on the map.
struct ModelPoint<'r> {
    model: &'r str,
    domain: &'r str,
    group: String,
    /// From 0.
    experience: usize,
    at: (f64, f64),
}

/// A name with its number of models.
type Counted<'c> = (&'c str, usize);

/// The map that is shown.
struct RegistryPlot<'r> {
    method: &'r MethodOutcome,
    seed: u64,
    points: Vec<ModelPoint<'r>>,
}

/// The first method with a map: those of the detailed figures, then the others.
fn find(results: &Results) -> Option<(&MethodOutcome, &SeedOutcome, &RegistryMap)> {
    let others = results.methods.iter().rev();
    let main = others.filter(|method| method.info.group != Group::Ablation);
    let with_map = |method| {
        let method: &MethodOutcome = method;
        let mut runs = method.runs.iter();
        runs.find_map(|run| Some((method, run, run.map.as_ref()?)))
    };
    chosen(results).into_iter().chain(main).find_map(with_map)
}

impl<'r> RegistryPlot<'r> {
    fn new(
        results: &Results,
        tables: &'r Tables,
        found: (&'r MethodOutcome, &SeedOutcome, &'r RegistryMap),
    ) -> Self {
        let (method, run, map) = found;
        let mut experiences: HashMap<&str, usize> = HashMap::new();
        for (place, experience) in results.plan.data.experiences.iter().enumerate() {
            for row in &experience.train {
                experiences.entry(row.model_name.as_str()).or_insert(place);
            }
        }
        let coordinates = map.x.iter().zip(&map.y);
        let places = map.models.iter().zip(coordinates).map(|(model, (x, y))| {
            let domain = tables.domain(model).unwrap_or("unknown");
            ModelPoint {
                model,
                domain,
                group: parent_group(&domain_key(domain)).to_owned(),
                experience: experiences.get(model.as_str()).copied().unwrap_or(0),
                at: (*x, *y),
            }
        });
        Self {
            method,
            seed: run.seed,
            points: places.collect(),
        }
    }

    /// Names with their numbers of models, most first; ties go by name.
    fn counted<'p>(&'p self, of: impl Fn(&'p ModelPoint<'r>) -> &'p str) -> Vec<Counted<'p>> {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for place in &self.points {
            *counts.entry(of(place)).or_insert(0) += 1;
        }
        let mut counts: Vec<Counted<'_>> = counts.into_iter().collect();
        counts.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
        counts
    }

    /// The model of `domain` that is nearest to all others of it.
    fn medoid(&self, domain: &str) -> Option<(f64, f64)> {
        let of = self.points.iter().filter(|place| place.domain == domain);
        let of: Vec<(f64, f64)> = of.map(|place| place.at).collect();
        let far = |a: &(f64, f64)| of.iter().map(|b| (a.0 - b.0).hypot(a.1 - b.1)).sum::<f64>();
        of.iter().copied().min_by(|a, b| far(a).total_cmp(&far(b)))
    }
}

pub(super) fn csv(results: &Results) -> Result<String> {
    let mut csv = CsvText::new("method,seed,id,model,domain,group,first_experience,x,y")?;
    let tables = Tables::new(&results.plan.data, results.plan.steps());
    if let Some(found) = find(results) {
        let plot = RegistryPlot::new(results, &tables, found);
        for (id, point) in plot.points.iter().enumerate() {
            let first = format!("E{}", point.experience + 1);
            csv.row(fields![
                plot.method.info.name,
                plot.seed,
                id,
                point.model,
                point.domain,
                point.group,
                first,
                point.at.0,
                point.at.1
            ])?;
        }
    }
    csv.finish()
}

pub(super) fn section(results: &Results) -> String {
    let mut text = String::from("\n## Map of the registry\n\n");
    text += &match find(results) {
        None => "There is no map: the rows of models are noted when the last step of a trained \
         method is done, and no such cell here was run by this version or a later \
         one.\n"
            .to_owned(),
        Some((method, run, map)) => format!(
            "The embeddings of all models after the last step, scaled to length 1, on their first \
             two principal axes, which hold {:.0} % and {:.0} % of the variance: {}, seed {}, {} \
             models. Models that lie apart are told apart; models on one heap may still differ \
             along other axes. Hue: parent group; shade: domain; shape: the experience that the \
             model came with. Numbers stand beside the medoids of the {NAMED} largest domains.\n",
            100.0 * map.explained[0],
            100.0 * map.explained[1],
            method.info.label,
            run.seed,
            map.models.len()
        ),
    };
    text
}

pub(super) fn figures(results: &Results) -> Vec<Figure> {
    let tables = Tables::new(&results.plan.data, results.plan.steps());
    let Some(found) = find(results) else {
        return Vec::new();
    };
    let plot = RegistryPlot::new(results, &tables, found);
    let title = format!(
        "Map of the registry: {}, seed {}",
        plot.method.info.label, plot.seed
    );
    vec![Figure {
        name: "map".to_owned(),
        kind: FigureKind::Map,
        svg: draw(results, &plot, &title),
        title,
    }]
}

/// Outlines of marks around (0, 0), one an experience, over and over.
fn shape(experience: usize) -> &'static str {
    const SHAPES: [&str; 4] = [
        "m-2.2 0a2.2 2.2 0 1 0 4.4 0a2.2 2.2 0 1 0-4.4 0z",
        "m-2-2h4v4h-4z",
        "m0-2.7l2.6 4.7h-5.2z",
        "m0-3l3 3l-3 3l-3-3z",
    ];
    SHAPES[experience % SHAPES.len()]
}

/// Hue by group, shade by place among the group's domains: the larger the darker.
fn colour(hue: Option<f64>, place: usize, of: usize) -> String {
    let part = place as f64 / (of.max(2) - 1) as f64;
    let (saturation, lightness) = (if hue.is_some() { 65.0 } else { 0.0 }, 26.0 + 40.0 * part);
    format!(
        "hsl({:.0},{saturation:.0}%,{lightness:.0}%)",
        hue.unwrap_or(0.0)
    )
}

fn draw(results: &Results, plot: &RegistryPlot<'_>, title: &str) -> String {
    let (domains, groups) = (plot.counted(|p| p.domain), plot.counted(|p| &p.group));
    let experiences: BTreeSet<usize> = plot.points.iter().map(|p| p.experience).collect();
    let keys = Keys {
        domains: &domains,
        groups: &groups,
        experiences: &experiences,
    };
    let lines = experiences.len().div_ceil(EXPERIENCES_A_LINE);
    let lines = lines + groups.len().min(HUES.len()) + domains.len().min(NAMED);
    let (near, far) = (8.0, WIDTH - 8.0);
    let mut svg = Svg::new(WIDTH, far + 26.0 + 16.0 * lines as f64, title);
    let frame = [
        (near, near),
        (far, near),
        (far, far),
        (near, far),
        (near, near),
    ];
    svg.line(&frame, "#ddd", "");
    let on = on_plane(plot, far - near - 16.0);
    models(&mut svg, plot, &keys, &on);
    // Every domain that is named has a model, and so a medoid.
    let named = domains.iter().take(NAMED);
    let medoids: Vec<(f64, f64)> = named
        .filter_map(|(domain, _)| plot.medoid(domain))
        .map(&on)
        .collect();
    let numbers: Vec<String> = (1..=medoids.len()).map(|n| n.to_string()).collect();
    let style = format!("font-size=\"13\" font-weight=\"bold\" {HALO}");
    let places = around(&medoids, &numbers, 0.0, ((near, near), (far, far)));
    for ((x, y), number) in places.iter().zip(&numbers) {
        svg.text((*x, y + 4.0), Anchor::Middle, &style, number);
    }
    legend(results, &mut svg, far + 22.0, &keys);
    svg.finish()
}

/// The pixel of a place. Both axes have one scale, so that a distance means the same in every
/// direction; `size`: pixels of the longer one.
fn on_plane(plot: &RegistryPlot<'_>, size: f64) -> impl Fn((f64, f64)) -> (f64, f64) + use<> {
    let range = |of: fn(&ModelPoint<'_>) -> f64| {
        let values = plot.points.iter().map(of);
        values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), x| {
            (f64::min(low, x), f64::max(high, x))
        })
    };
    let (across, up) = (range(|p| p.at.0), range(|p| p.at.1));
    let span = (across.1 - across.0).max(up.1 - up.0).max(1e-9);
    let scale = size / span;
    let middle = |range: (f64, f64)| (range.0 + range.1) / 2.0;
    let centre = (middle(across), middle(up));
    move |(x, y)| {
        let from_centre = ((x - centre.0) * scale, (y - centre.1) * scale);
        (WIDTH / 2.0 + from_centre.0, WIDTH / 2.0 - from_centre.1)
    }
}

/// One path for each domain and experience: a mark takes little more than its place. The rarest
/// domains come last, on top.
fn models(
    svg: &mut Svg,
    plot: &RegistryPlot<'_>,
    keys: &Keys<'_>,
    on: impl Fn((f64, f64)) -> (f64, f64),
) {
    for (domain, _) in keys.domains {
        let group = parent_group(&domain_key(domain)).to_owned();
        let same = |name: &&str| parent_group(&domain_key(name)) == group;
        let peers = keys.domains.iter().map(|(name, _)| *name).filter(same);
        let peers: Vec<&str> = peers.collect();
        let place = peers.iter().position(|name| name == domain).unwrap_or(0);
        let fill = colour(keys.hue(&group), place, peers.len());
        for experience in keys.experiences {
            let own = |p: &&ModelPoint<'_>| p.domain == *domain && p.experience == *experience;
            let mark = |p: &ModelPoint<'_>| {
                let (x, y) = on(p.at);
                format!("M{x:.1} {y:.1}{}", shape(*experience))
            };
            let marks: String = plot.points.iter().filter(own).map(mark).collect();
            if !marks.is_empty() {
                svg.path(&marks, &fill);
            }
        }
    }
}

/// The meaning of a map's marks.
struct Keys<'k> {
    /// The most frequent first.
    domains: &'k [Counted<'k>],
    groups: &'k [Counted<'k>],
    experiences: &'k BTreeSet<usize>,
}

impl Keys<'_> {
    fn hue(&self, group: &str) -> Option<f64> {
        let place = self.groups.iter().position(|(name, _)| *name == group)?;
        HUES.get(place).copied()
    }
}

/// Experiences in one line of the legend.
const EXPERIENCES_A_LINE: usize = 8;

/// Shapes with their experiences, hues with their groups, numbers with their domains.
fn legend(results: &Results, svg: &mut Svg, top: f64, keys: &Keys<'_>) {
    let mut y = top;
    for (place, experience) in keys.experiences.iter().enumerate() {
        let column = place % EXPERIENCES_A_LINE;
        if place > 0 && column == 0 {
            y += 16.0;
        }
        let x = 14.0 + 42.0 * column as f64;
        let mark = format!("M{x:.1} {:.1}{}", y - 4.0, shape(*experience));
        svg.path(&mark, "#222");
        let label = results.plan.data.experiences.get(*experience);
        let label = label.map_or("", |experience| experience.label.as_str());
        svg.text((x + 8.0, y), Anchor::Start, "", label);
    }
    let line = |svg: &mut Svg, y: f64, name: &str, models: &usize| {
        let name = fitted(name, WIDTH - 120.0);
        svg.text((26.0, y), Anchor::Start, "", &name);
        let models = format!("{models} models");
        svg.text((WIDTH - 4.0, y), Anchor::End, "", &models);
    };
    for (group, models) in keys.groups.iter().take(HUES.len()) {
        y += 16.0;
        svg.rect(
            (8.0, y - 10.0),
            (12.0, 12.0),
            &colour(keys.hue(group), 1, 4),
        );
        line(svg, y, group, models);
    }
    for (place, (domain, models)) in keys.domains.iter().take(NAMED).enumerate() {
        y += 16.0;
        let bold = "font-weight=\"bold\"";
        svg.text((20.0, y), Anchor::End, bold, &(place + 1).to_string());
        line(svg, y, &short(domain), models);
    }
}
