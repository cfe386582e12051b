// gelu: y = x Phi(x), Phi(x) = (1 + erf(x / sqrt 2)) / 2; dx = dy (Phi(x) + x phi(x)), phi(x) =
// exp(-x^2 / 2) / sqrt(2 pi)
//
//   shapes   x, y, dy, dx: [T, F]
//   layout   row-major f32, contiguous
//   entries  forward    one lane per element   y    =   (overwrites)
//            backward   one lane per element   dx   =   (overwrites)
//   order    none
//   uses     math: below

override WG: u32 = 64u; // lanes per workgroup

struct Dims { columns: u32 }

@group(0) @binding(0) var<uniform> dims: Dims;
@group(0) @binding(1) var<storage, read> x: array<f32>; // [T, F]
@group(0) @binding(2) var<storage, read_write> y: array<f32>; // [T, F]
@group(0) @binding(3) var<storage, read> dy: array<f32>; // [T, F]
@group(0) @binding(4) var<storage, read_write> dx: array<f32>; // [T, F]

@compute @workgroup_size(WG)
fn forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let c = group.x * WG + lane;
    if c >= dims.columns { return; }
    let n = group.y * dims.columns + c;
    let value = x[n];
    y[n] = value * below(value);
}

@compute @workgroup_size(WG)
fn backward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let c = group.x * WG + lane;
    if c >= dims.columns { return; }
    let n = group.y * dims.columns + c;
    let value = x[n];
    let density = 0.39894228 * exp(-0.5 * value * value);
    dx[n] = dy[n] * (below(value) + value * density);
}
