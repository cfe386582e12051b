// score: s[b,m] = scale z[b,:] . keys[m,:] / max(|z[b,:]|, 1e-12) + strength y[b,:] . recalled[m,:]
// + offsets[m], the lowest score where that is the offset
//
//   shapes   z: [B, D]   keys: [M, D]   y: [B, R]   recalled: [M, R]   offsets: [M]   s: [B, M]
//   layout   row-major f32, contiguous; each row of keys and recalled is filled up with zeros to a
//            multiple of 4; loose_z, loose_y: z and y where D or R is no multiple of 4
//   entries  forward    one workgroup per 8 models and 4 TURNS prompts   s   =   (overwrites)
//   order    a lane's vectors of four ascending, then the lanes ascending
//   scratch  rows, squares: written before they are read
//   uses     nothing

override TURNS: u32 = 1u; // of 4 prompts, at most 4
override LOOSE: bool = false; // z and y are read number by number
const LOWEST = -3.0e38;
const LEAST = 1e-12;
const ALONG = 32u; // lanes along a row
const ACROSS = 4u; // models side by side
const OWN = 2u; // models of a lane
const MODELS = ACROSS * OWN;
const LANES = ALONG * ACROSS;
const PIECES = 3u; // vectors of four of a row that a lane has in flight; 384 numbers in all
const STEP = ALONG * PIECES;
const PROMPTS = 4u; // of a turn
const MOST_TURNS = 4u;
const PITCH = ALONG + 1u;

// across: workgroups along x
struct Dims {
    prompts: u32,
    models: u32,
    width: u32,
    rank: u32,
    across: u32,
    scale: f32,
    strength: f32,
}

@group(0) @binding(0) var<uniform> dims: Dims;
@group(0) @binding(1) var<storage, read> z: array<vec4<f32>>; // [B, D]
@group(0) @binding(2) var<storage, read> keys: array<vec4<f32>>; // [M, D]
@group(0) @binding(3) var<storage, read> y: array<vec4<f32>>; // [B, R]
@group(0) @binding(4) var<storage, read> recalled: array<vec4<f32>>; // [M, R]
@group(0) @binding(5) var<storage, read> offsets: array<f32>; // [M]
@group(0) @binding(6) var<storage, read> loose_z: array<f32>; // [B, D]
@group(0) @binding(7) var<storage, read> loose_y: array<f32>; // [B, R]
@group(0) @binding(8) var<storage, read_write> s: array<f32>; // [B, M]

// z and y of a turn [2, PROMPTS, STEP]; then sums of prompts [2, MODELS, PITCH].
var<workgroup> rows: array<vec4<f32>, 2u * PROMPTS * STEP>;
// |z|^2 by lanes [PROMPTS, PITCH].
var<workgroup> squares: array<f32, PROMPTS * PITCH>;

// Number c of row b of z, 0 behind its end.
fn of_z(b: u32, c: u32) -> f32 {
    let last = dims.width - 1u;
    return select(0.0, loose_z[b * dims.width + min(c, last)], c <= last);
}

fn of_y(b: u32, c: u32) -> f32 {
    let last = dims.rank - 1u;
    return select(0.0, loose_y[b * dims.rank + min(c, last)], c <= last);
}

// The i-th four of row b of z, zeros behind its end.
fn quad_of_z(b: u32, i: u32) -> vec4<f32> {
    if LOOSE {
        let c = 4u * i;
        return vec4<f32>(of_z(b, c), of_z(b, c + 1u), of_z(b, c + 2u), of_z(b, c + 3u));
    }
    let quads = dims.width / 4u;
    let quad = z[b * quads + min(i, quads - 1u)];
    return select(vec4<f32>(), quad, vec4<bool>(i < quads));
}

fn quad_of_y(b: u32, i: u32) -> vec4<f32> {
    if LOOSE {
        let c = 4u * i;
        return vec4<f32>(of_y(b, c), of_y(b, c + 1u), of_y(b, c + 2u), of_y(b, c + 3u));
    }
    let quads = dims.rank / 4u;
    let quad = y[b * quads + min(i, quads - 1u)];
    return select(vec4<f32>(), quad, vec4<bool>(i < quads));
}

@compute @workgroup_size(LANES)
fn forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let along = lane % ALONG;
    let across = lane / ALONG;
    let first = (group.z * dims.across + group.x) * MODELS;
    let b = group.y * TURNS * PROMPTS;
    let wide = (dims.width + 3u) / 4u;
    let deep = (dims.rank + 3u) / 4u;
    // Of each turn and model: the sums of its four prompts.
    var learned: array<vec4<f32>, MOST_TURNS * OWN>;
    var remembered: array<vec4<f32>, MOST_TURNS * OWN>;
    var lengths: array<f32, MOST_TURNS>;
    for (var k = 0u; k < max(wide, deep); k += STEP) {
        // All keys of the lane are on their way before anything is waited for.
        var key: array<vec4<f32>, OWN * PIECES>;
        var memory: array<vec4<f32>, OWN * PIECES>;
        for (var n = 0u; n < OWN * PIECES; n += 1u) {
            let m = min(first + n / PIECES * ACROSS + across, dims.models - 1u);
            key[n] = keys[m * wide + min(k + along + n % PIECES * ALONG, wide - 1u)];
        }
        if dims.rank > 0u {
            for (var n = 0u; n < OWN * PIECES; n += 1u) {
                let m = min(first + n / PIECES * ACROSS + across, dims.models - 1u);
                memory[n] = recalled[m * deep + min(k + along + n % PIECES * ALONG, deep - 1u)];
            }
        }
        for (var turn = 0u; turn < TURNS; turn += 1u) {
            var of_learned: array<vec4<f32>, PIECES>;
            var of_memory: array<vec4<f32>, PIECES>;
            for (var n = 0u; n < PIECES; n += 1u) {
                let place = n * LANES + lane;
                let prompt = min(b + turn * PROMPTS + place / STEP, dims.prompts - 1u);
                of_learned[n] = quad_of_z(prompt, k + place % STEP);
            }
            if dims.rank > 0u {
                for (var n = 0u; n < PIECES; n += 1u) {
                    let place = n * LANES + lane;
                    let prompt = min(b + turn * PROMPTS + place / STEP, dims.prompts - 1u);
                    of_memory[n] = quad_of_y(prompt, k + place % STEP);
                }
            }
            workgroupBarrier();
            for (var n = 0u; n < PIECES; n += 1u) {
                rows[n * LANES + lane] = of_learned[n];
                rows[PROMPTS * STEP + n * LANES + lane] = of_memory[n];
            }
            workgroupBarrier();
            for (var j = 0u; j < PIECES; j += 1u) {
                let at = along + j * ALONG;
                let own = rows[across * STEP + at];
                lengths[turn] += dot(own, own);
                for (var c = 0u; c < OWN; c += 1u) {
                    let v = key[c * PIECES + j];
                    learned[turn * OWN + c] += vec4<f32>(
                        dot(v, rows[at]),
                        dot(v, rows[STEP + at]),
                        dot(v, rows[2u * STEP + at]),
                        dot(v, rows[3u * STEP + at]),
                    );
                }
            }
            if dims.rank > 0u {
                for (var j = 0u; j < PIECES; j += 1u) {
                    let at = PROMPTS * STEP + along + j * ALONG;
                    for (var c = 0u; c < OWN; c += 1u) {
                        let v = memory[c * PIECES + j];
                        remembered[turn * OWN + c] += vec4<f32>(
                            dot(v, rows[at]),
                            dot(v, rows[STEP + at]),
                            dot(v, rows[2u * STEP + at]),
                            dot(v, rows[3u * STEP + at]),
                        );
                    }
                }
            }
        }
    }
    for (var turn = 0u; turn < TURNS; turn += 1u) {
        workgroupBarrier();
        for (var c = 0u; c < OWN; c += 1u) {
            let at = (c * ACROSS + across) * PITCH + along;
            rows[at] = learned[turn * OWN + c];
            rows[MODELS * PITCH + at] = remembered[turn * OWN + c];
        }
        squares[across * PITCH + along] = lengths[turn];
        workgroupBarrier();
        let own = lane / PROMPTS;
        let m = first + own;
        let prompt = lane % PROMPTS;
        let row = b + turn * PROMPTS + prompt;
        if own < MODELS && m < dims.models && row < dims.prompts {
            var sum = 0.0;
            var more = 0.0;
            var square = 0.0;
            for (var i = 0u; i < ALONG; i += 1u) {
                sum += rows[own * PITCH + i][prompt];
                more += rows[(MODELS + own) * PITCH + i][prompt];
                square += squares[prompt * PITCH + i];
            }
            let cosine = sum / max(sqrt(square), LEAST);
            let offset = offsets[m];
            s[row * dims.models + m] = select(
                LOWEST,
                dims.scale * cosine + dims.strength * more + offset,
                offset > LOWEST,
            );
        }
    }
}
