//! Initial parameters: Xavier, cards, domains (carve.md section 3).

use crate::learn::method::draws::Draws;
use crate::num::to_f32;

/// sqrt(6 / (fan_in + fan_out))
pub(crate) fn xavier_bound(fan_in: usize, fan_out: usize) -> f32 {
    to_f32((6.0 / (fan_in + fan_out) as f64).sqrt())
}

/// `rows` times `columns` draws, Xavier uniform.
pub(crate) fn xavier(rows: usize, columns: usize, draws: &mut Draws) -> Vec<f32> {
    let bound = xavier_bound(rows, columns);
    (0..rows * columns).map(|_| draws.within(bound)).collect()
}

/// The mean of the old rows of `domain`, or of all rows if there is none.
///
/// `rows`: [M_old, D]; `domains`: of each old row.
pub(crate) fn domain_row(rows: &[f32], width: usize, domains: &[&str], domain: &str) -> Vec<f32> {
    let all = rows.chunks_exact(width).zip(domains);
    let own: Vec<&[f32]> = all
        .filter(|(_, of)| **of == domain)
        .map(|(row, _)| row)
        .collect();
    if own.is_empty() {
        mean(rows.chunks_exact(width), width)
    } else {
        mean(own.into_iter(), width)
    }
}

/// Old rows that a new one is mixed from, at most.
pub(crate) const MIXED: usize = 30;
/// The cosine from which on cards are similar.
const NEAR: f32 = 0.2;
/// Divisor of the cosines.
const MIX_TAU: f64 = 0.07;

/// The sum of old rows weighted by softmax(cosine / 0.07) over the `most` largest `cosines`; among
/// equals lower ids come first. `None` if no card is similar.
///
/// `rows`: [M_old, D]; `cosines`: of each old row's card with the new one's.
pub(crate) fn mixed_row(
    rows: &[f32],
    width: usize,
    cosines: &[f32],
    most: usize,
) -> Option<Vec<f32>> {
    let mut order: Vec<usize> = (0..cosines.len()).collect();
    order.sort_by(|a, b| cosines[*b].total_cmp(&cosines[*a]).then(a.cmp(b)));
    order.truncate(most);
    let best = cosines[*order.first()?];
    if best < NEAR {
        return None;
    }
    let weight = |id: &usize| (f64::from(cosines[*id] - best) / MIX_TAU).exp();
    let total: f64 = order.iter().map(weight).sum();
    let mut sums = vec![0.0f64; width];
    for id in &order {
        let share = weight(id) / total;
        let row = &rows[id * width..][..width];
        sums.iter_mut()
            .zip(row)
            .for_each(|(sum, value)| *sum += share * f64::from(*value));
    }
    Some(sums.into_iter().map(to_f32).collect())
}

fn mean<'r>(rows: impl Iterator<Item = &'r [f32]>, width: usize) -> Vec<f32> {
    let mut sums = vec![0.0f64; width];
    let mut count = 0u32;
    for row in rows {
        sums.iter_mut()
            .zip(row)
            .for_each(|(sum, value)| *sum += f64::from(*value));
        count += 1;
    }
    sums.into_iter()
        .map(|sum| to_f32(sum / f64::from(count.max(1))))
        .collect()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::generation::{NewModel, rows::card_row};
    use crate::hub::Model;
    use crate::learn::method::draws::Stream;
    use crate::ops::testing::assert_close;

    #[test]
    fn xavier_bounds_match_hand_values_v4() {
        for (fan_in, fan_out, want) in [
            (4096, 1024, 0.034_232_7),
            (384, 384, 0.088_388_3),
            (1024, 852, 0.056_553_5),
            (384, 852, 0.069_673_3),
            (1024, 359, 0.065_866_5),
            (384, 359, 0.089_863_1),
        ] {
            assert!((xavier_bound(fan_in, fan_out) - want).abs() < 1e-6);
        }
        let drawn = xavier(10, 20, &mut Draws::new(1, Stream::Init, &[1]));
        let bound = xavier_bound(10, 20);
        assert!(drawn.iter().all(|v| v.abs() <= bound));
        assert!(drawn.iter().any(|v| v.abs() > 0.9 * bound));
    }

    #[test]
    fn new_rows_match_hand_values_v5() {
        let w = [1.0, 0.5, -0.5, 2.0, 0.25, -1.0];
        let model = NewModel::new(Model::new("m", "d"), Vec::new());
        let one = card_row(&model, &w, &[vec![1.0, 1.0]], 3).unwrap();
        assert_close(
            "V5 card",
            &one,
            &[0.666_666_7, 0.666_666_7, -0.333_333_3],
            1e-6,
        );
        let two = card_row(&model, &w, &[vec![1.0, 1.0], vec![2.0, -1.0]], 3).unwrap();
        assert_close(
            "V5 cards",
            &two,
            &[0.988_073_7, -0.137_725_3, 0.068_862_7],
            1e-6,
        );

        let rows = [1.0, 0.0, 0.0, 0.0, 2.0, 0.0, 0.0, 0.0, 1.0];
        let domains = ["a", "a", "b"];
        assert_eq!(domain_row(&rows, 3, &domains, "a"), [0.5, 1.0, 0.0]);
        let all = domain_row(&rows, 3, &domains, "c");
        assert_close("V5 domain", &all, &[1.0 / 3.0, 2.0 / 3.0, 1.0 / 3.0], 1e-6);
    }

    #[test]
    fn card_mix_matches_hand_values_v5() {
        let rows = [1.0, 0.0, 0.0, 0.0, 2.0, 0.0, 0.0, 0.0, 1.0];
        let cosines = [0.9, 0.8, 0.1];
        let all = mixed_row(&rows, 3, &cosines, MIXED).unwrap();
        let want = [0.806_671_6, 0.386_639_3, 0.000_008_8];
        assert_close("V5 card_mix", &all, &want, 1e-6);
        let two = mixed_row(&rows, 3, &cosines, 2).unwrap();
        assert_close("V5 top 2", &two, &[0.806_678_6, 0.386_642_7, 0.0], 1e-6);
        // Of equals the lower id; 0.2 is near enough, less is not.
        let one = mixed_row(&rows, 3, &[0.2, 0.2, 0.1], 1).unwrap();
        assert_eq!(one, [1.0, 0.0, 0.0]);
        assert_eq!(mixed_row(&rows, 3, &[0.19, 0.1, -1.0], 1), None);
        assert_eq!(mixed_row(&[], 3, &[], 1), None);
    }
}
