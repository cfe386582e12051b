// layer_norm: y = (v - mean(v)) / sqrt(var(v) + eps) * gamma + beta, each row; v = x or x + branch
//
//   dx = (a - mean(a) - n mean(a n)) / sqrt(var(v) + eps), a = dy * gamma, n = (v - mean(v)) /
//      sqrt(var(v) + eps)
//
//   shapes   x, branch, y, dy, dx: [T, H]   gamma, beta: [H]
//            x of the forward entries begins at element `first`
//   layout   row-major f32, contiguous
//   entries  forward          one workgroup per row   v = x            y    =   (overwrites)
//            forward_branch   one workgroup per row   v = x + branch   y    =   (overwrites)
//            backward         one workgroup per row   v = x            dx   =   (overwrites)
//            backward_branch  one workgroup per row   v = x + branch   dx   =   (overwrites)
//   order    lanes in steps of WG, then a tree; mean first, then the squares about it, then a and a
//            n
//   scratch  partial of shared/reduce.wgsl: written before it is read
//   uses     shared/reduce.wgsl

struct Dims { hidden: u32, eps: f32, first: u32 }

@group(0) @binding(0) var<uniform> dims: Dims;
@group(0) @binding(1) var<storage, read> x: array<f32>; // [T, H]
@group(0) @binding(2) var<storage, read> branch: array<f32>; // [T, H]
@group(0) @binding(3) var<storage, read> gamma: array<f32>; // [H]
@group(0) @binding(4) var<storage, read> beta: array<f32>; // [H]
@group(0) @binding(5) var<storage, read_write> y: array<f32>; // [T, H]
@group(0) @binding(6) var<storage, read> dy: array<f32>; // [T, H]
@group(0) @binding(7) var<storage, read_write> dx: array<f32>; // [T, H]

// y holds v when this is called; each lane reads only what it wrote.
fn normalize_row(row: u32, lane: u32) {
    var sum = 0.0;
    for (var c = lane; c < dims.hidden; c += WG) { sum += y[row + c]; }
    let mean = sum_lanes(lane, sum) / f32(dims.hidden);
    var squares = 0.0;
    for (var c = lane; c < dims.hidden; c += WG) {
        let d = y[row + c] - mean;
        squares += d * d;
    }
    let variance = sum_lanes(lane, squares) / f32(dims.hidden);
    let scale = 1.0 / sqrt(variance + dims.eps);
    for (var c = lane; c < dims.hidden; c += WG) {
        y[row + c] = (y[row + c] - mean) * scale * gamma[c] + beta[c];
    }
}

@compute @workgroup_size(WG)
fn forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = group.x * dims.hidden;
    for (var c = lane; c < dims.hidden; c += WG) { y[row + c] = x[dims.first + row + c]; }
    normalize_row(row, lane);
}

@compute @workgroup_size(WG)
fn forward_branch(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = group.x * dims.hidden;
    for (var c = lane; c < dims.hidden; c += WG) {
        y[row + c] = x[dims.first + row + c] + branch[row + c];
    }
    normalize_row(row, lane);
}

// dx holds v when this is called; each lane reads only what it wrote.
fn differentiate_row(row: u32, lane: u32) {
    var sum = 0.0;
    for (var c = lane; c < dims.hidden; c += WG) { sum += dx[row + c]; }
    let mean = sum_lanes(lane, sum) / f32(dims.hidden);
    var squares = 0.0;
    for (var c = lane; c < dims.hidden; c += WG) {
        let d = dx[row + c] - mean;
        squares += d * d;
    }
    let variance = sum_lanes(lane, squares) / f32(dims.hidden);
    let scale = 1.0 / sqrt(variance + dims.eps);
    var own = 0.0;
    var own_along = 0.0;
    for (var c = lane; c < dims.hidden; c += WG) {
        let a = dy[row + c] * gamma[c];
        own += a;
        own_along += a * (dx[row + c] - mean) * scale;
    }
    let level = sum_lanes(lane, own) / f32(dims.hidden);
    let along = sum_lanes(lane, own_along) / f32(dims.hidden);
    for (var c = lane; c < dims.hidden; c += WG) {
        let n = (dx[row + c] - mean) * scale;
        dx[row + c] = (dy[row + c] * gamma[c] - level - n * along) * scale;
    }
}

@compute @workgroup_size(WG)
fn backward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = group.x * dims.hidden;
    for (var c = lane; c < dims.hidden; c += WG) { dx[row + c] = x[row + c]; }
    differentiate_row(row, lane);
}

@compute @workgroup_size(WG)
fn backward_branch(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = group.x * dims.hidden;
    for (var c = lane; c < dims.hidden; c += WG) { dx[row + c] = x[row + c] + branch[row + c]; }
    differentiate_row(row, lane);
}
