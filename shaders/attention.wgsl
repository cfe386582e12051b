// attention: y = p v, p = softmax(q k^T / sqrt(width)), within each prompt and head, without mask
//   dv = p^T dy; dp = dy v^T; ds = p * (dp - mean), mean = each row's sum of p * dp;
//   dq = ds k / sqrt(width); dk = ds^T q / sqrt(width)
//
//   shapes   qkv, dqkv: [T, 3 H]   y, dy: [T, H]   offsets: [B + 1]
//            tiles: [J, 2], first row and prompt of each query tile
//            statistics: [T, heads, 3], of a row of scores the maximum, the sum of
//            exp(score - maximum), and the mean
//   layout   row-major f32, contiguous; a row of qkv is query, key, value, each [heads, WIDTH]
//   entries  forward            one workgroup per (query tile, head)   y   =   (overwrites)
//            forward_quads      the same, for a WIDTH that is a multiple of 4, up to 4 MOST_QUADS;
//                               of qkv4 and y4, which are qkv and y as vectors of four
//            backward_queries   one workgroup per (query tile, head, SIDE rows of the tile)
//                               dqkv's dq, statistics   =   (overwrites)
//            backward_keys      the same, after backward_queries
//                               dqkv's dk and dv   =   (overwrites)
//   order    keys ascending in steps of KEYS from the prompt's first, with a running maximum; in
//            forward_quads every fourth key in each of four sums, which are joined in order;
//            backward in steps of SIDE, queries too
//   scratch  queries, keys, values, weights, sums, staged, own, other, slopes, totals: written before they
//            are read
//   uses     nothing

override WIDTH: u32 = 32u; // of a head
const QUERIES = 16u; // rows of a tile
const KEYS = 8u; // keys staged at a time
const PARTS = 4u; // lanes that share a query
const LOWEST = -3.0e38;

struct Dims { hidden: u32, scale: f32 }

@group(0) @binding(0) var<uniform> dims: Dims;
@group(0) @binding(1) var<storage, read> qkv: array<f32>; // [T, 3 H]
@group(0) @binding(2) var<storage, read> offsets: array<u32>; // [B + 1]
@group(0) @binding(3) var<storage, read> tiles: array<u32>; // [J, 2]
@group(0) @binding(4) var<storage, read_write> y: array<f32>; // [T, H]
@group(0) @binding(1) var<storage, read> qkv4: array<vec4<f32>>; // [T, 3 H / 4]
@group(0) @binding(4) var<storage, read_write> y4: array<vec4<f32>>; // [T, H / 4]
@group(0) @binding(5) var<storage, read> dy: array<f32>; // [T, H]
@group(0) @binding(6) var<storage, read_write> statistics: array<f32>; // [T, heads, 3]
@group(0) @binding(7) var<storage, read_write> dqkv: array<f32>; // [T, 3 H]

var<workgroup> queries: array<f32, QUERIES * WIDTH>;
var<workgroup> keys: array<f32, KEYS * WIDTH>;
var<workgroup> values: array<f32, KEYS * WIDTH>;
var<workgroup> weights: array<f32, QUERIES * KEYS>;
var<workgroup> sums: array<f32, QUERIES * WIDTH>;

@compute @workgroup_size(QUERIES * PARTS)
fn forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let first = tiles[group.x * 2u];
    let prompt = tiles[group.x * 2u + 1u];
    let head = group.y * WIDTH;
    let begin = offsets[prompt];
    let end = offsets[prompt + 1u];
    let stride = 3u * dims.hidden;
    for (var n = lane; n < QUERIES * WIDTH; n += QUERIES * PARTS) {
        let row = min(first + n / WIDTH, end - 1u);
        queries[n] = qkv[row * stride + head + n % WIDTH] * dims.scale;
        sums[n] = 0.0;
    }
    let q = lane / PARTS;
    let part = lane % PARTS;
    var largest = LOWEST;
    var total = 0.0;
    for (var start = begin; start < end; start += KEYS) {
        for (var n = lane; n < KEYS * WIDTH; n += QUERIES * PARTS) {
            let row = min(start + n / WIDTH, end - 1u);
            let place = row * stride + dims.hidden + head + n % WIDTH;
            keys[n] = qkv[place];
            values[n] = qkv[place + dims.hidden];
        }
        workgroupBarrier();
        for (var j = part; j < KEYS; j += PARTS) {
            var score = 0.0;
            for (var d = 0u; d < WIDTH; d += 1u) {
                score += queries[q * WIDTH + d] * keys[j * WIDTH + d];
            }
            if start + j >= end { score = LOWEST; }
            weights[q * KEYS + j] = score;
        }
        workgroupBarrier();
        var peak = largest;
        for (var j = 0u; j < KEYS; j += 1u) { peak = max(peak, weights[q * KEYS + j]); }
        let fade = exp(largest - peak);
        largest = peak;
        total *= fade;
        for (var d = part; d < WIDTH; d += PARTS) { sums[q * WIDTH + d] *= fade; }
        for (var j = 0u; j < KEYS; j += 1u) {
            let weight = exp(weights[q * KEYS + j] - peak);
            total += weight;
            for (var d = part; d < WIDTH; d += PARTS) {
                sums[q * WIDTH + d] += weight * values[j * WIDTH + d];
            }
        }
        workgroupBarrier();
    }
    if first + q < end {
        for (var d = part; d < WIDTH; d += PARTS) {
            y[(first + q) * dims.hidden + head + d] = sums[q * WIDTH + d] / total;
        }
    }
}

const MOST_QUADS = 16u;
const STAGED = 32u; // keys staged at a time; at least QUERIES (PARTS - 1) / 2
override QUADS: u32 = WIDTH / 4u;
override ROW: u32 = QUADS + 1u; // of staged rows: lanes that read several meet different banks

// Keys and values; at the end the sums of parts 1 to 3, each with its maximum and total.
var<workgroup> staged: array<vec4<f32>, 2u * STAGED * ROW>;

// A lane has every fourth key of one query, in registers.
@compute @workgroup_size(QUERIES * PARTS)
fn forward_quads(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let first = tiles[group.x * 2u];
    let prompt = tiles[group.x * 2u + 1u];
    let head = group.y * QUADS;
    let begin = offsets[prompt];
    let end = offsets[prompt + 1u];
    let hidden = dims.hidden / 4u;
    let row = first + lane % QUERIES;
    let part = lane / QUERIES;
    var query: array<vec4<f32>, MOST_QUADS>;
    var sum: array<vec4<f32>, MOST_QUADS>;
    for (var d = 0u; d < QUADS; d += 1u) {
        query[d] = qkv4[min(row, end - 1u) * 3u * hidden + head + d] * dims.scale;
        sum[d] = vec4<f32>();
    }
    var largest = LOWEST;
    var total = 0.0;
    for (var start = begin; start < end; start += STAGED) {
        for (var n = lane; n < STAGED * QUADS; n += QUERIES * PARTS) {
            let there = min(start + n / QUADS, end - 1u) * 3u * hidden + hidden + head + n % QUADS;
            let here = n / QUADS * ROW + n % QUADS;
            staged[here] = qkv4[there];
            staged[STAGED * ROW + here] = qkv4[there + hidden];
        }
        workgroupBarrier();
        let count = min(end - start, STAGED);
        for (var j = part; j < count; j += PARTS) {
            var score = 0.0;
            for (var d = 0u; d < QUADS; d += 1u) { score += dot(query[d], staged[j * ROW + d]); }
            let peak = max(largest, score);
            let fade = exp(largest - peak);
            let weight = exp(score - peak);
            largest = peak;
            total = total * fade + weight;
            for (var d = 0u; d < QUADS; d += 1u) {
                sum[d] = sum[d] * fade + weight * staged[(STAGED + j) * ROW + d];
            }
        }
        workgroupBarrier();
    }
    if part > 0u {
        let here = (lane - QUERIES) * ROW;
        for (var d = 0u; d < QUADS; d += 1u) { staged[here + d] = sum[d]; }
        staged[here + QUADS] = vec4(largest, total, 0.0, 0.0);
    }
    workgroupBarrier();
    if part == 0u && row < end {
        for (var p = 0u; p + 1u < PARTS; p += 1u) {
            let there = (p * QUERIES + lane) * ROW;
            let other = staged[there + QUADS];
            let peak = max(largest, other.x);
            let fade = exp(largest - peak);
            let gain = exp(other.x - peak);
            largest = peak;
            total = total * fade + other.y * gain;
            for (var d = 0u; d < QUADS; d += 1u) { sum[d] = sum[d] * fade + staged[there + d] * gain; }
        }
        for (var d = 0u; d < QUADS; d += 1u) { y4[row * hidden + head + d] = sum[d] / total; }
    }
}

// The backward entries work on pairs of a query and a key: a lane has one of SIDE x SIDE. A query's
// values, (q / sqrt(width), dy), and a key's, (k, v), are pairs as well, so that their product is
// (score, dp).

const SIDE = 8u; // rows of a workgroup, and rows staged at a time
// Of staged rows: lanes that read one column of several meet different banks.
override PITCH: u32 = WIDTH + 1u;

var<workgroup> own: array<vec2<f32>, SIDE * PITCH>;
var<workgroup> other: array<vec2<f32>, SIDE * PITCH>;
var<workgroup> slopes: array<vec2<f32>, SIDE * SIDE>;
var<workgroup> totals: array<vec2<f32>, SIDE * WIDTH>;

fn query_at(row: u32, column: u32) -> vec2<f32> {
    return vec2(qkv[row * 3u * dims.hidden + column] * dims.scale, dy[row * dims.hidden + column]);
}

fn key_at(row: u32, column: u32) -> vec2<f32> {
    let place = (row * 3u + 1u) * dims.hidden + column;
    return vec2(qkv[place], qkv[place + dims.hidden]);
}

fn product(r: u32, j: u32) -> vec2<f32> {
    var sum = vec2(0.0);
    for (var d = 0u; d < WIDTH; d += 1u) { sum += own[r * PITCH + d] * other[j * PITCH + d]; }
    return sum;
}

@compute @workgroup_size(SIDE * SIDE)
fn backward_queries(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let first = tiles[group.x * 2u] + group.z * SIDE;
    let prompt = tiles[group.x * 2u + 1u];
    let head = group.y * WIDTH;
    let begin = offsets[prompt];
    let end = offsets[prompt + 1u];
    for (var n = lane; n < SIDE * WIDTH; n += SIDE * SIDE) {
        own[n / WIDTH * PITCH + n % WIDTH] =
            query_at(min(first + n / WIDTH, end - 1u), head + n % WIDTH);
        totals[n] = vec2(0.0);
    }
    let r = lane / SIDE;
    let j = lane % SIDE;
    var largest = LOWEST;
    var total = vec2(0.0); // sums of weight * dp, and of weights; totals has the same times k
    for (var start = begin; start < end; start += SIDE) {
        for (var n = lane; n < SIDE * WIDTH; n += SIDE * SIDE) {
            other[n / WIDTH * PITCH + n % WIDTH] =
                key_at(min(start + n / WIDTH, end - 1u), head + n % WIDTH);
        }
        workgroupBarrier();
        var pair = product(r, j);
        if start + j >= end { pair.x = LOWEST; }
        slopes[lane] = pair;
        workgroupBarrier();
        var peak = largest;
        for (var i = 0u; i < SIDE; i += 1u) { peak = max(peak, slopes[r * SIDE + i].x); }
        let fade = exp(largest - peak);
        largest = peak;
        workgroupBarrier();
        slopes[lane] = exp(pair.x - peak) * vec2(pair.y, 1.0);
        workgroupBarrier();
        total *= fade;
        for (var i = 0u; i < SIDE; i += 1u) { total += slopes[r * SIDE + i]; }
        for (var d = j; d < WIDTH; d += SIDE) {
            var sum = totals[r * WIDTH + d] * fade;
            for (var i = 0u; i < SIDE; i += 1u) {
                sum += slopes[r * SIDE + i] * other[i * PITCH + d].x;
            }
            totals[r * WIDTH + d] = sum;
        }
        workgroupBarrier();
    }
    let row = first + r;
    if row < end {
        let mean = total.x / total.y;
        for (var d = j; d < WIDTH; d += SIDE) {
            let sum = totals[r * WIDTH + d];
            dqkv[row * 3u * dims.hidden + head + d] = (sum.x - mean * sum.y) / total.y * dims.scale;
        }
        if j == 0u {
            let place = (row * (dims.hidden / WIDTH) + group.y) * 3u;
            statistics[place] = largest;
            statistics[place + 1u] = total.y;
            statistics[place + 2u] = mean;
        }
    }
}

@compute @workgroup_size(SIDE * SIDE)
fn backward_keys(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let first = tiles[group.x * 2u] + group.z * SIDE;
    let prompt = tiles[group.x * 2u + 1u];
    let head = group.y * WIDTH;
    let begin = offsets[prompt];
    let end = offsets[prompt + 1u];
    for (var n = lane; n < SIDE * WIDTH; n += SIDE * SIDE) {
        own[n / WIDTH * PITCH + n % WIDTH] =
            key_at(min(first + n / WIDTH, end - 1u), head + n % WIDTH);
        totals[n] = vec2(0.0);
    }
    let r = lane / SIDE;
    let j = lane % SIDE;
    for (var start = begin; start < end; start += SIDE) {
        for (var n = lane; n < SIDE * WIDTH; n += SIDE * SIDE) {
            other[n / WIDTH * PITCH + n % WIDTH] =
                query_at(min(start + n / WIDTH, end - 1u), head + n % WIDTH);
        }
        workgroupBarrier();
        let pair = product(r, j);
        let place = (min(start + j, end - 1u) * (dims.hidden / WIDTH) + group.y) * 3u;
        var p = exp(pair.x - statistics[place]) / statistics[place + 1u];
        if start + j >= end { p = 0.0; }
        slopes[lane] = p * vec2(pair.y - statistics[place + 2u], 1.0);
        workgroupBarrier();
        for (var d = j; d < WIDTH; d += SIDE) {
            var sum = totals[r * WIDTH + d];
            for (var i = 0u; i < SIDE; i += 1u) {
                sum += slopes[r * SIDE + i] * other[i * PITCH + d];
            }
            totals[r * WIDTH + d] = sum;
        }
        workgroupBarrier();
    }
    if first + r < end {
        let place = ((first + r) * 3u + 1u) * dims.hidden + head;
        for (var d = j; d < WIDTH; d += SIDE) {
            dqkv[place + d] = totals[r * WIDTH + d].x;
            dqkv[place + dims.hidden + d] = totals[r * WIDTH + d].y;
        }
    }
}
