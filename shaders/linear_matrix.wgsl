// linear_matrix: y[t,o] = end(sum over i of n(x)[t,i] w[o,i] + bias[o]) for many rows, on matrix
// units, whose factors are f16 and whose sums are f32
//
//   each factor is the sum of two f16, high and low: x w = xh wh + xl wh + xh wl; xl wl is below
//   2^-22 of x w and left out. So it is as exact as sums of f32, for x and w below 65504. Without
//   X_LOW and W_LOW factors are rounded to f16: "fast"
//   n(x) = x, or the layer norm of each row, (x - mean(x)) / sqrt(var(x) + eps) gamma + beta;
//   end(v) = v, or gelu(v) where dims says so, or v + n(residual), by the scale that `normed` left
//
//   shapes   x: [T, in]   halves: [2, out, in], the high parts of w and its low ones   bias: [out]
//            y, residual: [T, out]   gamma, beta: [in]   r_gamma, r_beta: [out]
//            x_scale, r_scale: [T, 2], mean and 1 / sqrt(var + eps)
//            in and out are multiples of 4: all but the scales are read as vectors of four; gamma and
//            beta of bare and joined are not read
//   layout   row-major f32, halves f16, contiguous; x, y and residual begin at a row of a longer
//            tensor
//   entries  bare     one workgroup of four subgroups per SIDE rows and columns   y    =   (overwrites)
//            normed   the same, of n(x)   y, x_scale   =   (overwrites)
//            joined   the same, v + n(residual)                                   y    =   (overwrites)
//   order    i ascending in steps of S; inside of one, and of its products, as the unit adds; of a
//            norm SHARE lanes a row, then these; mean first, then the squares about it
//   scratch  xh, xl, wh, wl, sums, part, scale: written before they are read
//   uses     matrix8 or matrix16; product: Dims, sum_of, gelu_of; math: below

enable f16;
enable wgpu_cooperative_matrix;

override LANES: u32 = 128u; // four subgroups
override STEP: u32 = 8u; // vectors of a row that are staged at a time: 8 or 4
override X_LOW: bool = true; // whether low parts are taken: of x,
override W_LOW: bool = true; // and of w, where they are not all 0
const SIDE = 4u * S; // rows and columns of a workgroup; a subgroup has a quarter, 2 x 2 matrices
const WIDE = SIDE / 4u + 1u; // vectors of a row of sums, one of them to spread the banks
const MOST = 16u; // of EACH
override PITCH: u32 = STEP + 2u; // rows of 16 bytes that leave each other's banks
override EACH: u32 = SIDE * STEP / LANES; // vectors of x, and of w, that a lane stages
override SHARE: u32 = max(LANES / SIDE, 1u); // lanes that share the norm of a row

@group(0) @binding(0) var<uniform> dims: Dims;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>; // [T, in / 4]
@group(0) @binding(2) var<storage, read> halves: array<vec4<f16>>; // [2, out, in / 4]
@group(0) @binding(3) var<storage, read> bias: array<vec4<f32>>; // [out / 4]
@group(0) @binding(4) var<storage, read> gamma: array<vec4<f32>>; // [in / 4]
@group(0) @binding(5) var<storage, read> beta: array<vec4<f32>>; // [in / 4]
@group(0) @binding(6) var<storage, read> residual: array<vec4<f32>>; // [T, out / 4]
@group(0) @binding(7) var<storage, read> r_gamma: array<vec4<f32>>; // [out / 4]
@group(0) @binding(8) var<storage, read> r_beta: array<vec4<f32>>; // [out / 4]
@group(0) @binding(9) var<storage, read> r_scale: array<vec2<f32>>; // [T]
@group(0) @binding(10) var<storage, read_write> y: array<vec4<f32>>; // [T, out / 4]
@group(0) @binding(11) var<storage, read_write> x_scale: array<vec2<f32>>; // [T]

var<workgroup> xh: array<vec4<f16>, SIDE * PITCH>;
var<workgroup> xl: array<vec4<f16>, SIDE * PITCH>;
var<workgroup> wh: array<vec4<f16>, SIDE * PITCH>;
var<workgroup> wl: array<vec4<f16>, SIDE * PITCH>;
var<workgroup> sums: array<vec4<f32>, SIDE * WIDE>;
var<workgroup> part: array<f32, LANES>;
var<workgroup> scale: array<vec2<f32>, SIDE>;

const BATCH = 12u; // vectors of a row that a lane has on their way

var<private> loaded: array<vec4<f32>, BATCH>;
var<private> next_x: array<vec4<f32>, MOST>;
var<private> next_high: array<vec4<f16>, MOST>;
var<private> next_low: array<vec4<f16>, MOST>;

// Puts what was loaded for the next step into workgroup memory.
fn stage_step(lane: u32) {
    for (var e = 0u; e < EACH; e += 1u) {
        let n = lane + e * LANES;
        let at = n / STEP * PITCH + n % STEP;
        // By bits: compilers fold f32(f16(v)) to v, and nothing would be left for the low part.
        let bits = (bitcast<vec4<u32>>(next_x[e]) + vec4<u32>(0x1000u)) & vec4<u32>(0xffffe000u);
        let high = bitcast<vec4<f32>>(bits);
        xh[at] = vec4<f16>(high);
        if X_LOW { xl[at] = vec4<f16>(next_x[e] - high); }
        wh[at] = next_high[e];
        if W_LOW { wl[at] = next_low[e]; }
    }
}

// The vectors from `start` on of the workgroup's rows of x and of w; behind the end of a row zeros.
fn load_step(group: vec3<u32>, start: u32, lane: u32, of_norm: bool) {
    let i = min(start + lane % STEP, dims.inputs4 - 1u);
    let inside = f32(start + lane % STEP < dims.inputs4);
    for (var e = 0u; e < EACH; e += 1u) {
        let r = (lane + e * LANES) / STEP;
        let t = dims.x_row + min(group.y * SIDE + r, dims.rows - 1u);
        let o = min(group.x * SIDE + r, dims.outputs - 1u);
        next_x[e] = x[t * dims.inputs4 + i] * inside;
        next_high[e] = halves[o * dims.inputs4 + i];
        if W_LOW { next_low[e] = halves[(dims.outputs + o) * dims.inputs4 + i]; }
    }
    if of_norm {
        let g = gamma[i];
        let b = beta[i];
        for (var e = 0u; e < EACH; e += 1u) {
            let own = scale[(lane + e * LANES) / STEP];
            next_x[e] = ((next_x[e] - own.x) * own.y * g + b) * inside;
        }
    }
}

// Every so many vectors of a row from i on, all on their way at once; behind the row its last.
fn load_row(begin: u32, i: u32) {
    for (var e = 0u; e < BATCH; e += 1u) {
        loaded[e] = x[begin + min(i + SHARE * e, dims.inputs4 - 1u)];
    }
}

// What the lanes of a row have, together.
fn shared_sum(lane: u32) -> f32 {
    var sum = 0.0;
    for (var i = 0u; i < SHARE; i += 1u) { sum += part[lane / SHARE * SHARE + i]; }
    return sum;
}

// Mean and 1 / deviation of the workgroup's rows.
fn find_scale(group: vec3<u32>, lane: u32) {
    let inputs = f32(4u * dims.inputs4);
    for (var first = 0u; first < SIDE; first += LANES / SHARE) {
        let row = first + lane / SHARE;
        let t = min(group.y * SIDE + row, dims.rows - 1u);
        let begin = (dims.x_row + t) * dims.inputs4;
        var sum = vec4<f32>();
        for (var i = lane % SHARE; i < dims.inputs4; i += SHARE * BATCH) {
            load_row(begin, i);
            for (var e = 0u; e < BATCH; e += 1u) {
                sum += loaded[e] * f32(i + SHARE * e < dims.inputs4);
            }
        }
        part[lane] = sum_of(sum);
        workgroupBarrier();
        let mean = shared_sum(lane) / inputs;
        workgroupBarrier();
        var squares = vec4<f32>();
        for (var i = lane % SHARE; i < dims.inputs4; i += SHARE * BATCH) {
            load_row(begin, i);
            for (var e = 0u; e < BATCH; e += 1u) {
                let d = (loaded[e] - mean) * f32(i + SHARE * e < dims.inputs4);
                squares += d * d;
            }
        }
        part[lane] = sum_of(squares);
        workgroupBarrier();
        let own = vec2<f32>(mean, 1.0 / sqrt(shared_sum(lane) / inputs + dims.eps));
        if lane % SHARE == 0u {
            scale[row] = own;
            if group.x == 0u && group.y * SIDE + row < dims.rows { x_scale[t] = own; }
        }
        workgroupBarrier();
    }
}

// The workgroup's sums. No branch is around a matrix: naga takes a loop's variable for one that
// differs between lanes.
fn multiply(group: vec3<u32>, lane: u32, subgroup: u32, of_norm: bool) {
    let down = subgroup / 2u * 2u * S; // the first row and column of the subgroup's quarter
    let across = subgroup % 2u * 2u * S;
    var c00 = Sums();
    var c01 = Sums();
    var c10 = Sums();
    var c11 = Sums();
    load_step(group, 0u, lane, of_norm);
    for (var start = 0u; start < dims.inputs4; start += STEP) {
        stage_step(lane);
        workgroupBarrier();
        load_step(group, start + STEP, lane, of_norm);
        for (var k = 0u; k < STEP; k += S / 4u) {
            let a0 = coopLoadT<Left>(&xh[down * PITCH + k], PITCH);
            let a1 = coopLoadT<Left>(&xh[(down + S) * PITCH + k], PITCH);
            let b0 = coopLoad<Right>(&wh[across * PITCH + k], PITCH);
            let b1 = coopLoad<Right>(&wh[(across + S) * PITCH + k], PITCH);
            c00 = coopMultiplyAdd(a0, b0, c00);
            c01 = coopMultiplyAdd(a0, b1, c01);
            c10 = coopMultiplyAdd(a1, b0, c10);
            c11 = coopMultiplyAdd(a1, b1, c11);
            if X_LOW {
                let l0 = coopLoadT<Left>(&xl[down * PITCH + k], PITCH);
                let l1 = coopLoadT<Left>(&xl[(down + S) * PITCH + k], PITCH);
                c00 = coopMultiplyAdd(l0, b0, c00);
                c01 = coopMultiplyAdd(l0, b1, c01);
                c10 = coopMultiplyAdd(l1, b0, c10);
                c11 = coopMultiplyAdd(l1, b1, c11);
            }
            if W_LOW {
                let d0 = coopLoad<Right>(&wl[across * PITCH + k], PITCH);
                let d1 = coopLoad<Right>(&wl[(across + S) * PITCH + k], PITCH);
                c00 = coopMultiplyAdd(a0, d0, c00);
                c01 = coopMultiplyAdd(a0, d1, c01);
                c10 = coopMultiplyAdd(a1, d0, c10);
                c11 = coopMultiplyAdd(a1, d1, c11);
            }
        }
        workgroupBarrier();
    }
    // Named first: naga 30 panics where an argument of coopStore is still to be computed.
    let wide = WIDE;
    let p00 = down * WIDE + across / 4u;
    let p01 = p00 + S / 4u;
    let p10 = p00 + S * WIDE;
    let p11 = p10 + S / 4u;
    coopStoreT(c00, &sums[p00], wide);
    coopStoreT(c01, &sums[p01], wide);
    coopStoreT(c10, &sums[p10], wide);
    coopStoreT(c11, &sums[p11], wide);
    workgroupBarrier();
}

// Row and vector of y that sum n of the workgroup is.
fn place_of(n: u32, group: vec3<u32>) -> vec2<u32> {
    return vec2<u32>(group.y * SIDE + n / (SIDE / 4u), group.x * SIDE / 4u + n % (SIDE / 4u));
}

fn sum_at(n: u32) -> vec4<f32> { return sums[n / (SIDE / 4u) * WIDE + n % (SIDE / 4u)]; }

fn store_rows(group: vec3<u32>, lane: u32) {
    let wide = dims.outputs / 4u;
    for (var n = lane; n < SIDE * SIDE / 4u; n += LANES) {
        let place = place_of(n, group);
        if place.x < dims.rows && place.y < wide {
            var value = sum_at(n) + bias[place.y];
            if dims.gelu == 1u { value = gelu_of(value); }
            y[(dims.y_row + place.x) * wide + place.y] = value;
        }
    }
}

@compute @workgroup_size(LANES)
fn bare(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_id) subgroup: u32,
) {
    multiply(group, lane, subgroup, false);
    store_rows(group, lane);
}

@compute @workgroup_size(LANES)
fn normed(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_id) subgroup: u32,
) {
    find_scale(group, lane);
    multiply(group, lane, subgroup, true);
    store_rows(group, lane);
}

@compute @workgroup_size(LANES)
fn joined(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_id) subgroup: u32,
) {
    multiply(group, lane, subgroup, false);
    let wide = dims.outputs / 4u;
    for (var n = lane; n < SIDE * SIDE / 4u; n += LANES) {
        let place = place_of(n, group);
        if place.x < dims.rows && place.y < wide {
            let o = place.y;
            let own = r_scale[place.x];
            let before = residual[(dims.r_row + place.x) * wide + o];
            let stream = (before - own.x) * own.y * r_gamma[o] + r_beta[o];
            y[(dims.y_row + place.x) * wide + o] = sum_at(n) + bias[o] + stream;
        }
    }
}
