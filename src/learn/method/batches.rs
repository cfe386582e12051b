//! The order in which an epoch serves its rows (carve.md section 4.5).

use std::collections::HashMap;

use crate::learn::method::draws::Draws;

/// The micro-batches of one epoch, one permutation cut into pieces of `size`.
pub(crate) fn shuffled(rows: usize, size: usize, draws: &mut Draws) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..rows).collect();
    draws.shuffle(&mut order);
    order.chunks(size).map(<[usize]>::to_vec).collect()
}

/// The micro-batches of one epoch, each of one domain; `domains`: normalised, one a row.
///
/// The domains take turns, in an order drawn once, with `size` rows at a time; the last batch of
/// a domain may be shorter.
pub(crate) fn by_domain(domains: &[&str], size: usize, draws: &mut Draws) -> Vec<Vec<usize>> {
    let mut places = HashMap::new();
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for (row, domain) in domains.iter().enumerate() {
        let place = *places.entry(domain).or_insert(groups.len());
        if place == groups.len() {
            groups.push(Vec::new());
        }
        groups[place].push(row);
    }
    for group in &mut groups {
        draws.shuffle(group);
    }
    draws.shuffle(&mut groups);
    let turns = groups.iter().map(|group| group.len().div_ceil(size)).max();
    (0..turns.unwrap_or(0))
        .flat_map(|turn| {
            let batches = groups
                .iter()
                .filter_map(move |group| group.chunks(size).nth(turn));
            batches.map(<[usize]>::to_vec)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::learn::method::draws::Stream;

    fn epoch(epoch: u64) -> Draws {
        Draws::new(0, Stream::Order, &[1, epoch])
    }

    fn is_permutation(batches: &[Vec<usize>], rows: usize) {
        let mut all = batches.concat();
        all.sort_unstable();
        assert!(all.into_iter().eq(0..rows), "every row once");
    }

    #[test]
    fn every_row_is_served_once() {
        for rows in [0, 1, 7, 32, 65] {
            let batches = shuffled(rows, 32, &mut epoch(0));
            is_permutation(&batches, rows);
            assert_eq!(batches.len(), rows.div_ceil(32));
        }
        assert_ne!(
            shuffled(65, 32, &mut epoch(0)),
            shuffled(65, 32, &mut epoch(1))
        );
    }

    /// carve.md V18: groups of 40, 17, 5, 1 with B = 16 make 7 batches.
    #[test]
    fn batches_hold_one_domain_v18() {
        let domains: Vec<&str> = [("a", 40), ("b", 17), ("c", 5), ("d", 1)]
            .into_iter()
            .flat_map(|(domain, rows)| [domain].repeat(rows))
            .collect();
        let batches = by_domain(&domains, 16, &mut epoch(0));
        is_permutation(&batches, 63);
        assert_eq!(batches.len(), 7);
        let served: Vec<&str> = batches
            .iter()
            .map(|batch| {
                assert!(batch.iter().all(|row| domains[*row] == domains[batch[0]]));
                domains[batch[0]]
            })
            .collect();
        let mut turn = served[..4].to_vec();
        turn.sort_unstable();
        assert_eq!(turn, ["a", "b", "c", "d"]);
        assert_eq!(served[6], "a");
        assert_ne!(batches, by_domain(&domains, 16, &mut epoch(1)));
        assert!(by_domain(&[], 16, &mut epoch(0)).is_empty());
    }
}
