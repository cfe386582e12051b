// distill: loss[b] = w[b] T^2 KL(softmax(teacher[b] / T), softmax(scores[b] / T)) and its derivative by the scores; unit rows and
// the way back through them
//
//   shapes   scores, teacher: [B, M]   weights, losses: [B]   x, grad: [N], matrices [R, D] at x_at and grad_at   unit, g: [R, D]
//   layout   row-major f32, contiguous
//   entries  unit_rows   one workgroup per row       unit     =   (overwrites) x / max(|x|, 1e-12)
//            slopes      one workgroup per example   scores   =   (overwrites) w T (softmax(scores / T) - softmax(teacher / T)); losses   =   (overwrites)
//            across      one workgroup per row       grad     +=  (adds) (g - (g . unit) unit) / |x|
//   order    lanes in steps of WG, then a tree
//   scratch  partial of shared/reduce.wgsl: written before it is read
//   uses     shared/reduce.wgsl

const LEAST = 1e-12;
const LOWEST = -3.0e38;

// rows: examples, or rows of x; columns: models, or the width; stride: workgroups.
struct Dims { rows: u32, columns: u32, stride: u32, x_at: u32, grad_at: u32, temperature: f32 }

@group(0) @binding(0) var<uniform> dims: Dims;
@group(0) @binding(1) var<storage, read> x: array<f32>; // [N]
@group(0) @binding(2) var<storage, read> g: array<f32>; // [R, D]
@group(0) @binding(3) var<storage, read> teacher: array<f32>; // [B, M]
@group(0) @binding(4) var<storage, read> weights: array<f32>; // [B]
@group(0) @binding(5) var<storage, read_write> unit: array<f32>; // [R, D]
@group(0) @binding(6) var<storage, read_write> scores: array<f32>; // [B, M]
@group(0) @binding(7) var<storage, read_write> losses: array<f32>; // [B]
@group(0) @binding(8) var<storage, read_write> grad: array<f32>; // [N]

fn length_of(at: u32, lane: u32) -> f32 {
    var squares = 0.0;
    for (var c = lane; c < dims.columns; c += WG) { squares += x[at + c] * x[at + c]; }
    return max(sqrt(sum_lanes(lane, squares)), LEAST);
}

@compute @workgroup_size(WG)
fn unit_rows(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    for (var r = group.x; r < dims.rows; r += dims.stride) {
        let row = r * dims.columns;
        let length = length_of(dims.x_at + row, lane);
        for (var c = lane; c < dims.columns; c += WG) { unit[row + c] = x[dims.x_at + row + c] / length; }
    }
}

@compute @workgroup_size(WG)
fn slopes(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = group.x * dims.columns;
    var highest = vec2<f32>(LOWEST, LOWEST);
    for (var j = row + lane; j < row + dims.columns; j += WG) {
        highest = max(highest, vec2<f32>(teacher[j], scores[j]));
    }
    let peak = vec2<f32>(max_lanes(lane, highest.x), max_lanes(lane, highest.y));
    var sums = vec2<f32>();
    for (var j = row + lane; j < row + dims.columns; j += WG) {
        sums += exp((vec2<f32>(teacher[j], scores[j]) - peak) / dims.temperature);
    }
    // At least 1 each.
    let total = vec2<f32>(sum_lanes(lane, sums.x), sum_lanes(lane, sums.y));
    let logs = log(total);
    let slope = weights[group.x] * dims.temperature;
    var apart = 0.0;
    for (var j = row + lane; j < row + dims.columns; j += WG) {
        let s = (vec2<f32>(teacher[j], scores[j]) - peak) / dims.temperature;
        let p = exp(s) / total;
        let log_p = s - logs;
        apart += p.x * (log_p.x - log_p.y);
        scores[j] = slope * (p.y - p.x);
    }
    let divergence = sum_lanes(lane, apart);
    if lane == 0u { losses[group.x] = slope * dims.temperature * divergence; }
}

@compute @workgroup_size(WG)
fn across(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    for (var r = group.x; r < dims.rows; r += dims.stride) {
        let row = r * dims.columns;
        let length = length_of(dims.x_at + row, lane);
        var products = 0.0;
        for (var c = lane; c < dims.columns; c += WG) { products += g[row + c] * unit[row + c]; }
        let along = select(0.0, sum_lanes(lane, products), length > LEAST);
        for (var c = lane; c < dims.columns; c += WG) {
            grad[dims.grad_at + row + c] += (g[row + c] - along * unit[row + c]) / length;
        }
    }
}
