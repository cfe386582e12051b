// contrastive: cross-entropy of softmax(cos(z[b], E[j]) / tau + priors[j]) against a few targets,
// and its gradients
//
//   shapes   z, u, dz: [B, D]   theta, grad: E and dE [M, D] at rows_at and grad_at
//            lengths, weights, losses: [B]   priors: [M]   cosines, slopes: [B, C]
//            candidates: [B, C], padded with 2^32 - 1   target_ids, target_mass: [B, S]
//            row_lengths: [B, C] when sampled, else [M]
//            rows: [R], starts: [R + 1], entries: [L]: the places of each row of E
//   layout   row-major f32, contiguous; C = M and the candidates are 0..M in the entries *_all
//   entries  one workgroup each; = overwrites, += adds
//            unit_queries        per example              u, lengths                      =
//            length_of_rows      per row of E             row_lengths                     =
//            similarity_sampled  per (place, example)     cosines, slopes, row_lengths    =
//            similarity_all      per (row, 8 examples)    cosines, slopes                 =
//            loss                per example              slopes, losses                  =
//            dz_sampled, dz_all  per example              dz                              =
//            de_sampled, de_all  per row of E             grad                            +=
//   order    lanes in steps of WG, then a tree; dz: places ascending; grad: entries or examples
//            ascending
//   scratch  partial of shared/reduce.wgsl: written before it is read
//   uses     shared/reduce.wgsl
//
// similarity leaves the target mass in slopes, -1 where there is no candidate. loss turns it into
// w (Q p - q) / (tau |E[j]|), the derivative by u . E[j].

const LEAST = 1e-12;
const LOWEST = -3.0e38;
const NONE = 0xffffffffu;
const EXAMPLES = 8u; // of one workgroup of similarity_all

struct Dims {
    examples: u32,
    width: u32,
    columns: u32,     // C
    models: u32,      // rows of E, or of the list `rows`
    targets: u32,     // S
    rows_at: u32,
    grad_at: u32,
    length_step: u32, // C when sampled, else 0
    inverse_tau: f32,
}

@group(0) @binding(0) var<uniform> dims: Dims;
@group(0) @binding(1) var<storage, read> z: array<f32>; // [B, D]
@group(0) @binding(2) var<storage, read> theta: array<f32>; // E [M, D] at rows_at
@group(0) @binding(3) var<storage, read> candidates: array<u32>; // [B, C]
@group(0) @binding(4) var<storage, read> target_ids: array<u32>; // [B, S]
@group(0) @binding(5) var<storage, read> target_mass: array<f32>; // [B, S]
@group(0) @binding(6) var<storage, read> weights: array<f32>; // [B]
@group(0) @binding(7) var<storage, read> rows: array<u32>; // [R]
@group(0) @binding(8) var<storage, read> starts: array<u32>; // [R + 1]
@group(0) @binding(9) var<storage, read> entries: array<u32>; // [L]
@group(0) @binding(10) var<storage, read_write> u: array<f32>; // [B, D]
@group(0) @binding(11) var<storage, read_write> lengths: array<f32>; // [B]
@group(0) @binding(12) var<storage, read_write> row_lengths: array<f32>; // [B, C] or [M]
@group(0) @binding(13) var<storage, read_write> cosines: array<f32>; // [B, C]
@group(0) @binding(14) var<storage, read_write> slopes: array<f32>; // [B, C]
@group(0) @binding(15) var<storage, read_write> losses: array<f32>; // [B]
@group(0) @binding(16) var<storage, read_write> dz: array<f32>; // [B, D]
@group(0) @binding(17) var<storage, read_write> grad: array<f32>; // dE [M, D] at grad_at
@group(0) @binding(18) var<storage, read> priors: array<f32>; // [M]

@compute @workgroup_size(WG)
fn unit_queries(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = group.x * dims.width;
    var squares = 0.0;
    for (var c = lane; c < dims.width; c += WG) { squares += z[row + c] * z[row + c]; }
    let length = max(sqrt(sum_lanes(lane, squares)), LEAST);
    for (var c = lane; c < dims.width; c += WG) { u[row + c] = z[row + c] / length; }
    if lane == 0u { lengths[group.x] = length; }
}

fn length_of(row: u32, lane: u32) -> f32 {
    var squares = 0.0;
    for (var c = lane; c < dims.width; c += WG) { squares += theta[row + c] * theta[row + c]; }
    return max(sqrt(sum_lanes(lane, squares)), LEAST);
}

fn similarity(query: u32, row: u32, lane: u32) -> f32 {
    var products = 0.0;
    for (var c = lane; c < dims.width; c += WG) { products += u[query + c] * theta[row + c]; }
    return sum_lanes(lane, products);
}

fn mass_of(b: u32, id: u32) -> f32 {
    var mass = 0.0;
    for (var t = b * dims.targets; t < (b + 1u) * dims.targets; t += 1u) {
        if target_ids[t] == id { mass += target_mass[t]; }
    }
    return mass;
}

@compute @workgroup_size(WG)
fn length_of_rows(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    for (var j = group.x; j < dims.models; j += count.x) {
        let length = length_of(dims.rows_at + j * dims.width, lane);
        if lane == 0u { row_lengths[j] = length; }
    }
}

@compute @workgroup_size(WG)
fn similarity_sampled(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let place = group.y * dims.columns + group.x;
    let id = candidates[place];
    // Every lane meets the barriers, also where there is no candidate: row 0 stands in.
    let row = dims.rows_at + select(id, 0u, id == NONE) * dims.width;
    let length = length_of(row, lane);
    let product = similarity(group.y * dims.width, row, lane);
    if lane == 0u {
        row_lengths[place] = length;
        cosines[place] = product / length;
        if id == NONE { slopes[place] = -1.0; } else { slopes[place] = mass_of(group.y, id); }
    }
}

@compute @workgroup_size(WG)
fn similarity_all(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let last = min((group.y + 1u) * EXAMPLES, dims.examples);
    for (var j = group.x; j < dims.models; j += count.x) {
        for (var b = group.y * EXAMPLES; b < last; b += 1u) {
            let product = similarity(b * dims.width, dims.rows_at + j * dims.width, lane);
            if lane == 0u {
                cosines[b * dims.columns + j] = product / row_lengths[j];
                slopes[b * dims.columns + j] = mass_of(b, j);
            }
        }
    }
}

// Of the k-th candidate in the row of b.
fn logit(row: u32, k: u32) -> f32 {
    var id = k;
    if dims.length_step != 0u { id = candidates[row + k]; }
    return cosines[row + k] * dims.inverse_tau + priors[id];
}

@compute @workgroup_size(WG)
fn loss(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = group.x * dims.columns;
    var largest = LOWEST;
    var own = 0.0;
    for (var k = lane; k < dims.columns; k += WG) {
        let q = slopes[row + k];
        if q >= 0.0 {
            largest = max(largest, logit(row, k));
            own += q;
        }
    }
    let peak = max_lanes(lane, largest);
    let mass = sum_lanes(lane, own);
    var sum = 0.0;
    var reached = 0.0;
    for (var k = lane; k < dims.columns; k += WG) {
        let q = slopes[row + k];
        if q >= 0.0 {
            let s = logit(row, k) - peak;
            sum += exp(s);
            reached += q * s;
        }
    }
    // At least 1, unless there is no candidate at all.
    let total = max(sum_lanes(lane, sum), 1e-30);
    let expected = sum_lanes(lane, reached);
    let weight = weights[group.x];
    for (var k = lane; k < dims.columns; k += WG) {
        let q = slopes[row + k];
        var slope = 0.0;
        if q >= 0.0 {
            let p = exp(logit(row, k) - peak) / total;
            let row_length = row_lengths[group.x * dims.length_step + k];
            slope = weight * (mass * p - q) * dims.inverse_tau / row_length;
        }
        slopes[row + k] = slope;
    }
    if lane == 0u { losses[group.x] = weight * (mass * log(total) - expected); }
}

// dz[row] holds the sum of slope E[j] when this is called; each lane reads only what it wrote.
fn finish_dz(b: u32, lane: u32) {
    let row = b * dims.width;
    var products = 0.0;
    for (var c = lane; c < dims.width; c += WG) { products += dz[row + c] * u[row + c]; }
    let length = lengths[b];
    let along = select(0.0, sum_lanes(lane, products), length > LEAST);
    for (var c = lane; c < dims.width; c += WG) {
        dz[row + c] = (dz[row + c] - along * u[row + c]) / length;
    }
}

@compute @workgroup_size(WG)
fn dz_sampled(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = group.x * dims.columns;
    for (var c = lane; c < dims.width; c += WG) {
        var sum = 0.0;
        for (var k = 0u; k < dims.columns; k += 1u) {
            let id = candidates[row + k];
            if id != NONE { sum += slopes[row + k] * theta[dims.rows_at + id * dims.width + c]; }
        }
        dz[group.x * dims.width + c] = sum;
    }
    finish_dz(group.x, lane);
}

@compute @workgroup_size(WG)
fn dz_all(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = group.x * dims.columns;
    for (var c = lane; c < dims.width; c += WG) {
        var sum = 0.0;
        for (var j = 0u; j < dims.columns; j += 1u) {
            sum += slopes[row + j] * theta[dims.rows_at + j * dims.width + c];
        }
        dz[group.x * dims.width + c] = sum;
    }
    finish_dz(group.x, lane);
}

// What the direction of row j takes out of its gradient, as a factor of E[j].
fn along_row(j: u32, lane: u32, products: f32) -> f32 {
    let length = length_of(dims.rows_at + j * dims.width, lane);
    return select(0.0, sum_lanes(lane, products) / length, length > LEAST);
}

@compute @workgroup_size(WG)
fn de_sampled(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    for (var i = group.x; i < dims.models; i += count.x) {
        let j = rows[i];
        let end = starts[i + 1u];
        var products = 0.0;
        for (var e = starts[i] + lane; e < end; e += WG) {
            products += slopes[entries[e]] * cosines[entries[e]];
        }
        let along = along_row(j, lane, products);
        for (var c = lane; c < dims.width; c += WG) {
            var sum = 0.0;
            for (var e = starts[i]; e < end; e += 1u) {
                sum += slopes[entries[e]] * u[entries[e] / dims.columns * dims.width + c];
            }
            let at = j * dims.width + c;
            grad[dims.grad_at + at] += sum - along * theta[dims.rows_at + at];
        }
    }
}

@compute @workgroup_size(WG)
fn de_all(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    for (var j = group.x; j < dims.models; j += count.x) {
        var products = 0.0;
        for (var b = lane; b < dims.examples; b += WG) {
            products += slopes[b * dims.columns + j] * cosines[b * dims.columns + j];
        }
        let along = along_row(j, lane, products);
        for (var c = lane; c < dims.width; c += WG) {
            var sum = 0.0;
            for (var b = 0u; b < dims.examples; b += 1u) {
                sum += slopes[b * dims.columns + j] * u[b * dims.width + c];
            }
            let at = j * dims.width + c;
            grad[dims.grad_at + at] += sum - along * theta[dims.rows_at + at];
        }
    }
}
