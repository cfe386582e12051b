//! Places for labels, so that no label lies on another one.

/// Height of a label in pixels, with the gap below it.
pub(super) const LINE: f64 = 12.0;

/// Width of a bold character in pixels, about.
const CHARACTER: f64 = 8.0;

/// Places within `low..=high` that are at least `apart` apart: the nearest to the wanted ones
/// (least squares), in the same order. Where there is no room, they are spaced evenly.
pub(super) fn spread(wanted: &[f64], apart: f64, (low, high): (f64, f64)) -> Vec<f64> {
    let gaps = wanted.len().saturating_sub(1) as f64;
    let apart = apart.min((high - low) / gaps.max(1.0));
    let mut order: Vec<usize> = (0..wanted.len()).collect();
    order.sort_by(|a, b| wanted[*a].total_cmp(&wanted[*b]));
    // Less `rank * apart` each, the places only have to ascend: neighbours that do not share a
    // mean.
    let mut blocks: Vec<(f64, usize)> = Vec::new();
    for (rank, place) in order.iter().enumerate() {
        let mut block = (wanted[*place] - rank as f64 * apart, 1);
        while let Some((mean, count)) = blocks.pop_if(|(mean, _)| *mean > block.0) {
            let all = count + block.1;
            let sum = mean * count as f64 + block.0 * block.1 as f64;
            block = (sum / all as f64, all);
        }
        blocks.push(block);
    }
    let last = (high - gaps * apart).max(low);
    let means = blocks
        .iter()
        .flat_map(|(mean, count)| std::iter::repeat_n(mean.clamp(low, last), *count));
    let mut places = wanted.to_vec();
    for ((rank, place), mean) in order.iter().enumerate().zip(means) {
        places[*place] = mean + rank as f64 * apart;
    }
    places
}

/// A column from 0 and a height for each label at the end of a line. One column where all labels
/// fit into `low..=high`, else as many as it takes.
pub(super) fn columns(wanted: &[f64], (low, high): (f64, f64)) -> Vec<(usize, f64)> {
    let most = (((high - low) / LINE).floor() + 1.0).max(1.0);
    let mut count = 1;
    while wanted.len() as f64 > most * count as f64 {
        count += 1;
    }
    let mut order: Vec<usize> = (0..wanted.len()).collect();
    order.sort_by(|a, b| wanted[*a].total_cmp(&wanted[*b]));
    let mut places = vec![(0, 0.0); wanted.len()];
    for column in 0..count {
        let own: Vec<usize> = order.iter().copied().skip(column).step_by(count).collect();
        let heights: Vec<f64> = own.iter().map(|place| wanted[*place]).collect();
        for (place, y) in own.iter().zip(spread(&heights, LINE, (low, high))) {
            places[*place] = (column, y);
        }
    }
    places
}

/// The top left and the bottom right corner of a rectangle.
type Corners = ((f64, f64), (f64, f64));

/// A rectangle by its middle and its size.
#[derive(Clone, Copy)]
struct Area {
    middle: (f64, f64),
    size: (f64, f64),
}

impl Area {
    fn meets(self, other: Self) -> bool {
        let far = |a: f64, b: f64| (a - b).abs() * 2.0;
        far(self.middle.0, other.middle.0) < self.size.0 + other.size.0
            && far(self.middle.1, other.middle.1) < self.size.1 + other.size.1
    }

    fn is_within(self, (from, to): Corners) -> bool {
        let inside = |at: f64, size: f64, low: f64, high: f64| {
            at - size / 2.0 >= low && at + size / 2.0 <= high
        };
        inside(self.middle.0, self.size.0, from.0, to.0)
            && inside(self.middle.1, self.size.1, from.1, to.1)
    }
}

/// The middle of a label near each of `marks`, inside `bounds`: to the right of its mark
/// where that is free, else further and further around it. A label lies on no mark of `radius` and
/// on no other label.
pub(super) fn around(
    marks: &[(f64, f64)],
    texts: &[String],
    radius: f64,
    bounds: Corners,
) -> Vec<(f64, f64)> {
    const TURNS: [f64; 8] = [0.0, -0.25, 0.25, -0.5, 0.5, -0.75, 0.75, 1.0];
    let disc = |middle: &(f64, f64)| Area {
        middle: *middle,
        size: (2.0 * radius, 2.0 * radius),
    };
    let mut taken: Vec<Area> = marks.iter().map(disc).collect();
    let mut places = Vec::with_capacity(marks.len());
    for ((x, y), text) in marks.iter().zip(texts) {
        let label = (CHARACTER * text.chars().count() as f64, LINE);
        let distances = (0..24).map(|ring| radius + 8.0 + 7.0 * f64::from(ring));
        let mut tries = distances.flat_map(|far| {
            TURNS.map(|turn| {
                let (sin, cos) = (turn * std::f64::consts::PI).sin_cos();
                let middle = (x + far * cos, y + far * sin);
                Area {
                    middle,
                    size: label,
                }
            })
        });
        let free = |area: &Area| area.is_within(bounds) && !taken.iter().any(|t| area.meets(*t));
        let found = tries.find(free).unwrap_or(Area {
            middle: (*x, *y),
            size: label,
        });
        taken.push(found);
        places.push(found.middle);
    }
    places
}

/// `text`, cut with an ellipsis where it would be wider than `pixels` at 12 pixels a line.
pub(super) fn fitted(text: &str, pixels: f64) -> String {
    let fits = |count: usize| count as f64 * 6.4 <= pixels;
    let count = text.chars().count();
    if fits(count) {
        return text.to_owned();
    }
    let kept = (0..count).rev().find(|kept| fits(kept + 1)).unwrap_or(0);
    text.chars().take(kept).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_keep_their_distance_and_their_order() {
        let everywhere = (-100.0, 100.0);
        let places = spread(&[50.0, 10.0, 12.0, 11.0], 10.0, everywhere);
        let mut sorted = places.clone();
        sorted.sort_by(f64::total_cmp);
        let far = |pair: &[f64]| pair[1] - pair[0] >= 10.0 - 1e-9;
        assert!(sorted.windows(2).all(far), "{places:?}");
        assert!(places[1] < places[3] && places[3] < places[2] && places[2] < places[0]);
        // Three around 11, and one that nothing pushes.
        for (found, want) in places.iter().zip([50.0, 1.0, 21.0, 11.0]) {
            assert!((found - want).abs() < 1e-9, "{places:?}");
        }
        // Inside a range they move up, and where there is no room they come closer.
        assert_eq!(spread(&[9.0, 9.5], 4.0, (0.0, 10.0)), [6.0, 10.0]);
        assert_eq!(spread(&[5.0; 3], 40.0, (0.0, 10.0)), [0.0, 5.0, 10.0]);
    }

    #[test]
    fn labels_that_do_not_fit_get_a_second_column() {
        let few = columns(&[5.0, 5.0], (0.0, 2.0 * LINE));
        assert!(few.iter().all(|(column, _)| *column == 0));
        let many = columns(&[5.0; 5], (0.0, 2.0 * LINE));
        assert_eq!(many.iter().filter(|(column, _)| *column == 1).count(), 2);
        for (place, a) in many.iter().enumerate() {
            for b in &many[..place] {
                assert!(a.0 != b.0 || (a.1 - b.1).abs() >= LINE - 1e-9, "{many:?}");
            }
        }
    }

    /// Twelve points in one place, and one beside the edge.
    #[test]
    fn labels_around_points_meet_nothing() {
        let mut marks = vec![(100.0, 100.0); 12];
        marks.push((199.0, 3.0));
        let texts: Vec<String> = ('a'..='m').map(String::from).collect();
        let places = around(&marks, &texts, 4.5, ((20.0, 0.0), (200.0, 200.0)));
        let area = |middle: &(f64, f64), size| Area {
            middle: *middle,
            size,
        };
        for (place, at) in places.iter().enumerate() {
            let own = area(at, (CHARACTER, LINE));
            assert!(own.is_within(((20.0, 0.0), (200.0, 200.0))), "{at:?}");
            let others = places[..place].iter();
            let mut others = others.map(|other| area(other, (CHARACTER, LINE)));
            assert!(!others.any(|other| own.meets(other)), "{places:?}");
            assert!(!marks.iter().any(|mark| own.meets(area(mark, (9.0, 9.0)))));
        }
    }

    #[test]
    fn long_names_are_cut() {
        assert_eq!(fitted("short", 64.0), "short");
        assert_eq!(fitted("0123456789ab", 64.0), "012345678…");
    }
}
