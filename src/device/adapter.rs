//! Adapters as `doctor` shows them.
#![cfg_attr(
    not(feature = "cli"),
    expect(unreachable_pub, reason = "`diagnostics` publishes them")
)]

/// An adapter as `doctor` shows it.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct AdapterReport {
    /// As the driver calls it; part of it is a device choice.
    pub name: String,
    /// `discrete GPU`, `integrated GPU`, `virtual GPU`, `software` or `other`.
    pub kind: &'static str,
    /// False for a software adapter, which `auto` never takes.
    pub hardware: bool,
    /// `Vulkan`, `Metal` or `Dx12`.
    pub backend: String,
    /// Driver and its version.
    pub driver: String,
    /// Limits that the kernels and tables meet.
    pub limits: LimitsReport,
    /// Features that this crate uses when they are there.
    pub features: Vec<&'static str>,
}

/// The limits of an adapter that decide what fits.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct LimitsReport {
    /// Bytes of one storage binding: the largest table.
    pub max_storage_buffer_binding_size: u64,
    /// Bytes of one buffer.
    pub max_buffer_size: u64,
    /// Storage buffers of one kernel.
    pub max_storage_buffers_per_shader_stage: u32,
    /// Lanes of one workgroup.
    pub max_compute_invocations_per_workgroup: u32,
    /// Bytes of workgroup memory.
    pub max_compute_workgroup_storage_size: u32,
    /// Workgroups along one axis of a grid.
    pub max_compute_workgroups_per_dimension: u32,
    /// Smallest and largest subgroup.
    pub subgroup_size: [u32; 2],
}
