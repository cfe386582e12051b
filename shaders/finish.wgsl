// finish: the answer for a prompt: s[b,m] += strength words[b,own[m]] for eligible models, the lowest
// score where bit m of the mask is not set; ln of the sum of exponentials of each domain's scores,
// the lowest score without members; the k best, equal scores by the smaller id; exact
//
//   shapes   s: [B, M]   words: [B, W]   own: [M], below W   members: [M], ids of domain 0, then 1, ...
//            offsets: [N + 1]   mask: [B, ceil(M / 32)], bit m % 32 of word m / 32   y: [B, R]
//            found: [B, C, k], (score, id)   results: [B, 2 k + N + R]: ids, scores, domains, y
//   layout   row-major, contiguous; scores in found and results by their bits
//   entries  whole   one workgroup per prompt of at most ROOM models   s   +=   (adds)   results   =
//            part    one per (ROOM models, prompt)                     s   +=   (adds)   found   =
//            join    one per (WG / span domains, prompt) and, as the first, one for the ranks and y
//                    results   =   (overwrites), from s and found of `part`
//   order    of a domain: members in steps of span lanes, then the lanes; the largest is subtracted.
//            Rank 0 first; each rank is the best after the one before, so nothing is marked
//   scratch  row, pairs, tops: written before they are read
//   uses     nothing

override ROOM: u32 = 3500u; // scores that a workgroup holds
const WG = 256u;
const AHEAD = 9u; // loads of a lane in flight: 2,304 of a workgroup
const TOPS = 16u;
const LOWEST = -3.0e38;
const ABOVE_ALL = 3.4e38;
const BELOW_ALL = -3.4e38;
const NOBODY = 0xffffffffu;

// span: lanes of a domain; words, mask: numbers of a row, 0 without them.
struct Dims {
    models: u32,
    domains: u32,
    k: u32,
    chunks: u32,
    span: u32,
    rank: u32,
    words: u32,
    mask: u32,
    strength: f32,
}

@group(0) @binding(0) var<uniform> dims: Dims;
@group(0) @binding(1) var<storage, read> words: array<f32>; // [B, W]
@group(0) @binding(2) var<storage, read> own: array<u32>; // [M]
@group(0) @binding(3) var<storage, read> members: array<u32>; // [M]
@group(0) @binding(4) var<storage, read> offsets: array<u32>; // [N + 1]
@group(0) @binding(5) var<storage, read> mask: array<u32>; // [B, ceil(M / 32)]
@group(0) @binding(6) var<storage, read> y: array<f32>; // [B, R]
@group(0) @binding(7) var<storage, read_write> s: array<f32>; // [B, M]
@group(0) @binding(8) var<storage, read_write> found: array<vec2<u32>>; // [B, C, k]
@group(0) @binding(9) var<storage, read_write> results: array<u32>; // [B, 2 k + N + R]

struct Model { score: f32, id: u32 }

var<workgroup> row: array<f32, ROOM>;
// Of each lane two numbers by their bits: a score and an id, or a largest score and a sum.
var<workgroup> pairs: array<vec2<u32>, WG>;
var<workgroup> tops: array<vec2<u32>, TOPS>;

// Brings the scores of `count` models from `first` on to row, and back to s.
fn gather(b: u32, first: u32, count: u32, lane: u32) {
    let last = max(count, 1u) - 1u;
    for (var n = 0u; n < count; n += AHEAD * WG) {
        var scores: array<f32, AHEAD>;
        var more: array<f32, AHEAD>;
        var bits: array<u32, AHEAD>;
        for (var i = 0u; i < AHEAD; i += 1u) {
            scores[i] = s[b * dims.models + first + min(n + i * WG + lane, last)];
            bits[i] = 1u;
        }
        if dims.words > 0u {
            var domains: array<u32, AHEAD>;
            for (var i = 0u; i < AHEAD; i += 1u) {
                domains[i] = own[first + min(n + i * WG + lane, last)];
            }
            for (var i = 0u; i < AHEAD; i += 1u) { more[i] = words[b * dims.words + domains[i]]; }
        }
        if dims.mask > 0u {
            for (var i = 0u; i < AHEAD; i += 1u) {
                let m = first + min(n + i * WG + lane, last);
                bits[i] = mask[b * dims.mask + m / 32u] >> (m % 32u);
            }
        }
        for (var i = 0u; i < AHEAD; i += 1u) {
            let place = n + i * WG + lane;
            if place < count {
                var score = scores[i];
                if score > LOWEST { score += dims.strength * more[i]; }
                if (bits[i] & 1u) == 0u { score = LOWEST; }
                row[place] = score;
                s[b * dims.models + first + place] = score;
            }
        }
    }
}

// A score, from row or, behind `part`, from s.
fn score_of(b: u32, m: u32, whole: bool) -> f32 {
    if whole { return row[m]; }
    return s[b * dims.models + m];
}

// Writes the domains from `first` on, WG / span of them; every lane must call this.
fn write_domains(b: u32, first: u32, whole: bool, lane: u32) {
    let domain = first + lane / dims.span;
    var largest = LOWEST;
    var sum = 0.0;
    if domain < dims.domains {
        let end = offsets[domain + 1u];
        for (var n = offsets[domain] + lane % dims.span; n < end; n += AHEAD * dims.span) {
            var ids: array<u32, AHEAD>;
            var scores: array<f32, AHEAD>;
            for (var i = 0u; i < AHEAD; i += 1u) { ids[i] = members[min(n + i * dims.span, end - 1u)]; }
            for (var i = 0u; i < AHEAD; i += 1u) { scores[i] = score_of(b, ids[i], whole); }
            // Those behind the end are the last member, which changes no maximum.
            var peak = largest;
            for (var i = 0u; i < AHEAD; i += 1u) { peak = max(peak, scores[i]); }
            sum *= exp(largest - peak);
            for (var i = 0u; i < AHEAD; i += 1u) {
                sum += select(0.0, exp(scores[i] - peak), n + i * dims.span < end);
            }
            largest = peak;
        }
    }
    pairs[lane] = vec2<u32>(bitcast<u32>(largest), bitcast<u32>(sum));
    workgroupBarrier();
    if lane < WG / dims.span && first + lane < dims.domains {
        let begin = lane * dims.span;
        var peak = LOWEST;
        for (var i = 0u; i < dims.span; i += 1u) { peak = max(peak, bitcast<f32>(pairs[begin + i].x)); }
        var total = 0.0;
        for (var i = 0u; i < dims.span; i += 1u) {
            let pair = bitcast<vec2<f32>>(pairs[begin + i]);
            total += pair.y * exp(pair.x - peak);
        }
        // The largest member's term is 1, so a sum of 0 is that of no member. NaN is no 0.
        let score = select(peak + log(total), LOWEST, total == 0.0);
        results[row_of(b) + 2u * dims.k + first + lane] = bitcast<u32>(score);
    }
    workgroupBarrier();
}

// Where row b of results begins.
fn row_of(b: u32) -> u32 {
    return b * (2u * dims.k + dims.domains + dims.rank);
}

fn write_y(b: u32, lane: u32) {
    let at = row_of(b) + 2u * dims.k + dims.domains;
    for (var n = 0u; n < dims.rank; n += 4u * WG) {
        var numbers: array<f32, 4>;
        for (var i = 0u; i < 4u; i += 1u) {
            numbers[i] = y[b * dims.rank + min(n + i * WG + lane, dims.rank - 1u)];
        }
        for (var i = 0u; i < 4u; i += 1u) {
            let c = n + i * WG + lane;
            if c < dims.rank { results[at + c] = bitcast<u32>(numbers[i]); }
        }
    }
}

fn write_rank(b: u32, rank: u32, best: Model) {
    let at = row_of(b) + rank;
    results[at] = best.id;
    results[at + dims.k] = bitcast<u32>(best.score);
}

fn before(a: Model, b: Model) -> bool {
    return a.score > b.score || (a.score == b.score && a.id < b.id);
}

// The best of all lanes' own bests; every lane must call this.
fn best_of_lanes(lane: u32, best: Model) -> Model {
    pairs[lane] = vec2<u32>(bitcast<u32>(best.score), best.id);
    workgroupBarrier();
    if lane < TOPS {
        var top = best;
        for (var i = TOPS; i < WG; i += TOPS) {
            let other = Model(bitcast<f32>(pairs[lane + i].x), pairs[lane + i].y);
            if before(other, top) { top = other; }
        }
        tops[lane] = vec2<u32>(bitcast<u32>(top.score), top.id);
    }
    workgroupBarrier();
    var top = Model(bitcast<f32>(tops[0].x), tops[0].y);
    for (var i = 1u; i < TOPS; i += 1u) {
        let other = Model(bitcast<f32>(tops[i].x), tops[i].y);
        if before(other, top) { top = other; }
    }
    return top;
}

// A lane's best after `last` in row, which holds `count` models from `first` on.
fn best_of_row(last: Model, first: u32, count: u32, lane: u32) -> Model {
    var best = Model(BELOW_ALL, NOBODY);
    for (var n = lane; n < count; n += WG) {
        let model = Model(row[n], first + n);
        if before(last, model) && before(model, best) { best = model; }
    }
    return best;
}

// The same in found.
fn best_of_found(last: Model, b: u32, lane: u32) -> Model {
    let count = dims.chunks * dims.k;
    var best = Model(BELOW_ALL, NOBODY);
    for (var n = lane; n < count; n += WG) {
        let pair = found[b * count + n];
        let model = Model(bitcast<f32>(pair.x), pair.y);
        if before(last, model) && before(model, best) { best = model; }
    }
    return best;
}

@compute @workgroup_size(WG)
fn whole(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let b = group.x;
    gather(b, 0u, dims.models, lane);
    write_y(b, lane);
    workgroupBarrier();
    for (var d = 0u; d < dims.domains; d += WG / dims.span) { write_domains(b, d, true, lane); }
    var best = best_of_row(Model(ABOVE_ALL, NOBODY), 0u, dims.models, lane);
    for (var rank = 0u; rank < dims.k; rank += 1u) {
        let top = best_of_lanes(lane, best);
        if top.id == best.id {
            write_rank(b, rank, top);
            best = best_of_row(top, 0u, dims.models, lane);
        }
    }
}

@compute @workgroup_size(WG)
fn part(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let b = group.y;
    let first = group.x * ROOM;
    let count = min(ROOM, dims.models - first);
    gather(b, first, count, lane);
    workgroupBarrier();
    let at = (b * dims.chunks + group.x) * dims.k;
    var best = best_of_row(Model(ABOVE_ALL, NOBODY), first, count, lane);
    for (var rank = 0u; rank < dims.k; rank += 1u) {
        let top = best_of_lanes(lane, best);
        // A part may have fewer models than there are ranks; then all lanes have nobody.
        if top.id == best.id {
            found[at + rank] = vec2<u32>(bitcast<u32>(top.score), top.id);
            best = best_of_row(top, first, count, lane);
        }
    }
}

@compute @workgroup_size(WG)
fn join(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let b = group.y;
    if group.x == 0u {
        write_y(b, lane);
        var best = best_of_found(Model(ABOVE_ALL, NOBODY), b, lane);
        for (var rank = 0u; rank < dims.k; rank += 1u) {
            let top = best_of_lanes(lane, best);
            if top.id == best.id {
                write_rank(b, rank, top);
                best = best_of_found(top, b, lane);
            }
        }
    } else {
        write_domains(b, (group.x - 1u) * (WG / dims.span), false, lane);
    }
}
