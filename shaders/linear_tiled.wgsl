// linear_tiled: y[t,o] = end(sum over i of n(x)[t,i] w[o,i] + bias[o]) for many rows;
// dx[t,i] = sum over o of dy[t,o] w[o,i]
//
//   n(x) = x, or the layer norm of each row, (x - mean(x)) / sqrt(var(x) + eps) gamma + beta;
//   end(v) = v, or gelu(v) where dims says so, or v + n(residual), by the scale that `normed` left
//
//   shapes   x, dx: [T, in]   w: [out, in]   bias: [out]   y, dy, residual: [T, out]
//            base: [T, in], of backward_add   gamma, beta: [in]   r_gamma, r_beta: [out]
//            x_scale, r_scale: [T, 2], mean and 1 / sqrt(var + eps)
//            in and out are multiples of 4: all but the scales are read as vectors of four; x is
//            dy and y is dx in the backward entries
//   layout   row-major f32, contiguous; x, y and residual begin at a row of a longer tensor
//   entries  bare           one workgroup per tile of SIDE rows and columns   y    =   (overwrites)
//            normed         the same, of n(x)   y, x_scale   =   (overwrites)
//            joined         the same, v + n(residual)                         y    =   (overwrites)
//            backward       the same                                          dx   =   (overwrites)
//            backward_add   the same, base + the sums                         dx   =   (overwrites)
//   order    i, or o, ascending in one sum; of a norm two lanes a row, in steps of 2, then both;
//            mean first, then the squares about it
//   scratch  xs, ws, part, scale: written before they are read
//   uses     product: Dims, sum_of, gelu_of; math: below

override STAGES: u32 = 2u; // that workgroup memory has room for: 1 or 2
const SIDE = 64u; // rows and columns of a workgroup; a lane has 8 by 4
const LANES = 128u;
const STEP = 4u; // vectors of a row that are staged at a time: 16 terms
const PITCH = 17u; // vectors of a term: 64 numbers, and one to spread the banks
override STAGE: u32 = 16u * PITCH;

@group(0) @binding(0) var<uniform> dims: Dims;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>; // [T, in / 4]
@group(0) @binding(2) var<storage, read> w: array<vec4<f32>>; // [out, in / 4]
@group(0) @binding(3) var<storage, read> bias: array<vec4<f32>>; // [out / 4]
@group(0) @binding(4) var<storage, read> gamma: array<vec4<f32>>; // [in / 4]
@group(0) @binding(5) var<storage, read> beta: array<vec4<f32>>; // [in / 4]
@group(0) @binding(6) var<storage, read> residual: array<vec4<f32>>; // [T, out / 4]
@group(0) @binding(7) var<storage, read> r_gamma: array<vec4<f32>>; // [out / 4]
@group(0) @binding(8) var<storage, read> r_beta: array<vec4<f32>>; // [out / 4]
@group(0) @binding(9) var<storage, read> r_scale: array<vec2<f32>>; // [T]
@group(0) @binding(10) var<storage, read_write> y: array<vec4<f32>>; // [T, out / 4]
@group(0) @binding(11) var<storage, read_write> x_scale: array<vec2<f32>>; // [T]
@group(0) @binding(12) var<storage, read> base: array<vec4<f32>>; // [T, out / 4]

var<workgroup> xs: array<vec4<f32>, STAGES * STAGE>; // [STAGES, 16 terms, rows]
var<workgroup> ws: array<vec4<f32>, STAGES * STAGE>; // [STAGES, 16 terms, columns]
var<workgroup> part: array<f32, LANES>;
var<workgroup> scale: array<vec2<f32>, SIDE>;

const BATCH = 12u; // vectors of a row that a lane has on their way

var<private> sums: array<vec4<f32>, 8>; // a row each
var<private> loaded: array<vec4<f32>, BATCH>;
var<private> next_x: array<vec4<f32>, 2>;
var<private> next_w: array<vec4<f32>, 2>;
var<private> next_gamma: vec4<f32>;
var<private> next_beta: vec4<f32>;

// Puts what was loaded for the next step into `stage`. With `turned` columns follow each other in w.
fn stage_step(stage: u32, lane: u32, turned: bool) {
    for (var e = 0u; e < 2u; e += 1u) {
        let n = lane + e * LANES;
        for (var k = 0u; k < 4u; k += 1u) {
            let at = stage + (n % STEP * 4u + k) * PITCH + n / STEP / 4u;
            xs[at][n / STEP % 4u] = next_x[e][k];
            if !turned { ws[at][n / STEP % 4u] = next_w[e][k]; }
        }
        if turned { ws[stage + n / 16u * PITCH + n % 16u] = next_w[e]; }
    }
}

fn load_x(row: u32, start: u32, lane: u32) {
    let i = min(start + lane % STEP, dims.inputs4 - 1u);
    let inside = f32(start + lane % STEP < dims.inputs4);
    for (var e = 0u; e < 2u; e += 1u) {
        let t = dims.x_row + min(row + (lane + e * LANES) / STEP, dims.rows - 1u);
        next_x[e] = x[t * dims.inputs4 + i] * inside;
    }
}

fn load_w(column: u32, start: u32, lane: u32) {
    let i = min(start + lane % STEP, dims.inputs4 - 1u);
    for (var e = 0u; e < 2u; e += 1u) {
        let o = min(column + (lane + e * LANES) / STEP, dims.outputs - 1u);
        next_w[e] = w[o * dims.inputs4 + i];
    }
}

// Of w as [in, out / 4]: 16 of its rows, 16 vectors of each.
fn load_turned(column: u32, start: u32, lane: u32) {
    let wide = dims.outputs / 4u;
    for (var e = 0u; e < 2u; e += 1u) {
        let n = lane + e * LANES;
        let i = min(4u * start + n / 16u, 4u * dims.inputs4 - 1u);
        next_w[e] = w[i * wide + min(column / 4u + n % 16u, wide - 1u)];
    }
}

fn multiply_step(stage: u32, lane: u32) {
    let r = lane / 16u * 2u;
    for (var k = 0u; k < 16u; k += 1u) {
        let a = xs[stage + k * PITCH + r];
        let b = xs[stage + k * PITCH + r + 1u];
        let v = ws[stage + k * PITCH + lane % 16u];
        sums[0] += a.x * v;
        sums[1] += a.y * v;
        sums[2] += a.z * v;
        sums[3] += a.w * v;
        sums[4] += b.x * v;
        sums[5] += b.y * v;
        sums[6] += b.z * v;
        sums[7] += b.w * v;
    }
}

// Every second vector of a row from i on, all on their way at once; behind the row its last.
fn load_row(begin: u32, i: u32) {
    for (var e = 0u; e < BATCH; e += 1u) {
        loaded[e] = x[begin + min(i + 2u * e, dims.inputs4 - 1u)];
    }
}

// Mean and 1 / deviation of the workgroup's rows, two lanes a row.
fn find_scale(group: vec3<u32>, lane: u32) {
    let row = group.y * SIDE;
    let t = min(row + lane / 2u, dims.rows - 1u);
    let begin = (dims.x_row + t) * dims.inputs4;
    let inputs = f32(4u * dims.inputs4);
    var sum = vec4<f32>();
    for (var i = lane % 2u; i < dims.inputs4; i += 2u * BATCH) {
        load_row(begin, i);
        for (var e = 0u; e < BATCH; e += 1u) { sum += loaded[e] * f32(i + 2u * e < dims.inputs4); }
    }
    part[lane] = sum_of(sum);
    workgroupBarrier();
    let mean = (part[lane / 2u * 2u] + part[lane / 2u * 2u + 1u]) / inputs;
    workgroupBarrier();
    var squares = vec4<f32>();
    for (var i = lane % 2u; i < dims.inputs4; i += 2u * BATCH) {
        load_row(begin, i);
        for (var e = 0u; e < BATCH; e += 1u) {
            let d = (loaded[e] - mean) * f32(i + 2u * e < dims.inputs4);
            squares += d * d;
        }
    }
    part[lane] = sum_of(squares);
    workgroupBarrier();
    let variance = (part[lane / 2u * 2u] + part[lane / 2u * 2u + 1u]) / inputs;
    let own = vec2<f32>(mean, 1.0 / sqrt(variance + dims.eps));
    if lane % 2u == 0u {
        scale[lane / 2u] = own;
        if group.x == 0u && row + lane / 2u < dims.rows { x_scale[t] = own; }
    }
    workgroupBarrier();
}

fn load_norm(start: u32, lane: u32) {
    let i = min(start + lane % STEP, dims.inputs4 - 1u);
    next_gamma = gamma[i];
    next_beta = beta[i];
}

// Makes the loaded vectors of x those of its norm.
fn normalize_loaded(start: u32, lane: u32) {
    let inside = f32(start + lane % STEP < dims.inputs4);
    for (var e = 0u; e < 2u; e += 1u) {
        let own = scale[(lane + e * LANES) / STEP];
        next_x[e] = ((next_x[e] - own.x) * own.y * next_gamma + next_beta) * inside;
    }
}

// The lane's sums of x w^T.
fn multiply(group: vec3<u32>, lane: u32) {
    var stage = 0u;
    load_x(group.y * SIDE, 0u, lane);
    load_w(group.x * SIDE, 0u, lane);
    for (var start = 0u; start < dims.inputs4; start += STEP) {
        stage_step(stage, lane, false);
        workgroupBarrier();
        load_x(group.y * SIDE, start + STEP, lane);
        load_w(group.x * SIDE, start + STEP, lane);
        multiply_step(stage, lane);
        stage = next_stage(stage);
    }
}

// As `multiply`, of x w.
fn multiply_turned(group: vec3<u32>, lane: u32) {
    var stage = 0u;
    load_x(group.y * SIDE, 0u, lane);
    load_turned(group.x * SIDE, 0u, lane);
    for (var start = 0u; start < dims.inputs4; start += STEP) {
        stage_step(stage, lane, true);
        workgroupBarrier();
        load_x(group.y * SIDE, start + STEP, lane);
        load_turned(group.x * SIDE, start + STEP, lane);
        multiply_step(stage, lane);
        stage = next_stage(stage);
    }
}

// The other stage; with one, itself, once all lanes have read it.
fn next_stage(stage: u32) -> u32 {
    if STAGES == 1u { workgroupBarrier(); }
    return select(STAGE - stage, 0u, STAGES == 1u);
}

fn vector_of(group: vec3<u32>, lane: u32) -> u32 { return group.x * SIDE / 4u + lane % 16u; }

fn row_of(group: vec3<u32>, lane: u32, i: u32) -> u32 {
    return group.y * SIDE + lane / 16u * 8u + i;
}

fn store_rows(group: vec3<u32>, lane: u32) {
    let o = vector_of(group, lane);
    let wide = dims.outputs / 4u;
    for (var i = 0u; i < 8u; i += 1u) {
        let t = row_of(group, lane, i);
        if t < dims.rows && o < wide {
            var value = sums[i] + bias[o];
            if dims.gelu == 1u { value = gelu_of(value); }
            y[(dims.y_row + t) * wide + o] = value;
        }
    }
}

@compute @workgroup_size(LANES)
fn bare(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    multiply(group, lane);
    store_rows(group, lane);
}

@compute @workgroup_size(LANES)
fn normed(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    var stage = 0u;
    find_scale(group, lane);
    load_norm(0u, lane);
    load_x(group.y * SIDE, 0u, lane);
    load_w(group.x * SIDE, 0u, lane);
    for (var start = 0u; start < dims.inputs4; start += STEP) {
        normalize_loaded(start, lane);
        stage_step(stage, lane, false);
        workgroupBarrier();
        load_norm(start + STEP, lane);
        load_x(group.y * SIDE, start + STEP, lane);
        load_w(group.x * SIDE, start + STEP, lane);
        multiply_step(stage, lane);
        stage = next_stage(stage);
    }
    store_rows(group, lane);
}

@compute @workgroup_size(LANES)
fn joined(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    multiply(group, lane);
    let o = vector_of(group, lane);
    let wide = dims.outputs / 4u;
    for (var i = 0u; i < 8u; i += 1u) {
        let t = row_of(group, lane, i);
        if t < dims.rows && o < wide {
            let own = r_scale[t];
            let before = residual[(dims.r_row + t) * wide + o];
            let stream = (before - own.x) * own.y * r_gamma[o] + r_beta[o];
            y[(dims.y_row + t) * wide + o] = sums[i] + bias[o] + stream;
        }
    }
}

@compute @workgroup_size(LANES)
fn backward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    multiply_turned(group, lane);
    let o = vector_of(group, lane);
    let wide = dims.outputs / 4u;
    for (var i = 0u; i < 8u; i += 1u) {
        let t = row_of(group, lane, i);
        if t < dims.rows && o < wide { y[t * wide + o] = sums[i]; }
    }
}

@compute @workgroup_size(LANES)
fn backward_add(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    multiply_turned(group, lane);
    let o = vector_of(group, lane);
    let wide = dims.outputs / 4u;
    for (var i = 0u; i < 8u; i += 1u) {
        let t = row_of(group, lane, i);
        if t < dims.rows && o < wide { y[t * wide + o] = base[t * wide + o] + sums[i]; }
    }
}
