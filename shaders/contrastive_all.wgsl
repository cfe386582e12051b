// contrastive_all: contrastive's loss over all models and its gradients, in three dispatches
//
//   c[b,j] = z[b] . E[j] / (|z[b]| |E[j]|), s = c / tau + priors[j], p = softmax of a row of s
//   loss[b] = w (sum_j q (log-sum-exp(s[b]) - s)), g[b,j] = w (Q p - q) / tau, Q = sum_j q
//   dE[j] += (sum_b g u[b] - (sum_b g c) v[j]) / |E[j]|, u = z / |z|, v = E / |E|
//   dz[b] = (t - (t . u) u) / |z[b]|, t = sum_j g v[j]
//
//   shapes   z, dz: [B, D]   theta, grad: E and dE [M, D] at rows_at and grad_at
//            priors: [M]   target_ids, target_mass: [B, S]   weights, losses: [B]
//            table: [1 + B, 2 M + 1]; row 0 has |E[j]|, row 1 + b has c, then q, then |z[b]|
//            parts: [G, B, 4], of a workgroup's models the largest s and the sum of exp above it,
//            and of all models Q and w   shares: [G, B, D + 4], t and the loss of its models
//   layout   row-major f32, contiguous; z, theta, parts, shares, grad and dz as vectors of four:
//            D, rows_at and grad_at are multiples of four
//   entries  scores   G workgroups, each of every G-th tile of TILE models   table, parts   =
//                     (overwrites)
//            back     the same                                        shares   =, grad   += (adds)
//            finish   one workgroup per example                       dz, losses   =
//   order    columns in COLUMNS sums for a length, ascending for a product; examples ascending;
//            models ascending in a tile, tiles in a workgroup, workgroups in turns
//   scratch  zs, es, squares, tile, turned, missing, joined, row, inverse, along, halves; partial
//            of shared/reduce.wgsl: written before they are read
//   uses     shared/reduce.wgsl
//
// E is read twice. A row shorter than LEAST counts as that long, and its gradient keeps its part
// along the row.

const LEAST = 1e-12;
const LOWEST = -3.0e38;
const LANES = 128u; // of scores and of back
const TILE = 16u; // models of a tile
const BATCH = 32u; // examples that are taken at a time
const COLUMNS = 8u; // vectors of a row that are staged at a time
const PITCH = 9u; // from one staged row to the next
const ACROSS = 17u; // from one example to the next in a tile
const TURN = 8u; // parts or shares that a lane loads at a time

struct Dims {
    examples: u32,
    width: u32,   // D / 4
    models: u32,
    targets: u32, // S
    rows_at: u32, // in vectors
    grad_at: u32,
    groups: u32,  // G
    inverse_tau: f32,
}

@group(0) @binding(0) var<uniform> dims: Dims;
@group(0) @binding(1) var<storage, read> z: array<vec4<f32>>; // [B, D / 4]
@group(0) @binding(2) var<storage, read> theta: array<vec4<f32>>; // E [M, D / 4] at rows_at
@group(0) @binding(3) var<storage, read> priors: array<f32>; // [M]
@group(0) @binding(4) var<storage, read> target_ids: array<u32>; // [B, S]
@group(0) @binding(5) var<storage, read> target_mass: array<f32>; // [B, S]
@group(0) @binding(6) var<storage, read> weights: array<f32>; // [B]
@group(0) @binding(7) var<storage, read_write> table: array<f32>; // [1 + B, 2 M + 1]
@group(0) @binding(8) var<storage, read_write> parts: array<vec4<f32>>; // [G, B]
@group(0) @binding(9) var<storage, read_write> shares: array<vec4<f32>>; // [G, B, D / 4 + 1]
@group(0) @binding(10) var<storage, read_write> grad: array<vec4<f32>>; // dE [M, D / 4] at grad_at
@group(0) @binding(11) var<storage, read_write> dz: array<vec4<f32>>; // [B, D / 4]
@group(0) @binding(12) var<storage, read_write> losses: array<f32>; // [B]

var<workgroup> zs: array<vec4<f32>, 288>; // [BATCH, PITCH]
var<workgroup> es: array<vec4<f32>, 144>; // [TILE, PITCH]
var<workgroup> squares: array<f32, 384>; // [BATCH + TILE, COLUMNS]
var<workgroup> tile: array<f32, 544>; // [BATCH, ACROSS]: s, or g
var<workgroup> turned: array<f32, 544>; // [BATCH, ACROSS]: g c
var<workgroup> missing: array<f32, 544>; // [BATCH, ACROSS]: losses without weights
var<workgroup> joined: array<vec2<f32>, LANES>;
var<workgroup> row: array<vec4<f32>, BATCH>; // largest s, log of the sum, w Q / (tau sum), w / tau
var<workgroup> inverse: array<f32, BATCH>; // 1 / |z|
var<workgroup> along: array<vec2<f32>, TILE>; // sum of g c, and 1 / |E|

fn example_at(b: u32, column: u32) -> vec4<f32> {
    let place = min(b, dims.examples - 1u) * dims.width + min(column, dims.width - 1u);
    return select(vec4<f32>(), z[place], column < dims.width);
}

fn model_at(j: u32, column: u32) -> vec4<f32> {
    let place = min(j, dims.models - 1u) * dims.width + min(column, dims.width - 1u);
    return select(vec4<f32>(), theta[dims.rows_at + place], column < dims.width);
}

fn length_of(staged: u32) -> f32 {
    var sum = 0.0;
    for (var k = 0u; k < COLUMNS; k += 1u) { sum += squares[staged * COLUMNS + k]; }
    return max(sqrt(sum), LEAST);
}

fn mass_of(b: u32, id: u32) -> f32 {
    var mass = 0.0;
    for (var t = b * dims.targets; t < (b + 1u) * dims.targets; t += 1u) {
        mass += select(0.0, target_mass[t], target_ids[t] == id);
    }
    return mass;
}

// Sums of exp above their maxima: (maximum, sum).
fn join(a: vec2<f32>, b: vec2<f32>) -> vec2<f32> {
    let peak = max(a.x, b.x);
    return vec2(peak, a.y * exp(a.x - peak) + b.y * exp(b.x - peak));
}

// The products of four examples from `first` on with a model, staged step by step; leaves the
// squares of the rows in `squares`. The next step's loads are under way during the products.
fn products_of(first: u32, model: u32, lane: u32) -> vec4<f32> {
    let r = lane / COLUMNS;
    let c = lane % COLUMNS;
    let b = lane / TILE * 4u * PITCH;
    let j = lane % TILE * PITCH;
    var products = vec4<f32>();
    var own = vec3<f32>();
    var next0 = example_at(first + r, c);
    var next1 = example_at(first + r + 16u, c);
    var next2 = model_at(model + r, c);
    for (var start = COLUMNS; start < dims.width + COLUMNS; start += COLUMNS) {
        zs[r * PITCH + c] = next0;
        zs[(r + 16u) * PITCH + c] = next1;
        es[r * PITCH + c] = next2;
        own += vec3(dot(next0, next0), dot(next1, next1), dot(next2, next2));
        workgroupBarrier();
        next0 = example_at(first + r, start + c);
        next1 = example_at(first + r + 16u, start + c);
        next2 = model_at(model + r, start + c);
        for (var k = 0u; k < COLUMNS; k += 1u) {
            let v = es[j + k];
            products += vec4(
                dot(zs[b + k], v),
                dot(zs[b + PITCH + k], v),
                dot(zs[b + 2u * PITCH + k], v),
                dot(zs[b + 3u * PITCH + k], v),
            );
        }
        workgroupBarrier();
    }
    squares[lane] = own.x;
    squares[LANES + lane] = own.y;
    squares[2u * LANES + lane] = own.z;
    workgroupBarrier();
    return products;
}

// A lane has a model of the tile and four examples.
@compute @workgroup_size(LANES)
fn scores(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let j = lane % TILE;
    let b = lane / TILE * 4u;
    let last = 2u * dims.models;
    for (var first = 0u; first < dims.examples; first += BATCH) {
        var total = vec2(LOWEST, 0.0);
        for (var origin = group.x * TILE; origin < dims.models; origin += dims.groups * TILE) {
            let model = origin + j;
            let products = products_of(first, origin, lane);
            let length = length_of(BATCH + j);
            for (var n = 0u; n < 4u; n += 1u) {
                let query = first + b + n;
                let own = length_of(b + n);
                var s = LOWEST;
                if model < dims.models && query < dims.examples {
                    let cosine = products[n] / own / length;
                    let place = (1u + query) * (last + 1u);
                    table[place + model] = cosine;
                    table[place + dims.models + model] = mass_of(query, model);
                    if model == 0u { table[place + last] = own; }
                    s = cosine * dims.inverse_tau + priors[model];
                }
                tile[(b + n) * ACROSS + j] = s;
            }
            if first == 0u && b == 0u && model < dims.models { table[model] = length; }
            workgroupBarrier();
            if lane < BATCH {
                var peak = LOWEST;
                var sum = 0.0;
                for (var k = 0u; k < TILE; k += 1u) { peak = max(peak, tile[lane * ACROSS + k]); }
                for (var k = 0u; k < TILE; k += 1u) { sum += exp(tile[lane * ACROSS + k] - peak); }
                total = join(total, vec2(peak, sum));
            }
        }
        let query = first + lane;
        if lane < BATCH && query < dims.examples {
            var mass = 0.0;
            for (var t = query * dims.targets; t < (query + 1u) * dims.targets; t += 1u) {
                mass += select(0.0, target_mass[t], target_ids[t] < dims.models);
            }
            parts[group.x * dims.examples + query] = vec4(total, mass, weights[query]);
        }
    }
}

// Fills row and inverse for the examples from `first` on.
fn prepare(first: u32, lane: u32) {
    let query = min(first + lane % BATCH, dims.examples - 1u);
    var total = vec2(LOWEST, 0.0);
    for (var t = lane / BATCH * TURN; t < dims.groups; t += LANES / BATCH * TURN) {
        var next: array<vec4<f32>, TURN>;
        for (var i = 0u; i < TURN; i += 1u) {
            next[i] = parts[min(t + i, dims.groups - 1u) * dims.examples + query];
        }
        for (var i = 0u; i < TURN; i += 1u) {
            if t + i < dims.groups { total = join(total, next[i].xy); }
        }
    }
    joined[lane] = total;
    workgroupBarrier();
    if lane < BATCH {
        let low = join(joined[lane], joined[lane + BATCH]);
        let all = join(low, join(joined[lane + 2u * BATCH], joined[lane + 3u * BATCH]));
        let own = parts[query];
        let slope = own.w * dims.inverse_tau;
        row[lane] = vec4(all.x, log(all.y), slope * own.z / all.y, slope);
        inverse[lane] = 1.0 / table[(1u + query) * (2u * dims.models + 1u) + 2u * dims.models];
    }
    workgroupBarrier();
}

// Fills tile, turned and missing for a tile of models.
fn slopes_of(first: u32, origin: u32, lane: u32) {
    for (var n = lane; n < BATCH * TILE; n += LANES) {
        let b = n / TILE;
        let model = origin + n % TILE;
        var slope = vec3<f32>();
        if first + b < dims.examples && model < dims.models {
            let own = row[b];
            let place = (1u + first + b) * (2u * dims.models + 1u) + model;
            let cosine = table[place];
            let q = table[place + dims.models];
            let s = cosine * dims.inverse_tau + priors[model] - own.x;
            let g = own.z * exp(s) - own.w * q;
            slope = vec3(g, g * cosine, q * (own.y - s));
        }
        let here = b * ACROSS + n % TILE;
        tile[here] = slope.x;
        turned[here] = slope.y;
        missing[here] = slope.z;
    }
    workgroupBarrier();
}

// A lane has one vector of the columns.
@compute @workgroup_size(LANES)
fn back(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let wide = dims.width + 1u;
    for (var first = 0u; first < dims.examples; first += BATCH) {
        prepare(first, lane);
        let count = min(dims.examples - first, BATCH);
        let own = (group.x * dims.examples + first) * wide;
        var loss = 0.0;
        for (var origin = group.x * TILE; origin < dims.models; origin += dims.groups * TILE) {
            slopes_of(first, origin, lane);
            if lane < TILE {
                let length = table[min(origin + lane, dims.models - 1u)];
                var sum = 0.0;
                for (var b = 0u; b < BATCH; b += 1u) { sum += turned[b * ACROSS + lane]; }
                along[lane] = vec2(select(0.0, sum, length > LEAST), 1.0 / length);
            } else if lane >= BATCH && lane < 2u * BATCH {
                for (var k = 0u; k < TILE; k += 1u) {
                    loss += missing[(lane - BATCH) * ACROSS + k];
                }
            }
            workgroupBarrier();
            for (var d = lane; d < dims.width; d += LANES) {
                var unit: array<vec4<f32>, TILE>;
                var sum: array<vec4<f32>, TILE>;
                for (var k = 0u; k < TILE; k += 1u) {
                    unit[k] = model_at(origin + k, d) * along[k].y;
                    sum[k] = -along[k].x * unit[k];
                }
                for (var start = 0u; start < count; start += 4u) {
                    var u: array<vec4<f32>, 4>;
                    for (var i = 0u; i < 4u; i += 1u) {
                        u[i] = example_at(first + start + i, d) * inverse[start + i];
                    }
                    for (var i = 0u; i < 4u; i += 1u) {
                        var share = vec4<f32>();
                        for (var k = 0u; k < TILE; k += 1u) {
                            let g = tile[(start + i) * ACROSS + k];
                            sum[k] += g * u[i];
                            share += g * unit[k];
                        }
                        if start + i < count {
                            let place = own + (start + i) * wide + d;
                            if origin >= dims.groups * TILE { share += shares[place]; }
                            shares[place] = share;
                        }
                    }
                }
                for (var k = 0u; k < TILE; k += 1u) {
                    if origin + k < dims.models {
                        let place = dims.grad_at + (origin + k) * dims.width + d;
                        grad[place] += sum[k] * along[k].y;
                    }
                }
            }
            workgroupBarrier();
        }
        if lane >= BATCH && lane - BATCH < count {
            let b = lane - BATCH;
            let weighted = loss * row[b].w / dims.inverse_tau;
            shares[own + b * wide + dims.width] = vec4(weighted, 0.0, 0.0, 0.0);
        }
        workgroupBarrier();
    }
}

var<workgroup> halves: array<vec4<f32>, 128>;

// Two halves of the lanes share the workgroups' parts of a column; WG is 256.
@compute @workgroup_size(WG)
fn finish(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let wide = dims.width + 1u;
    let step = dims.examples * wide;
    let own = group.x * wide;
    let length = table[(1u + group.x) * (2u * dims.models + 1u) + 2u * dims.models];
    let half = lane / 128u;
    var products = 0.0;
    for (var start = 0u; start < dims.width; start += 128u) {
        let d = start + lane % 128u;
        var sum = vec4<f32>();
        for (var t = half * TURN; t < dims.groups; t += 2u * TURN) {
            var next: array<vec4<f32>, TURN>;
            for (var i = 0u; i < TURN; i += 1u) {
                let part = min(t + i, dims.groups - 1u);
                next[i] = shares[part * step + own + min(d, dims.width - 1u)];
            }
            for (var i = 0u; i < TURN; i += 1u) {
                sum += select(vec4<f32>(), next[i], t + i < dims.groups);
            }
        }
        if half == 1u { halves[lane % 128u] = sum; }
        workgroupBarrier();
        if half == 0u && d < dims.width {
            sum += halves[lane];
            dz[group.x * dims.width + d] = sum;
            products += dot(sum, example_at(group.x, d) / length);
        }
        workgroupBarrier();
    }
    let parallel = select(0.0, sum_lanes(lane, products), length > LEAST);
    if half == 0u {
        for (var d = lane; d < dims.width; d += 128u) {
            let place = group.x * dims.width + d;
            dz[place] = (dz[place] - parallel * (z[place] / length)) / length;
        }
    }
    var loss = 0.0;
    for (var t = lane; t < dims.groups; t += WG) { loss += shares[t * step + own + dims.width].x; }
    let sum = sum_lanes(lane, loss);
    if lane == 0u { losses[group.x] = sum; }
}
