// log_sum_exp: out[b,n] = ln of the sum over members m of group n of exp(s[b,m])
//
//   shapes   s: [B, M]   members: [L], ids of group 0, then 1, ...   offsets: [N + 1]   out: [B, N]
//   layout   row-major f32, contiguous
//   entries  forward    one workgroup per (group, prompt)   out   =   (overwrites)
//   order    members in steps of WG, then a tree; the largest is subtracted first
//   scratch  partial of shared/reduce.wgsl: written before it is read
//   uses     shared/reduce.wgsl

const LOWEST = -3.0e38;

struct Dims { models: u32, groups: u32 }

@group(0) @binding(0) var<uniform> dims: Dims;
@group(0) @binding(1) var<storage, read> s: array<f32>; // [B, M]
@group(0) @binding(2) var<storage, read> members: array<u32>; // [L]
@group(0) @binding(3) var<storage, read> offsets: array<u32>; // [N + 1]
@group(0) @binding(4) var<storage, read_write> out: array<f32>; // [B, N]

@compute @workgroup_size(WG)
fn forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let begin = offsets[group.x];
    let end = offsets[group.x + 1u];
    let row = group.y * dims.models;
    var largest = LOWEST;
    for (var i = begin + lane; i < end; i += WG) { largest = max(largest, s[row + members[i]]); }
    let peak = max_lanes(lane, largest);
    var sum = 0.0;
    for (var i = begin + lane; i < end; i += WG) { sum += exp(s[row + members[i]] - peak); }
    let total = sum_lanes(lane, sum);
    if lane == 0u { out[group.y * dims.groups + group.x] = peak + log(total); }
}
