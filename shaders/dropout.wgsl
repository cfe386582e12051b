// dropout: y = x / (1 - p) where an element is kept and 0 where it is dropped; dx += the same of dy
//
//   shapes   x, y, dx, dy: [T, F]   keys: [T]
//   layout   row-major f32, contiguous
//   entries  forward    one lane per element   y    =   (overwrites)
//            backward   one lane per element   dx   +=   (adds)
//   order    none; an element is dropped by a hash of its token's key, of salt and of its column
//            alone
//   uses     nothing; no workgroup memory

override WG: u32 = 64u; // lanes per workgroup

// salt: the use's, so that tokens have another mask in each. threshold: hashes below it are
// dropped. scale: 1 / (1 - p).
struct Dims { columns: u32, salt: u32, threshold: u32, scale: f32 }

@group(0) @binding(0) var<uniform> dims: Dims;
@group(0) @binding(1) var<storage, read> keys: array<u32>; // [T]
@group(0) @binding(2) var<storage, read> x: array<f32>; // [T, F]
@group(0) @binding(3) var<storage, read_write> y: array<f32>; // [T, F]
@group(0) @binding(4) var<storage, read> dy: array<f32>; // [T, F]
@group(0) @binding(5) var<storage, read_write> dx: array<f32>; // [T, F]

// PCG-RXS-M-XS, 32 bits (Jarzynski and Olano, "Hash Functions for GPU Rendering", 2020).
fn hash(value: u32) -> u32 {
    let state = value * 747796405u + 2891336453u;
    let word = ((state >> ((state >> 28u) + 4u)) ^ state) * 277803737u;
    return (word >> 22u) ^ word;
}

// What an element is multiplied by.
fn factor(token: u32, column: u32) -> f32 {
    if hash(hash(keys[token] ^ dims.salt) + column) < dims.threshold { return 0.0; }
    return dims.scale;
}

@compute @workgroup_size(WG)
fn forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let c = group.x * WG + lane;
    if c >= dims.columns { return; }
    let n = group.y * dims.columns + c;
    y[n] = x[n] * factor(group.y, c);
}

@compute @workgroup_size(WG)
fn backward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let c = group.x * WG + lane;
    if c >= dims.columns { return; }
    let n = group.y * dims.columns + c;
    dx[n] += dy[n] * factor(group.y, c);
}
