// anchor: pulls towards the parent's parameters; rows of E by direction or by value, W by value;
// any of them with Fisher weights
//
//   shapes   theta, grad: [N], with a matrix of rows x WIDTH at an offset, and W of w_rows x
//            w_width   reference: [rows, width]   ids: [touched]   losses: [items]
//            w_reference: [w_rows, w_width]   w_losses: [w_rows]
//            weighted: len elements at an offset, as many of reference and weights behind skip;
//            losses: [rows], one for each WIDTH of them
//   layout   flat f32; rows consecutive
//   entries  each adds (+=) strength times the gradient to grad and overwrites (=) losses
//            pull      one workgroup per row of E or W    1 - cos(e, r), or |e - r|^2
//            weighted  one workgroup per WIDTH elements   sum f (e - r)^2
//   order    lanes in steps of WG, then a tree
//   scratch  partial of shared/reduce.wgsl: written before it is read
//   uses     shared/reduce.wgsl

struct Dims {
    offset: u32,
    rows: u32,
    width: u32,
    listed: u32,
    stride: u32,
    strength: f32,
    skip: u32,
    len: u32,
    by_value: u32, // 0: rows of E by direction
    w_offset: u32,
    w_rows: u32,
    w_width: u32,
    w_strength: f32,
}

@group(0) @binding(0) var<uniform> dims: Dims;
@group(0) @binding(1) var<storage, read> theta: array<f32>; // [N]
@group(0) @binding(2) var<storage, read> reference: array<f32>; // [rows, width]
@group(0) @binding(3) var<storage, read> ids: array<u32>; // [touched], read where listed
@group(0) @binding(4) var<storage, read_write> grad: array<f32>; // [N]
@group(0) @binding(5) var<storage, read_write> losses: array<f32>; // [items]
@group(0) @binding(6) var<storage, read> weights: array<f32>; // as reference
@group(0) @binding(7) var<storage, read> w_reference: array<f32>; // [w_rows, w_width]
@group(0) @binding(8) var<storage, read_write> w_losses: array<f32>; // [w_rows]

// r - e of unit rows, e its element of theta's. Some compilers make one fused step of quotient and
// difference, which leaves a rounding error where the values are the same.
fn turned(e: f32, at: u32, row: u32, e_length: f32, r_length: f32) -> f32 {
    let same = theta[at] == reference[row] && e_length == r_length;
    return select(reference[row] / r_length - e, 0.0, same);
}

// 1 - cos = |d|^2 / 2 and r - cos e = d - (d . e) e with d = r - e: exactly zero where nothing
// moved. The distance of a row of E.
fn by_direction(row: u32, lane: u32) -> f32 {
    let at = dims.offset + row;
    var ee = 0.0;
    var rr = 0.0;
    for (var c = lane; c < dims.width; c += WG) {
        ee += theta[at + c] * theta[at + c];
        rr += reference[row + c] * reference[row + c];
    }
    let e_length = max(sqrt(sum_lanes(lane, ee)), 1e-12);
    let r_length = max(sqrt(sum_lanes(lane, rr)), 1e-12);
    var dd = 0.0;
    var de = 0.0;
    for (var c = lane; c < dims.width; c += WG) {
        let e = theta[at + c] / e_length;
        let d = turned(e, at + c, row + c, e_length, r_length);
        dd += d * d;
        de += d * e;
    }
    let square = sum_lanes(lane, dd);
    let along = sum_lanes(lane, de);
    for (var c = lane; c < dims.width; c += WG) {
        let e = theta[at + c] / e_length;
        let d = turned(e, at + c, row + c, e_length, r_length);
        grad[at + c] -= dims.strength * (d - along * e) / e_length;
    }
    return 0.5 * square;
}

// The distance of a row of E.
fn by_value(row: u32, lane: u32) -> f32 {
    let at = dims.offset + row;
    var dd = 0.0;
    for (var c = lane; c < dims.width; c += WG) {
        let d = theta[at + c] - reference[row + c];
        dd += d * d;
        grad[at + c] += 2.0 * dims.strength * d;
    }
    return sum_lanes(lane, dd);
}

// The distance of a row of W.
fn of_w(row: u32, lane: u32) -> f32 {
    let at = dims.w_offset + row;
    var dd = 0.0;
    for (var c = lane; c < dims.w_width; c += WG) {
        let d = theta[at + c] - w_reference[row + c];
        dd += d * d;
        grad[at + c] += 2.0 * dims.w_strength * d;
    }
    return sum_lanes(lane, dd);
}

@compute @workgroup_size(WG)
fn pull(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    for (var item = group.x; item < dims.rows + dims.w_rows; item += dims.stride) {
        if item < dims.rows {
            var row = item;
            if dims.listed != 0u { row = ids[item]; }
            var distance = 0.0;
            if dims.by_value != 0u {
                distance = by_value(row * dims.width, lane);
            } else {
                distance = by_direction(row * dims.width, lane);
            }
            if lane == 0u { losses[item] = distance; }
        } else {
            let row = item - dims.rows;
            let distance = of_w(row * dims.w_width, lane);
            if lane == 0u { w_losses[row] = distance; }
        }
    }
}

// The losses leave strength out, as the other forms do.
@compute @workgroup_size(WG)
fn weighted(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    for (var item = group.x; item < dims.rows; item += dims.stride) {
        let first = item * dims.width;
        let end = min(first + dims.width, dims.len);
        var sum = 0.0;
        for (var n = first + lane; n < end; n += WG) {
            let d = theta[dims.offset + n] - reference[dims.skip + n];
            let pull = weights[dims.skip + n] * d;
            sum += pull * d;
            grad[dims.offset + n] += 2.0 * dims.strength * pull;
        }
        let square = sum_lanes(lane, sum);
        if lane == 0u { losses[item] = square; }
    }
}
