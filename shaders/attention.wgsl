// attention: y = softmax(q k^T / sqrt(width)) v, within each prompt and head; no mask, no padding
//
//   shapes   qkv: [T, 3 H]   offsets: [B + 1]   tiles: [J, 2], first row and prompt of each query tile   y: [T, H]
//   layout   row-major f32, contiguous; a row of qkv is query, key, value, each [heads, WIDTH]
//   entries  forward    one workgroup per (query tile, head)   y   =   (overwrites)
//   order    keys ascending in steps of KEYS from the prompt's first, with a running maximum
//   scratch  queries, keys, values, weights, sums: written before they are read
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
            for (var d = 0u; d < WIDTH; d += 1u) { score += queries[q * WIDTH + d] * keys[j * WIDTH + d]; }
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
