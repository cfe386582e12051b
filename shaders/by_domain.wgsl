// by_domain: s[b,m] += strength domains[b,own[m]] for eligible models: adds the score of its domain
// to each model's score
//
//   shapes   s: [B, M]   domains: [B, N]   own: [M], a model's domain
//   layout   row-major f32, contiguous
//   entries  forward    one lane per model of a prompt   s   +=   (adds)
//   order    none
//   uses     nothing; no workgroup memory

override WG: u32 = 64u; // lanes per workgroup
const LOWEST = -3.0e38;

struct Dims { models: u32, domains: u32, strength: f32 }

@group(0) @binding(0) var<uniform> dims: Dims;
@group(0) @binding(1) var<storage, read> domains: array<f32>; // [B, N]
@group(0) @binding(2) var<storage, read> own: array<u32>; // [M]
@group(0) @binding(3) var<storage, read_write> s: array<f32>; // [B, M]

@compute @workgroup_size(WG)
fn forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let m = group.x * WG + lane;
    if m >= dims.models { return; }
    let place = group.y * dims.models + m;
    if s[place] > LOWEST { s[place] += dims.strength * domains[group.y * dims.domains + own[m]]; }
}
