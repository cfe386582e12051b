// top_k: the k best of each row, best first, equal scores by the smaller id; exact
//
//   shapes   s: [B, M]   found_scores, found_ids: [B, chunks, k]   scores, ids: [B, k]
//   layout   row-major, contiguous
//   entries  chunks    one workgroup per (CHUNK of a row, row)   found   =   (overwrites)
//            merge     one workgroup per row                     ids, scores   =   (overwrites)
//   order    rank 0 first; each rank is the best after the one before, so nothing is marked
//   scratch  best_scores, best_ids: written before they are read
//   uses     nothing

override WG: u32 = 64u; // lanes per workgroup, a power of two
const CHUNK = 1024u; // scores of a workgroup of `chunks`
const ABOVE_ALL = 3.4e38;
const BELOW_ALL = -3.4e38;
const NOBODY = 0xffffffffu;

struct Dims { models: u32, chunks: u32, k: u32 }

@group(0) @binding(0) var<uniform> dims: Dims;
@group(0) @binding(1) var<storage, read> s: array<f32>; // [B, M]
@group(0) @binding(2) var<storage, read_write> found_scores: array<f32>; // [B, chunks, k]
@group(0) @binding(3) var<storage, read_write> found_ids: array<u32>; // [B, chunks, k]
@group(0) @binding(4) var<storage, read_write> scores: array<f32>; // [B, k]
@group(0) @binding(5) var<storage, read_write> ids: array<u32>; // [B, k]

struct Model { score: f32, id: u32 }

var<workgroup> best_scores: array<f32, WG>;
var<workgroup> best_ids: array<u32, WG>;

fn before(a: Model, b: Model) -> bool {
    return a.score > b.score || (a.score == b.score && a.id < b.id);
}

// The best of all lanes' own bests; every lane must call this.
fn best_of_lanes(lane: u32, own: Model) -> Model {
    best_scores[lane] = own.score;
    best_ids[lane] = own.id;
    workgroupBarrier();
    for (var half = WG / 2u; half > 0u; half /= 2u) {
        if lane < half {
            let other = Model(best_scores[lane + half], best_ids[lane + half]);
            if before(other, Model(best_scores[lane], best_ids[lane])) {
                best_scores[lane] = other.score;
                best_ids[lane] = other.id;
            }
        }
        workgroupBarrier();
    }
    let best = Model(best_scores[0], best_ids[0]);
    workgroupBarrier();
    return best;
}

@compute @workgroup_size(WG)
fn chunks(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = group.y * dims.models;
    let begin = group.x * CHUNK;
    let end = min(begin + CHUNK, dims.models);
    let place = (group.y * dims.chunks + group.x) * dims.k;
    var last = Model(ABOVE_ALL, 0u);
    for (var rank = 0u; rank < dims.k; rank += 1u) {
        var own = Model(BELOW_ALL, NOBODY);
        for (var m = begin + lane; m < end; m += WG) {
            let model = Model(s[row + m], m);
            if before(last, model) && before(model, own) { own = model; }
        }
        last = best_of_lanes(lane, own);
        if lane == 0u {
            found_scores[place + rank] = last.score;
            found_ids[place + rank] = last.id;
        }
    }
}

@compute @workgroup_size(WG)
fn merge(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let count = dims.chunks * dims.k;
    let row = group.x * count;
    var last = Model(ABOVE_ALL, 0u);
    for (var rank = 0u; rank < dims.k; rank += 1u) {
        var own = Model(BELOW_ALL, NOBODY);
        for (var n = lane; n < count; n += WG) {
            let model = Model(found_scores[row + n], found_ids[row + n]);
            if before(last, model) && before(model, own) { own = model; }
        }
        last = best_of_lanes(lane, own);
        if lane == 0u {
            scores[group.x * dims.k + rank] = last.score;
            ids[group.x * dims.k + rank] = last.id;
        }
    }
}
