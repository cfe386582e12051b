//! Target distributions over the candidates of an example (carve.md section 5.1).

use crate::learn::method::domains::DomainGroups;
use crate::learn::settings::Leftover;

/// The mass of a target that goes to the gold's neighbours.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Softness {
    Hard,
    Soft {
        eps: f32,
        /// Most neighbours of a gold.
        k: usize,
        leftover: Leftover,
    },
}

/// A sparse distribution over models.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SoftTarget {
    /// The gold, then the neighbours that are candidates.
    pub(crate) ids: Vec<u32>,
    /// Sums to 1, or to 1 - eps if the leftover was dropped.
    pub(crate) mass: Vec<f32>,
}

/// The first `k` other models of the registry domain of `gold`.
pub(crate) fn neighbours(domains: &DomainGroups, gold: u32, k: usize) -> impl Iterator<Item = u32> {
    let peers = domains.peers(gold).iter().copied();
    peers.filter(move |id| *id != gold).take(k)
}

/// The target of an example. `candidates`: of a sampled set; `None` if all models are.
pub(crate) fn target(
    domains: &DomainGroups,
    gold: u32,
    candidates: Option<&[u32]>,
    softness: Softness,
) -> SoftTarget {
    let mut target = SoftTarget {
        ids: vec![gold],
        mass: vec![1.0],
    };
    let Softness::Soft { eps, k, leftover } = softness else {
        return target;
    };
    let present = |id: &u32| candidates.is_none_or(|candidates| candidates.contains(id));
    target
        .ids
        .extend(neighbours(domains, gold, k).filter(present));
    let count = target.ids.len() - 1;
    if count > 0 || leftover == Leftover::Drop {
        target.mass[0] = 1.0 - eps;
    }
    target.mass.resize(1 + count, eps / count as f32);
    target
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::learn::method::domains::hub_of;

    const SOFT: Softness = Softness::Soft {
        eps: 0.02,
        k: 10,
        leftover: Leftover::Drop,
    };
    const RENORMALISED: Softness = Softness::Soft {
        eps: 0.02,
        k: 10,
        leftover: Leftover::Renormalise,
    };

    /// The target over candidates in their order.
    fn dense(domains: &DomainGroups, candidates: &[u32], softness: Softness) -> Vec<f32> {
        let target = target(domains, candidates[0], Some(candidates), softness);
        let mass = |id: &u32| target.ids.iter().position(|known| known == id);
        candidates
            .iter()
            .map(|id| mass(id).map_or(0.0, |at| target.mass[at]))
            .collect()
    }

    /// The q of carve.md V9: gold 0; neighbours at 1 and 3, or none present.
    #[test]
    fn soft_targets_match_hand_values_v9() {
        let near = DomainGroups::new(&hub_of(["a", "a", "b", "a"]));
        let alone = DomainGroups::new(&hub_of(["a", "b", "b", "b", "a"]));
        let all = [0, 1, 2, 3];
        assert_eq!(dense(&near, &all, Softness::Hard), [1.0, 0.0, 0.0, 0.0]);
        assert_eq!(dense(&near, &all, SOFT), [0.98, 0.01, 0.0, 0.01]);
        assert_eq!(dense(&near, &all, RENORMALISED), [0.98, 0.01, 0.0, 0.01]);
        assert_eq!(dense(&near, &[0, 2, 3], SOFT), [0.98, 0.0, 0.02]);
        assert_eq!(dense(&alone, &all, SOFT), [0.98, 0.0, 0.0, 0.0]);
        assert_eq!(dense(&alone, &all, RENORMALISED), [1.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn neighbours_are_the_first_of_the_registry_domain() {
        let domains = DomainGroups::new(&hub_of(["A", "a", "b", " a ", "a", "a"]));
        assert_eq!(
            neighbours(&domains, 3, 3).collect::<Vec<_>>(),
            [0, 1, 4],
            "not the gold"
        );
        assert_eq!(neighbours(&domains, 2, 3).count(), 0);
        // All models are candidates.
        let target = target(&domains, 1, None, SOFT);
        assert_eq!(target.ids, [1, 0, 3, 4, 5]);
        assert_eq!(target.mass, [0.98, 0.005, 0.005, 0.005, 0.005]);
    }
}
