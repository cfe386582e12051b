//! Matrix units (tensor cores), which wgpu calls cooperative matrices.

use crate::device::Matrices;

/// Subgroups of a workgroup of `linear_matrix`.
const SUBGROUPS: u32 = 4;

/// The lanes of [`SUBGROUPS`] for which its vectors fit a lane's own memory.
const LANES: std::ops::RangeInclusive<u32> = 16..=128;

/// What a device needs to compile `linear_matrix`.
const FEATURES: wgpu::Features = wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX
    .union(wgpu::Features::SHADER_F16)
    .union(wgpu::Features::SUBGROUP);

/// The units of `adapter` that multiply f16 and sum in f32, if it has such.
pub(super) fn of(adapter: &wgpu::Adapter) -> Option<Matrices> {
    use wgpu::CooperativeScalarType::{F16, F32};
    let info = adapter.get_info();
    let lanes = SUBGROUPS * info.subgroup_min_size;
    // The kernel counts on four subgroups, whatever the driver.
    let steady = info.subgroup_min_size == info.subgroup_max_size && LANES.contains(&lanes);
    if !steady || !adapter.features().contains(FEATURES) {
        return None;
    }
    let known = adapter.cooperative_matrix_properties();
    let has = |side: u32| {
        known.iter().any(|known| {
            [known.m_size, known.n_size, known.k_size] == [side; 3]
                && (known.ab_type, known.cr_type) == (F16, F32)
        })
    };
    let side = [16, 8].into_iter().find(|side| has(*side))?;
    Some(Matrices {
        side: side as usize,
        lanes: lanes as usize,
    })
}

/// The features to ask a device for, and wgpu's token for them.
pub(super) fn wanted(units: Option<Matrices>) -> (wgpu::Features, wgpu::ExperimentalFeatures) {
    match units {
        Some(_) => (FEATURES, agreed()),
        None => (
            wgpu::Features::empty(),
            wgpu::ExperimentalFeatures::disabled(),
        ),
    }
}

#[expect(unsafe_code, reason = "wgpu's cooperative matrices are experimental")]
fn agreed() -> wgpu::ExperimentalFeatures {
    // SAFETY: wgpu knows of one fault: workgroup memory is not declared as shared in modules with
    // matrices (wgpu#8805). Only `linear_matrix` is such a module, and it is taken where it is asked
    // for by name, or where `doctor --tune` has found its sums to be right and always the same.
    unsafe { wgpu::ExperimentalFeatures::enabled() }
}
