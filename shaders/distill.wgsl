// distill: loss[b] = w[b] T^2 KL(softmax(teacher[b] / T), softmax(scores[b] / T)) and its
// derivative by the scores
//
//   shapes   scores, teacher: [B, M]   weights, losses: [B]
//   layout   row-major f32, contiguous
//   entries  slopes      one workgroup per example
//                        scores   =   (overwrites) w T (softmax(scores / T) - softmax(teacher / T))
//                        losses   =   (overwrites)
//   order    lanes in steps of WG, then a tree
//   scratch  partial of shared/reduce.wgsl: written before it is read
//   uses     shared/reduce.wgsl

const LOWEST = -3.0e38;

struct Dims { models: u32, temperature: f32 }

@group(0) @binding(0) var<uniform> dims: Dims;
@group(0) @binding(1) var<storage, read> teacher: array<f32>; // [B, M]
@group(0) @binding(2) var<storage, read> weights: array<f32>; // [B]
@group(0) @binding(3) var<storage, read_write> scores: array<f32>; // [B, M]
@group(0) @binding(4) var<storage, read_write> losses: array<f32>; // [B]

@compute @workgroup_size(WG)
fn slopes(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = group.x * dims.models;
    var highest = vec2<f32>(LOWEST, LOWEST);
    for (var j = row + lane; j < row + dims.models; j += WG) {
        highest = max(highest, vec2<f32>(teacher[j], scores[j]));
    }
    let peak = vec2<f32>(max_lanes(lane, highest.x), max_lanes(lane, highest.y));
    var sums = vec2<f32>();
    for (var j = row + lane; j < row + dims.models; j += WG) {
        sums += exp((vec2<f32>(teacher[j], scores[j]) - peak) / dims.temperature);
    }
    // At least 1 each.
    let total = vec2<f32>(sum_lanes(lane, sums.x), sum_lanes(lane, sums.y));
    let logs = log(total);
    let slope = weights[group.x] * dims.temperature;
    var apart = 0.0;
    for (var j = row + lane; j < row + dims.models; j += WG) {
        let s = (vec2<f32>(teacher[j], scores[j]) - peak) / dims.temperature;
        let p = exp(s) / total;
        let log_p = s - logs;
        apart += p.x * (log_p.x - log_p.y);
        scores[j] = slope * (p.y - p.x);
    }
    let divergence = sum_lanes(lane, apart);
    if lane == 0u { losses[group.x] = slope * dims.temperature * divergence; }
}
