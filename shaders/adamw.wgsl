// adamw: theta = theta (1 - rate decay) - rate (m / c1) / (sqrt(v / c2) + eps), m and v being
// moving means of g and g^2
//
//   shapes   theta, grad, m, v: [N]   ids: [R], rows of a matrix WIDTH wide at OFFSET
//            partials: [spans * PARTS]   norm: [1]
//   layout   flat f32; a span is LEN elements from OFFSET on, or, where WIDTH is not 0, those of
//            the rows in ids
//   entries  squares   PARTS workgroups        partials   =   (overwrites), sums of a span's grad^2
//            length    one workgroup           norm       =   (overwrites), sqrt of their sum
//            step      256 elements in a turn  theta, m, v   =   (in place); grad   =   (zeroed)
//            shrink    256 elements in a turn  theta   =   (in place), multiplied by keep
//   order    lanes in steps of WG, then a tree; partials in steps of WG, then a tree
//   scratch  partial of shared/reduce.wgsl: written before it is read
//   uses     shared/reduce.wgsl

const PARTS = 64u;
const B1 = 0.9;
const B2 = 0.999;
const EPS = 1e-8;

struct Dims {
    offset: u32,
    len: u32,
    width: u32,  // of a listed row; 0: nothing is listed
    stride: u32, // elements between turns of a lane
    part: u32,   // first of the span's partials
    rate: f32,
    keep: f32,
    c1: f32,
    c2: f32,
    limit: f32,  // largest norm of the gradients; 0 leaves them as they are
}

@group(0) @binding(0) var<uniform> dims: Dims;
@group(0) @binding(1) var<storage, read_write> grad: array<f32>; // [N]
@group(0) @binding(2) var<storage, read> ids: array<u32>; // [R], read where rows are listed
@group(0) @binding(3) var<storage, read_write> theta: array<f32>; // [N]
@group(0) @binding(4) var<storage, read_write> m: array<f32>; // [N]
@group(0) @binding(5) var<storage, read_write> v: array<f32>; // [N]
@group(0) @binding(6) var<storage, read_write> partials: array<f32>; // [spans * PARTS]
@group(0) @binding(7) var<storage, read_write> norm: array<f32>; // [1]

// Where element n of the span is.
fn place(n: u32) -> u32 {
    if dims.width == 0u { return dims.offset + n; }
    return dims.offset + ids[n / dims.width] * dims.width + n % dims.width;
}

@compute @workgroup_size(WG)
fn squares(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    var sum = 0.0;
    for (var n = group.x * WG + lane; n < dims.len; n += PARTS * WG) {
        let g = grad[place(n)];
        sum += g * g;
    }
    let total = sum_lanes(lane, sum);
    if lane == 0u { partials[dims.part + group.x] = total; }
}

@compute @workgroup_size(WG)
fn length(@builtin(local_invocation_index) lane: u32) {
    var sum = 0.0;
    for (var n = lane; n < dims.len; n += WG) { sum += partials[n]; }
    let total = sum_lanes(lane, sum);
    if lane == 0u { norm[0] = sqrt(total); }
}

@compute @workgroup_size(WG)
fn step(@builtin(global_invocation_id) id: vec3<u32>) {
    var scale = 1.0;
    if dims.limit > 0.0 { scale = min(1.0, dims.limit / (norm[0] + 1e-6)); }
    for (var n = id.x; n < dims.len; n += dims.stride) {
        let i = place(n);
        let g = scale * grad[i];
        grad[i] = 0.0;
        m[i] = B1 * m[i] + (1.0 - B1) * g;
        v[i] = B2 * v[i] + (1.0 - B2) * g * g;
        theta[i] =
            theta[i] * dims.keep - dims.rate * (m[i] / dims.c1) / (sqrt(v[i] / dims.c2) + EPS);
    }
}

@compute @workgroup_size(WG)
fn shrink(@builtin(global_invocation_id) id: vec3<u32>) {
    for (var n = id.x; n < dims.len; n += dims.stride) { theta[place(n)] *= dims.keep; }
}
