// linear_skinny: y[t,o] = end(sum over i of n(x)[t,i] w[o,i] + bias[o]) for few rows, bound by the
// reading of w
//
//   n(x) = x, or the layer norm of each row, (x - mean(x)) / sqrt(var(x) + eps) gamma + beta;
//   end(v) = v, or gelu(v) where dims says so, or v + n(residual), by the scale that `normed` left
//
//   shapes   x: [T, in]   w: [out, in]   bias: [out]   y, residual: [T, out]   gamma, beta: [in]
//            r_gamma, r_beta: [out]   x_scale, r_scale: [T, 2], mean and 1 / sqrt(var + eps)
//            in is a multiple of 4 CHUNK; x, w, gamma and beta are read as vectors of four
//   layout   row-major f32, contiguous; x, y and residual begin at a row of a longer tensor
//   entries  bare     one workgroup per (COLUMNS of y, ROWS rows)                y   =   (overwrites)
//            normed   the same, of n(x), in = 4 CHUNK   y, x_scale   =   (overwrites)
//            joined   the same, v + n(residual)                                  y   =   (overwrites)
//   order    lane k of ALONG sums the vectors k, k + ALONG, ... of a row, ascending; then the lanes
//            in order; mean first, then the squares about it
//   scratch  staged, part, scale: written before they are read
//   uses     product: Dims, sum_of, gelu_of; math: below

override ROWS: u32 = 8u; // of a workgroup: 8 or 16
override CHUNK: u32 = 96u; // vectors of a row of x that are staged at a time: a multiple of ALONG
override EACH: u32 = 1u; // columns of a lane: 1 or 2
const ALONG = 16u; // lanes that share a row of w
const ACROSS = 8u; // rows of w side by side
const LANES = ALONG * ACROSS;
const MOST_PIECES = 12u; // of CHUNK / ALONG
const MOST_BATCH = 12u;
override BATCH: u32 = min(ROWS * CHUNK / LANES, MOST_BATCH); // loads of x that are in flight
override PERIOD: u32 = MOST_BATCH; // of the vectors of gamma and beta that a lane takes in turn
override PIECES: u32 = CHUNK / ALONG;
override COLUMNS: u32 = ACROSS * EACH;
override QUADS: u32 = ROWS / 4u;
override PITCH: u32 = ALONG + 1u; // lanes that read several sums meet different banks
override SHARED: u32 = max(ROWS * CHUNK, EACH * QUADS * ACROSS * PITCH);
override SHARE: u32 = LANES / ROWS; // lanes that share the norm of a row of x

@group(0) @binding(0) var<uniform> dims: Dims;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>; // [T, in / 4]
@group(0) @binding(2) var<storage, read> w: array<vec4<f32>>; // [out, in / 4]
@group(0) @binding(3) var<storage, read> bias: array<f32>; // [out]
@group(0) @binding(4) var<storage, read> gamma: array<vec4<f32>>; // [in / 4]
@group(0) @binding(5) var<storage, read> beta: array<vec4<f32>>; // [in / 4]
@group(0) @binding(6) var<storage, read> residual: array<f32>; // [T, out]
@group(0) @binding(7) var<storage, read> r_gamma: array<f32>; // [out]
@group(0) @binding(8) var<storage, read> r_beta: array<f32>; // [out]
@group(0) @binding(9) var<storage, read> r_scale: array<vec2<f32>>; // [T]
@group(0) @binding(10) var<storage, read_write> y: array<f32>; // [T, out]
@group(0) @binding(11) var<storage, read_write> x_scale: array<vec2<f32>>; // [T]

var<workgroup> staged: array<vec4<f32>, SHARED>; // x [ROWS, CHUNK], then the lanes' sums
var<workgroup> part: array<f32, LANES>;
var<workgroup> scale: array<vec2<f32>, ROWS>;

var<private> weights: array<vec4<f32>, 2u * MOST_PIECES>;
var<private> sums: array<f32, 32>; // [EACH, ROWS]

// The lane's vectors of a chunk of w, on their way before anything is waited for.
fn load_weights(column: u32, start: u32, lane: u32) {
    for (var c = 0u; c < EACH; c += 1u) {
        let o = min(column + c * ACROSS + lane / ALONG, dims.outputs - 1u);
        for (var j = 0u; j < PIECES; j += 1u) {
            weights[c * PIECES + j] = w[o * dims.inputs4 + start + lane % ALONG + ALONG * j];
        }
    }
}

// A chunk of the rows of x; a row that is not there is the last one.
fn stage_rows(first: u32, start: u32, lane: u32) {
    for (var n = lane; n < ROWS * CHUNK; n += BATCH * LANES) {
        var v: array<vec4<f32>, MOST_BATCH>;
        for (var i = 0u; i < BATCH; i += 1u) {
            let m = n + i * LANES;
            let t = dims.x_row + min(first + m / CHUNK, dims.rows - 1u);
            v[i] = x[t * dims.inputs4 + start + m % CHUNK];
        }
        for (var i = 0u; i < BATCH; i += 1u) {
            let m = n + i * LANES;
            if m < ROWS * CHUNK { staged[m] = v[i]; }
        }
    }
}

// Makes the staged rows their layer norm.
fn normalize_rows(group: vec3<u32>, lane: u32) {
    let first = group.y * ROWS;
    let r = lane / SHARE;
    let inputs = f32(4u * CHUNK);
    var sum = vec4<f32>();
    for (var i = lane % SHARE; i < CHUNK; i += SHARE) { sum += staged[r * CHUNK + i]; }
    part[lane] = sum_of(sum);
    workgroupBarrier();
    var mean = 0.0;
    for (var i = 0u; i < SHARE; i += 1u) { mean += part[r * SHARE + i]; }
    mean /= inputs;
    workgroupBarrier();
    var squares = vec4<f32>();
    for (var i = lane % SHARE; i < CHUNK; i += SHARE) {
        let d = staged[r * CHUNK + i] - mean;
        squares += d * d;
    }
    part[lane] = sum_of(squares);
    workgroupBarrier();
    var variance = 0.0;
    for (var i = 0u; i < SHARE; i += 1u) { variance += part[r * SHARE + i]; }
    variance /= inputs;
    if lane % SHARE == 0u {
        let own = vec2<f32>(mean, 1.0 / sqrt(variance + dims.eps));
        scale[r] = own;
        if group.x == 0u && first + r < dims.rows { x_scale[first + r] = own; }
    }
    workgroupBarrier();
    for (var n = lane; n < ROWS * CHUNK; n += BATCH * LANES) {
        var g: array<vec4<f32>, MOST_BATCH>;
        var b: array<vec4<f32>, MOST_BATCH>;
        for (var i = 0u; i < min(BATCH, PERIOD); i += 1u) {
            g[i] = gamma[(n + i * LANES) % CHUNK];
            b[i] = beta[(n + i * LANES) % CHUNK];
        }
        for (var i = 0u; i < BATCH; i += 1u) {
            let m = n + i * LANES;
            if m < ROWS * CHUNK {
                let own = scale[m / CHUNK];
                staged[m] = (staged[m] - own.x) * own.y * g[i % PERIOD] + b[i % PERIOD];
            }
        }
    }
}

fn multiply_chunk(lane: u32) {
    for (var r = 0u; r < ROWS; r += 1u) {
        for (var j = 0u; j < PIECES; j += 1u) {
            let v = staged[r * CHUNK + lane % ALONG + ALONG * j];
            for (var c = 0u; c < EACH; c += 1u) {
                sums[c * ROWS + r] += dot(v, weights[c * PIECES + j]);
            }
        }
    }
}

// Behind a barrier: every lane's sums, by column, four rows and lane along the row.
fn share_sums(lane: u32) {
    for (var q = 0u; q < EACH * QUADS; q += 1u) {
        let own = vec4<f32>(sums[4u * q], sums[4u * q + 1u], sums[4u * q + 2u], sums[4u * q + 3u]);
        staged[(q * ACROSS + lane / ALONG) * PITCH + lane % ALONG] = own;
    }
}

// Result n of the workgroup: four rows of one column.
fn result(n: u32) -> vec4<f32> {
    var sum = vec4<f32>();
    for (var k = 0u; k < ALONG; k += 1u) { sum += staged[n * PITCH + k]; }
    return sum;
}

// The first of its rows, and its column.
fn place_of(n: u32, group: vec3<u32>) -> vec2<u32> {
    let c = n / (QUADS * ACROSS) * ACROSS + n % ACROSS;
    return vec2<u32>(group.y * ROWS + n / ACROSS % QUADS * 4u, group.x * COLUMNS + c);
}

fn store_results(group: vec3<u32>, lane: u32) {
    for (var n = lane; n < QUADS * COLUMNS; n += LANES) {
        let place = place_of(n, group);
        var values = result(n) + bias[min(place.y, dims.outputs - 1u)];
        if dims.gelu == 1u { values = gelu_of(values); }
        for (var e = 0u; e < 4u && place.x + e < dims.rows && place.y < dims.outputs; e += 1u) {
            y[(dims.y_row + place.x + e) * dims.outputs + place.y] = values[e];
        }
    }
}

// The sums of all chunks, shared.
fn multiply_rows(group: vec3<u32>, lane: u32) {
    for (var start = 0u; start < dims.inputs4; start += CHUNK) {
        load_weights(group.x * COLUMNS, start, lane);
        stage_rows(group.y * ROWS, start, lane);
        workgroupBarrier();
        multiply_chunk(lane);
        workgroupBarrier();
    }
    share_sums(lane);
    workgroupBarrier();
}

@compute @workgroup_size(LANES)
fn bare(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    multiply_rows(group, lane);
    store_results(group, lane);
}

@compute @workgroup_size(LANES)
fn normed(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    load_weights(group.x * COLUMNS, 0u, lane);
    stage_rows(group.y * ROWS, 0u, lane);
    workgroupBarrier();
    normalize_rows(group, lane);
    workgroupBarrier();
    multiply_chunk(lane);
    workgroupBarrier();
    share_sums(lane);
    workgroupBarrier();
    store_results(group, lane);
}

@compute @workgroup_size(LANES)
fn joined(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    multiply_rows(group, lane);
    for (var n = lane; n < QUADS * COLUMNS; n += LANES) {
        let place = place_of(n, group);
        let o = place.y;
        let sum = result(n);
        for (var e = 0u; e < 4u && place.x + e < dims.rows && o < dims.outputs; e += 1u) {
            let t = place.x + e;
            let own = r_scale[t];
            let before = residual[(dims.r_row + t) * dims.outputs + o];
            let stream = (before - own.x) * own.y * r_gamma[o] + r_beta[o];
            y[(dims.y_row + t) * dims.outputs + o] = sum[e] + bias[o] + stream;
        }
    }
}
