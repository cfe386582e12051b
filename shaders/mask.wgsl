// mask: s[b,m] = the lowest score where bit m of row b of the mask is not set
//
//   shapes   s: [B, M]   mask: [B, ceil(M / 32)], bit m % 32 of word m / 32
//   layout   row-major, contiguous
//   entries  forward    one lane per model of a prompt   s   =   (overwrites those without a bit)
//   order    none
//   uses     nothing; no workgroup memory

override WG: u32 = 64u; // lanes per workgroup
const LOWEST = -3.0e38;

struct Dims { models: u32, words: u32 }

@group(0) @binding(0) var<uniform> dims: Dims;
@group(0) @binding(1) var<storage, read> mask: array<u32>; // [B, words]
@group(0) @binding(2) var<storage, read_write> s: array<f32>; // [B, M]

@compute @workgroup_size(WG)
fn forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let m = group.x * WG + lane;
    if m >= dims.models { return; }
    let word = mask[group.y * dims.words + m / 32u];
    if ((word >> (m % 32u)) & 1u) == 0u { s[group.y * dims.models + m] = LOWEST; }
}
