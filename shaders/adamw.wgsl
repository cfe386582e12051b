// adamw: theta = theta (1 - rate decay) - rate (m / c1) / (sqrt(v / c2) + eps), m and v being
// moving means of g and g^2
//
//   shapes   theta, grad, m, v: [N]   ids: [R], rows of a matrix WIDTH wide at OFFSET
//            spans: [S, FIELDS]   partials: [P], one a workgroup of squares
//            losses: [L]   others: [L2]   norm: [2]
//   layout   flat f32; a span is LEN elements from OFFSET on, or, where WIDTH is not 0, those of
//            the rows in ids; the numbers of a span are as bits
//   entries  squares   4 WG elements in a turn   partials   =   (overwrites), sums of grad^2
//            length    one workgroup             norm       =   (overwrites), sqrt of their sum,
//                                                and 1, or 0 where that or a loss is not finite
//            step      4 WG elements in a turn   theta, m, v   =   (in place); grad   =   (zeroed)
//                                                nothing where norm[1] is 0
//            shrink    WG elements in a turn     theta   =   (in place), multiplied by keep
//   order    spans in turn, four sums of a lane, which are joined in order, then a tree over lanes;
//            partials in steps of WG, then a tree
//   scratch  partial of shared/reduce.wgsl: written before it is read
//   uses     shared/reduce.wgsl

const B1 = 0.9;
const B2 = 0.999;
const EPS = 1e-8;
const FIELDS = 8u; // of a span
const TURN = 4u; // elements that a lane loads at a time

struct Dims {
    offset: u32, // of a single span, and what it has
    len: u32,
    width: u32,
    stride: u32, // lanes of all workgroups
    spans: u32,
    partials: u32,
    losses: u32,
    others: u32,
    limit: f32,  // largest norm of the gradients
    keep: f32,
}

@group(0) @binding(0) var<uniform> dims: Dims;
@group(0) @binding(1) var<storage, read_write> grad: array<f32>; // [N]
@group(0) @binding(2) var<storage, read> ids: array<u32>; // [R], read where rows are listed
@group(0) @binding(3) var<storage, read_write> theta: array<f32>; // [N]
@group(0) @binding(4) var<storage, read_write> m: array<f32>; // [N]
@group(0) @binding(5) var<storage, read_write> v: array<f32>; // [N]
@group(0) @binding(6) var<storage, read_write> partials: array<f32>; // [P]
@group(0) @binding(7) var<storage, read_write> norm: array<f32>; // [2]
@group(0) @binding(8) var<storage, read> spans: array<u32>; // [S, FIELDS]
@group(0) @binding(9) var<storage, read> losses: array<f32>; // [L]
@group(0) @binding(10) var<storage, read> others: array<f32>; // [L2]

// A span, and how its parameters move.
struct Span {
    offset: u32,
    len: u32,
    width: u32,    // of a listed row; 0: nothing is listed
    clipped: bool,
    rate: f32,
    keep: f32,
    c1: f32,
    c2: f32,
}

fn span_at(index: u32) -> Span {
    let first = index * FIELDS;
    return Span(
        spans[first],
        spans[first + 1u],
        spans[first + 2u],
        spans[first + 3u] != 0u,
        bitcast<f32>(spans[first + 4u]),
        bitcast<f32>(spans[first + 5u]),
        bitcast<f32>(spans[first + 6u]),
        bitcast<f32>(spans[first + 7u]),
    );
}

// Where element n is, of the last one at most.
fn place(offset: u32, width: u32, n: u32) -> u32 {
    if width == 0u { return offset + n; }
    return offset + ids[n / width] * width + n % width;
}

@compute @workgroup_size(WG)
fn squares(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    var sums = vec4<f32>();
    for (var index = 0u; index < dims.spans; index += 1u) {
        let span = span_at(index);
        for (var n = group.x * WG + lane; n < span.len; n += TURN * dims.stride) {
            var g = vec4<f32>();
            for (var i = 0u; i < TURN; i += 1u) {
                let at = n + i * dims.stride;
                let value = grad[place(span.offset, span.width, min(at, span.len - 1u))];
                g[i] = select(0.0, value, at < span.len);
            }
            sums += g * g;
        }
    }
    let total = sum_lanes(lane, ((sums.x + sums.y) + sums.z) + sums.w);
    if lane == 0u { partials[group.x] = total; }
}

// By bits: compilers may take every number to be finite.
fn is_finite(value: f32) -> bool { return (bitcast<u32>(value) & 0x7f800000u) != 0x7f800000u; }

@compute @workgroup_size(WG)
fn length(@builtin(local_invocation_index) lane: u32) {
    var sum = 0.0;
    for (var n = lane; n < dims.partials; n += WG) { sum += partials[n]; }
    let total = sqrt(sum_lanes(lane, sum));
    var broken = 0.0;
    for (var n = lane; n < dims.losses; n += WG) {
        broken += select(1.0, 0.0, is_finite(losses[n]));
    }
    for (var n = lane; n < dims.others; n += WG) {
        broken += select(1.0, 0.0, is_finite(others[n]));
    }
    let count = sum_lanes(lane, broken);
    if lane == 0u {
        norm[0] = total;
        norm[1] = select(0.0, 1.0, count == 0.0 && is_finite(total));
    }
}

@compute @workgroup_size(WG)
fn step(@builtin(global_invocation_id) id: vec3<u32>) {
    if norm[1] == 0.0 { return; }
    let clip = min(1.0, dims.limit / (norm[0] + 1e-6));
    for (var index = 0u; index < dims.spans; index += 1u) {
        let span = span_at(index);
        let scale = select(1.0, clip, span.clipped);
        for (var n = id.x; n < span.len; n += TURN * dims.stride) {
            var at: array<u32, TURN>;
            var g = vec4<f32>();
            var mean = vec4<f32>();
            var square = vec4<f32>();
            var value = vec4<f32>();
            for (var i = 0u; i < TURN; i += 1u) {
                at[i] = place(span.offset, span.width, min(n + i * dims.stride, span.len - 1u));
                g[i] = grad[at[i]];
                mean[i] = m[at[i]];
                square[i] = v[at[i]];
                value[i] = theta[at[i]];
            }
            g *= scale;
            mean = B1 * mean + (1.0 - B1) * g;
            square = B2 * square + (1.0 - B2) * g * g;
            value = value * span.keep
                - span.rate * (mean / span.c1) / (sqrt(square / span.c2) + EPS);
            for (var i = 0u; i < TURN; i += 1u) {
                if n + i * dims.stride < span.len {
                    grad[at[i]] = 0.0;
                    m[at[i]] = mean[i];
                    v[at[i]] = square[i];
                    theta[at[i]] = value[i];
                }
            }
        }
    }
}

@compute @workgroup_size(WG)
fn shrink(@builtin(global_invocation_id) id: vec3<u32>) {
    for (var n = id.x; n < dims.len; n += dims.stride) {
        theta[place(dims.offset, dims.width, n)] *= dims.keep;
    }
}
