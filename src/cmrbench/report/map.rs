//! The registry as a trained router sees it: a mark for each model, near those it is taken for.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::figures::{Figure, FigureKind, HALO, WIDTH};
use super::svg::{Anchor, Svg};
use super::{chosen, quoted, short};
use crate::cmrbench::{Group, MethodOutcome, RegistryMap, Results, SeedOutcome, Tables};
use crate::hub::{domain_key, parent_group};

/// Domains that are named.
const NAMED: usize = 12;

/// Hues of parent groups, the largest first; what is beyond has no hue.
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

/// A name with how many models have it.
type Counted<'c> = (&'c str, usize);

/// The map that is shown.
struct RegistryPlot<'r> {
    method: &'r MethodOutcome,
    seed: u64,
    places: Vec<ModelPoint<'r>>,
}

/// The first method that has a map: those that are looked at closely, then the others.
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
            places: places.collect(),
        }
    }

    /// Names with how many models have them, most first, of equals the first by name.
    fn counted<'p>(&'p self, of: impl Fn(&'p ModelPoint<'r>) -> &'p str) -> Vec<Counted<'p>> {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for place in &self.places {
            *counts.entry(of(place)).or_insert(0) += 1;
        }
        let mut counts: Vec<Counted<'_>> = counts.into_iter().collect();
        counts.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
        counts
    }

    /// The model of `domain` that is nearest to all others of it.
    fn medoid(&self, domain: &str) -> Option<(f64, f64)> {
        let of = self.places.iter().filter(|place| place.domain == domain);
        let of: Vec<(f64, f64)> = of.map(|place| place.at).collect();
        let far = |a: &(f64, f64)| of.iter().map(|b| (a.0 - b.0).hypot(a.1 - b.1)).sum::<f64>();
        of.iter().copied().min_by(|a, b| far(a).total_cmp(&far(b)))
    }
}

pub(super) fn csv(results: &Results) -> String {
    let mut text = "method,seed,id,model,domain,group,first_experience,x,y\n".to_owned();
    let tables = Tables::new(&results.plan.data, results.plan.steps());
    let Some(found) = find(results) else {
        return text;
    };
    let map = RegistryPlot::new(results, &tables, found);
    for (id, place) in map.places.iter().enumerate() {
        text += &format!(
            "{},{},{id},{},{},{},E{},{},{}\n",
            map.method.info.name,
            map.seed,
            quoted(place.model),
            quoted(place.domain),
            quoted(&place.group),
            place.experience + 1,
            place.at.0,
            place.at.1
        );
    }
    text
}

pub(super) fn section(results: &Results) -> String {
    let mut text = String::from("\n## Map of the registry\n\n");
    text += &match find(results) {
        None => "There is none: rows of models are noted when a trained method's last step is done, and no such cell here was run by this version or a later one.\n".to_owned(),
        Some((method, run, map)) => format!(
            "Rows of E after the last step, each of length 1, on their first two principal axes, which have {:.0} % and {:.0} % of the variance: {}, seed {}, {} models. Models that lie apart are told apart; models on one heap may still differ along other axes. Hue: parent group; shade: domain; shape: the experience that taught the model first. The {NAMED} largest domains are numbered where their medoids are.\n",
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
    let map = RegistryPlot::new(results, &tables, found);
    let title = format!(
        "Map of the registry: {}, seed {}",
        map.method.info.label, map.seed
    );
    vec![Figure {
        name: "map".to_owned(),
        kind: FigureKind::Map,
        svg: draw(results, &map, &title),
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

fn draw(results: &Results, map: &RegistryPlot<'_>, title: &str) -> String {
    let (domains, groups) = (map.counted(|p| p.domain), map.counted(|p| &p.group));
    let named: Vec<&str> = domains.iter().take(NAMED).map(|(name, _)| *name).collect();
    let experiences: BTreeSet<usize> = map.places.iter().map(|p| p.experience).collect();
    let (left, right, top, bottom) = (8.0, WIDTH - 8.0, 8.0, WIDTH - 8.0);
    let legends = groups.len().min(HUES.len()) + named.len() + 1;
    let mut svg = Svg::new(WIDTH, bottom + 26.0 + 16.0 * legends as f64, title);
    svg.line(
        &[
            (left, top),
            (right, top),
            (right, bottom),
            (left, bottom),
            (left, top),
        ],
        "#ddd",
        "",
    );
    // One scale for both axes: distances mean the same in every direction.
    let range = |of: fn(&ModelPoint<'_>) -> f64| {
        let values = map.places.iter().map(of);
        values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), x| {
            (f64::min(low, x), f64::max(high, x))
        })
    };
    let (across, up) = (range(|p| p.at.0), range(|p| p.at.1));
    let span = (across.1 - across.0).max(up.1 - up.0).max(1e-9);
    let scale = (right - left - 16.0) / span;
    let middle = |range: (f64, f64)| (range.0 + range.1) / 2.0;
    let on = |(x, y): (f64, f64)| {
        (
            (left + right) / 2.0 + (x - middle(across)) * scale,
            (top + bottom) / 2.0 - (y - middle(up)) * scale,
        )
    };
    let hue = |group: &str| {
        let place = groups.iter().position(|(name, _)| *name == group)?;
        HUES.get(place).copied()
    };
    // One path for each domain and experience: a mark is little more than its place. The rarest
    // domains come last, on top.
    for (domain, _) in &domains {
        let group = parent_group(&domain_key(domain)).to_owned();
        let same = |name: &&str| parent_group(&domain_key(name)) == group;
        let peers: Vec<&str> = domains.iter().map(|(name, _)| *name).filter(same).collect();
        let place = peers.iter().position(|name| name == domain).unwrap_or(0);
        let fill = colour(hue(&group), place, peers.len());
        for experience in &experiences {
            let marks: String = map
                .places
                .iter()
                .filter(|p| p.domain == *domain && p.experience == *experience)
                .map(|p| {
                    let (x, y) = on(p.at);
                    format!("M{x:.1} {y:.1}{}", shape(*experience))
                })
                .collect();
            if !marks.is_empty() {
                svg.path(&marks, &fill);
            }
        }
    }
    let style = format!("font-size=\"13\" font-weight=\"bold\" {HALO}");
    // Every domain that is named has a model, hence a medoid; its number stands above it.
    let medoids = named.iter().filter_map(|domain| map.medoid(domain));
    let wanted: Vec<(f64, f64)> = medoids.map(on).collect();
    for (place, (x, y)) in apart(&wanted).into_iter().enumerate() {
        svg.text(
            (x, y - 4.0),
            Anchor::Middle,
            &style,
            &(place + 1).to_string(),
        );
    }
    legend(
        results,
        &mut svg,
        bottom + 22.0,
        (&groups, &domains, &experiences),
        hue,
    );
    svg.finish()
}

/// The places, each moved down until no label lies on one before it.
fn apart(wanted: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let mut order: Vec<usize> = (0..wanted.len()).collect();
    order.sort_by(|a, b| wanted[*a].1.total_cmp(&wanted[*b].1));
    let mut places = wanted.to_vec();
    for (rank, this) in order.iter().enumerate() {
        while let Some(other) = order[..rank].iter().find(|other| {
            let (a, b) = (places[*this], places[**other]);
            // As a label is put below another: with (a.1 - b.1).abs() it may be a rounding error too
            // near, for ever.
            (a.0 - b.0).abs() < 16.0 && a.1 < b.1 + 12.0 && b.1 < a.1 + 12.0
        }) {
            places[*this].1 = places[*other].1 + 12.0;
        }
    }
    places
}

/// What shapes, hues and numbers mean.
fn legend(
    results: &Results,
    svg: &mut Svg,
    mut y: f64,
    (groups, domains, experiences): (&[Counted<'_>], &[Counted<'_>], &BTreeSet<usize>),
    hue: impl Fn(&str) -> Option<f64>,
) {
    let mut x = 14.0;
    for experience in experiences {
        svg.path(
            &format!("M{x:.1} {:.1}{}", y - 4.0, shape(*experience)),
            "#222",
        );
        let label = results.plan.data.experiences.get(*experience);
        let label = label.map_or_else(String::new, |experience| experience.label.to_string());
        svg.text((x + 8.0, y), Anchor::Start, "", &label);
        x += 24.0 + 7.5 * label.chars().count() as f64;
    }
    for (group, models) in groups.iter().take(HUES.len()) {
        y += 16.0;
        svg.rect((8.0, y - 10.0), (12.0, 12.0), &colour(hue(group), 1, 4));
        svg.text((26.0, y), Anchor::Start, "", group);
        svg.text(
            (WIDTH - 4.0, y),
            Anchor::End,
            "",
            &format!("{models} models"),
        );
    }
    for (place, (domain, models)) in domains.iter().take(NAMED).enumerate() {
        y += 16.0;
        let bold = "font-weight=\"bold\"";
        svg.text((20.0, y), Anchor::End, bold, &(place + 1).to_string());
        svg.text((26.0, y), Anchor::Start, "", &short(domain));
        svg.text(
            (WIDTH - 4.0, y),
            Anchor::End,
            "",
            &format!("{models} models"),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_do_not_lie_on_each_other() {
        let places = apart(&[(0.0, 5.0), (3.0, 0.0), (40.0, 1.0), (1.0, 4.0)]);
        assert_eq!(places, [(0.0, 24.0), (3.0, 0.0), (40.0, 1.0), (1.0, 12.0)]);
        // 4.4 + 12 - 4.4 is less than 12: it took no end.
        assert_eq!(apart(&[(0.0, 4.4); 2])[1].1, 16.4);
    }
}
