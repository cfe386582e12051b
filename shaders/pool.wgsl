// pool: one row of each prompt's rows, and back
//
//   shapes   x, dx: [T, H]   offsets: [B + 1]   h, dh: [B, H]
//            h inside rows of `stride` elements, from `first` on
//            states: [S, T, H], tensors before their norms   norms: [N, 2, H], gamma and beta
//            sources: [Z + 1, 2], place among states and norm of each of Z layers and of the output
//            pooled: [B, H]   units: [B, Z, H]   H is a multiple of 4 there, at most 512 PIECES
//   layout   row-major f32, contiguous
//   entries  one workgroup per prompt; each overwrites (=) h or dx
//            mean             h    =   mean of x over the prompt
//            first            h    =   x of the first token
//            backward_mean    dx   =   dh / n for each of n tokens
//            backward_first   dx   =   dh for the first token, 0 for the others
//            normed           one workgroup per (prompt, layer or output), of norms of states
//                             units   =   the mean as a unit vector, of each layer
//                             pooled  =   the mean of the output, or its first token's with FIRST
//   order    tokens ascending, one lane per column; in `normed` of a row's norm SHARE lanes in
//            steps of SHARE, then in order, and of a length lanes in steps of WG, then a tree
//   scratch  part, scale, partial: written before they are read
//   uses     shared/reduce.wgsl

struct Dims { hidden: u32, first: u32, stride: u32, tokens: u32, layers: u32, eps: f32 }

@group(0) @binding(0) var<uniform> dims: Dims;
@group(0) @binding(1) var<storage, read> offsets: array<u32>; // [B + 1]
@group(0) @binding(2) var<storage, read> x: array<f32>; // [T, H]
@group(0) @binding(3) var<storage, read_write> h: array<f32>; // [B, stride]
@group(0) @binding(4) var<storage, read> dh: array<f32>; // [B, stride]
@group(0) @binding(5) var<storage, read_write> dx: array<f32>; // [T, H]

@compute @workgroup_size(WG)
fn mean(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let begin = offsets[group.x];
    let end = offsets[group.x + 1u];
    for (var c = lane; c < dims.hidden; c += WG) {
        var sum = 0.0;
        for (var t = begin; t < end; t += 1u) { sum += x[t * dims.hidden + c]; }
        h[dims.first + group.x * dims.stride + c] = sum / f32(end - begin);
    }
}

@compute @workgroup_size(WG)
fn first(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = offsets[group.x] * dims.hidden;
    for (var c = lane; c < dims.hidden; c += WG) {
        h[dims.first + group.x * dims.stride + c] = x[row + c];
    }
}

@compute @workgroup_size(WG)
fn backward_mean(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let begin = offsets[group.x];
    let end = offsets[group.x + 1u];
    for (var c = lane; c < dims.hidden; c += WG) {
        let share = dh[group.x * dims.hidden + c] / f32(end - begin);
        for (var t = begin; t < end; t += 1u) { dx[t * dims.hidden + c] = share; }
    }
}

@compute @workgroup_size(WG)
fn backward_first(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let begin = offsets[group.x];
    let end = offsets[group.x + 1u];
    for (var c = lane; c < dims.hidden; c += WG) {
        dx[begin * dims.hidden + c] = dh[group.x * dims.hidden + c];
        for (var t = begin + 1u; t < end; t += 1u) { dx[t * dims.hidden + c] = 0.0; }
    }
}

override FIRST: bool = false;
override PIECES: u32 = 1u; // vectors of a row that a lane has, at most 8
const SHARE = 4u; // lanes that share a token's norm
override TOKENS: u32 = WG / SHARE; // of a round

@group(0) @binding(2) var<storage, read> states: array<vec4<f32>>; // [S, T, H / 4]
@group(0) @binding(3) var<storage, read> norms: array<vec4<f32>>; // [N, 2, H / 4]
@group(0) @binding(4) var<storage, read> sources: array<vec2<u32>>; // [Z + 1]
@group(0) @binding(5) var<storage, read_write> pooled: array<vec4<f32>>; // [B, H / 4]
@group(0) @binding(6) var<storage, read_write> units: array<vec4<f32>>; // [B, Z, H / 4]

var<workgroup> part: array<f32, WG>;
var<workgroup> scale: array<vec2<f32>, TOKENS>;

var<private> sums: array<vec4<f32>, 8>;

fn sum_of(v: vec4<f32>) -> f32 { return (v.x + v.y) + (v.z + v.w); }

fn sum_of_share(lane: u32, value: f32) -> f32 {
    part[lane] = value;
    workgroupBarrier();
    let at = lane / SHARE * SHARE;
    let sum = (part[at] + part[at + 1u]) + (part[at + 2u] + part[at + 3u]);
    workgroupBarrier();
    return sum;
}

// Mean and 1 / deviation of the tokens of a round; a token that is not there is the last one.
fn find_scale(first: u32, start: u32, end: u32, lane: u32) {
    let wide = dims.hidden / 4u;
    let row = (first + min(start + lane / SHARE, end - 1u)) * wide;
    var sum = vec4<f32>();
    for (var c = lane % SHARE; c < wide; c += SHARE) { sum += states[row + c]; }
    let mean = sum_of_share(lane, sum_of(sum)) / f32(4u * wide);
    var squares = vec4<f32>();
    for (var c = lane % SHARE; c < wide; c += SHARE) {
        let d = states[row + c] - mean;
        squares += d * d;
    }
    let variance = sum_of_share(lane, sum_of(squares)) / f32(4u * wide);
    if lane % SHARE == 0u {
        scale[lane / SHARE] = vec2<f32>(mean, 1.0 / sqrt(variance + dims.eps));
    }
    workgroupBarrier();
}

@compute @workgroup_size(WG)
fn normed(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let wide = dims.hidden / 4u;
    let own = sources[group.y];
    let first = own.x * dims.tokens;
    let output = group.y == dims.layers;
    let begin = offsets[group.x];
    var end = offsets[group.x + 1u];
    if FIRST && output { end = begin + 1u; }
    for (var start = begin; start < end; start += TOKENS) {
        find_scale(first, start, end, lane);
        for (var i = 0u; i < PIECES; i += 1u) {
            let c = min(lane + i * WG, wide - 1u);
            for (var t = 0u; t < min(TOKENS, end - start); t += 1u) {
                let v = states[(first + start + t) * wide + c];
                sums[i] += (v - scale[t].x) * scale[t].y;
            }
        }
        workgroupBarrier();
    }
    var squares = 0.0;
    for (var i = 0u; i < PIECES; i += 1u) {
        let c = min(lane + i * WG, wide - 1u);
        let gamma = norms[own.y * 2u * wide + c];
        let beta = norms[own.y * 2u * wide + wide + c];
        sums[i] = sums[i] / f32(end - begin) * gamma + beta;
        if lane + i * WG < wide { squares += dot(sums[i], sums[i]); }
    }
    let length = max(sqrt(sum_lanes(lane, squares)), 1e-12);
    for (var i = 0u; i < PIECES; i += 1u) {
        let c = lane + i * WG;
        if c < wide && output { pooled[group.x * wide + c] = sums[i]; }
        if c < wide && !output {
            units[(group.x * dims.layers + group.y) * wide + c] = sums[i] / length;
        }
    }
}
