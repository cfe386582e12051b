// low_rank: the maps of a layer with low-rank additions, merged[o,i] = w[o,i] + s sum_k b[k,o]
// a[k,i], and the gradients of a and b: da += (s dy b^T)^T x, db += s (x a^T)^T dy
//
//   shapes   four maps: w0, w1, w2, w3, merged0, merged1, merged2, merged3: [out, in]
//            x0, x1, x2, x3: [T, in]   y0, y1, y2, y3: [T, out], the gradients of their results
//            theta, grad: [N] with a [r, in] and b [r, out] of each branch, which has some of a
//            map's outputs   blocks: [T, TILE tiles], x a^T and s dy b^T of the branches
//            jobs: [J, FIELDS]
//   layout   row-major f32, contiguous, as vectors of four: in, out and the places of factors are
//            multiples of four; columns of a tile behind a factor's rows are zero
//   entries  merge     LANES vectors of four rows   merged0, merged1, merged2, merged3   =
//                      (overwrites)
//            thin      16 tokens of a tile          blocks   =
//            factors   8 vectors of a tile          grad     +=   (adds)
//   order    merge: k ascending; thin: inputs in 32 sums, which are joined in order; factors:
//            tokens in 16 sums, which are joined in order
//   scratch  partial: written before it is read
//   uses     nothing
//
// A tile is TILE rows of a or of b, and as many columns of blocks.

const TILE = 16u;
const FIELDS = 8u; // of a job
const LANES = 128u;
const PITCH = 33u; // of a column's partial sums in thin

struct Dims {
    rows: u32,   // T
    blocks: u32, // columns of blocks
    first: u32,  // of the jobs
    scale: f32,
}

@group(0) @binding(0) var<uniform> dims: Dims;
@group(0) @binding(1) var<storage, read> theta: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> jobs: array<u32>;
@group(0) @binding(3) var<storage, read> w0: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> w1: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read> w2: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read> w3: array<vec4<f32>>;
@group(0) @binding(7) var<storage, read_write> merged0: array<vec4<f32>>;
@group(0) @binding(8) var<storage, read_write> merged1: array<vec4<f32>>;
@group(0) @binding(9) var<storage, read_write> merged2: array<vec4<f32>>;
@group(0) @binding(10) var<storage, read_write> merged3: array<vec4<f32>>;
@group(0) @binding(11) var<storage, read> x0: array<vec4<f32>>;
@group(0) @binding(12) var<storage, read> x1: array<vec4<f32>>;
@group(0) @binding(13) var<storage, read> x2: array<vec4<f32>>;
@group(0) @binding(14) var<storage, read> x3: array<vec4<f32>>;
@group(0) @binding(15) var<storage, read> y0: array<vec4<f32>>;
@group(0) @binding(16) var<storage, read> y1: array<vec4<f32>>;
@group(0) @binding(17) var<storage, read> y2: array<vec4<f32>>;
@group(0) @binding(18) var<storage, read> y3: array<vec4<f32>>;
@group(0) @binding(19) var<storage, read_write> blocks: array<vec4<f32>>; // [T, TILE tiles]
@group(0) @binding(20) var<storage, read_write> grad: array<vec4<f32>>;

var<workgroup> partial: array<vec4<f32>, 528>; // thin: [4, 4, PITCH]; factors: [4, 16, 8]

// Of a branch: its map, its rows of w, their width in vectors, the places of a and b, and r.
struct Branch { map: u32, first: u32, outputs: u32, width: u32, a: u32, b: u32, rank: u32 }

fn job(index: u32) -> array<u32, FIELDS> {
    var fields: array<u32, FIELDS>;
    for (var i = 0u; i < FIELDS; i += 1u) { fields[i] = jobs[(dims.first + index) * FIELDS + i]; }
    return fields;
}

fn branch_at(index: u32) -> Branch {
    let j = job(index);
    return Branch(j[0], j[1], j[2], j[3], j[4], j[5], j[6]);
}

// Four rows of a map's weights that begin at `place`, `width` apart.
fn weights_at(map: u32, place: u32, width: u32) -> mat4x4<f32> {
    let q = place + width;
    let r = q + width;
    let s = r + width;
    switch map {
        case 0u: { return mat4x4(w0[place], w0[q], w0[r], w0[s]); }
        case 1u: { return mat4x4(w1[place], w1[q], w1[r], w1[s]); }
        case 2u: { return mat4x4(w2[place], w2[q], w2[r], w2[s]); }
        default: { return mat4x4(w3[place], w3[q], w3[r], w3[s]); }
    }
}

fn store(map: u32, place: u32, value: vec4<f32>) {
    switch map {
        case 0u: { merged0[place] = value; }
        case 1u: { merged1[place] = value; }
        case 2u: { merged2[place] = value; }
        default: { merged3[place] = value; }
    }
}

// A lane has four rows of one vector of columns.
@compute @workgroup_size(LANES)
fn merge(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let own = branch_at(group.y);
    let n = group.x * LANES + lane;
    let column = n % own.width;
    let row = n / own.width * 4u;
    if row < own.outputs {
        let place = (own.first + row) * own.width + column;
        var sums = weights_at(own.map, place, own.width);
        for (var start = 0u; start < own.rank; start += 4u) {
            var a: array<vec4<f32>, 4>;
            var b: array<vec4<f32>, 4>;
            for (var i = 0u; i < 4u; i += 1u) {
                let k = min(start + i, own.rank - 1u);
                a[i] = theta[own.a + k * own.width + column];
                b[i] = theta[own.b + (k * own.outputs + row) / 4u];
            }
            for (var i = 0u; i < 4u; i += 1u) {
                let factor = select(0.0, dims.scale, start + i < own.rank) * b[i];
                sums[0] += factor.x * a[i];
                sums[1] += factor.y * a[i];
                sums[2] += factor.z * a[i];
                sums[3] += factor.w * a[i];
            }
        }
        store(own.map, place, sums[0]);
        store(own.map, place + own.width, sums[1]);
        store(own.map, place + 2u * own.width, sums[2]);
        store(own.map, place + 3u * own.width, sums[3]);
    }
}

// Of a tile: the tensor with its rows of T, 0 to 3 for x0 to x3, 4 to 7 for y0 to y3; the first of
// the columns there, in vectors, how far its rows are apart, and how many columns there are; the
// place of the factor's rows, how many these are, and the tile among the blocks.
struct Tile {
    tensor: u32,
    first: u32,
    stride: u32,
    width: u32,
    place: u32,
    rows: u32,
    block: u32,
    scaled: bool,
}

fn tile_at(index: u32) -> Tile {
    let j = job(index);
    return Tile(j[0], j[1], j[2], j[3], j[4], j[5], j[6], j[7] != 0u);
}

fn four(tensor: u32, at: vec4<u32>) -> mat4x4<f32> {
    switch tensor {
        case 0u: { return mat4x4(x0[at.x], x0[at.y], x0[at.z], x0[at.w]); }
        case 1u: { return mat4x4(x1[at.x], x1[at.y], x1[at.z], x1[at.w]); }
        case 2u: { return mat4x4(x2[at.x], x2[at.y], x2[at.z], x2[at.w]); }
        case 3u: { return mat4x4(x3[at.x], x3[at.y], x3[at.z], x3[at.w]); }
        case 4u: { return mat4x4(y0[at.x], y0[at.y], y0[at.z], y0[at.w]); }
        case 5u: { return mat4x4(y1[at.x], y1[at.y], y1[at.z], y1[at.w]); }
        case 6u: { return mat4x4(y2[at.x], y2[at.y], y2[at.z], y2[at.w]); }
        default: { return mat4x4(y3[at.x], y3[at.y], y3[at.z], y3[at.w]); }
    }
}

// A lane has every 32nd vector of four rows, and all columns of the tile.
@compute @workgroup_size(LANES)
fn thin(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let own = tile_at(group.y);
    let along = lane % 32u;
    let first = group.x * 16u + lane / 32u * 4u;
    let rows = min(vec4(first, first + 1u, first + 2u, first + 3u), vec4(dims.rows - 1u));
    let places = rows * own.stride + own.first;
    var sums: array<vec4<f32>, TILE>; // of each column, four rows
    for (var c = 0u; c < TILE; c += 1u) { sums[c] = vec4<f32>(); }
    for (var start = 0u; start < own.width; start += 32u) {
        let column = min(start + along, own.width - 1u);
        let inside = select(0.0, 1.0, start + along < own.width);
        let x = four(own.tensor, places + column);
        var w: array<vec4<f32>, TILE>;
        for (var c = 0u; c < TILE; c += 1u) {
            w[c] = theta[own.place + min(c, own.rows - 1u) * own.width + column];
        }
        for (var c = 0u; c < TILE; c += 1u) {
            let v = inside * w[c];
            sums[c] += vec4(dot(x[0], v), dot(x[1], v), dot(x[2], v), dot(x[3], v));
        }
    }
    let scale = select(1.0, dims.scale, own.scaled);
    for (var q = 0u; q < 4u; q += 1u) {
        for (var c = 0u; c < 4u; c += 1u) {
            partial[(c * 4u + lane / 32u) * PITCH + along] = sums[q * 4u + c];
        }
        workgroupBarrier();
        if lane < 16u {
            // A row and its four columns.
            let row = group.x * 16u + lane;
            var total = vec4<f32>();
            for (var k = 0u; k < 32u; k += 1u) {
                let at = lane / 4u * PITCH + k;
                let i = lane % 4u;
                total += vec4(
                    partial[at][i],
                    partial[at + 4u * PITCH][i],
                    partial[at + 8u * PITCH][i],
                    partial[at + 12u * PITCH][i],
                );
            }
            let columns = vec4(0u, 1u, 2u, 3u) + q * 4u;
            total = select(vec4<f32>(), scale * total, columns < vec4(own.rows));
            if row < dims.rows { blocks[(row * dims.blocks + own.block * TILE) / 4u + q] = total; }
        }
        workgroupBarrier();
    }
}

// A lane has every 16th token of one vector of columns, and all rows of the tile.
@compute @workgroup_size(LANES)
fn factors(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let own = tile_at(group.y);
    if group.x * 8u < own.width {
        let across = lane % 8u;
        let column = group.x * 8u + across;
        let there = own.first + min(column, own.width - 1u);
        let block = own.block * 4u;
        var sums: array<vec4<f32>, TILE>;
        for (var c = 0u; c < TILE; c += 1u) { sums[c] = vec4<f32>(); }
        for (var start = lane / 8u; start < dims.rows; start += 64u) {
            let at = vec4(start, start + 16u, start + 32u, start + 48u);
            let rows = min(at, vec4(dims.rows - 1u));
            let wide = four(own.tensor, rows * own.stride + there);
            var small: array<vec4<f32>, TILE>;
            for (var i = 0u; i < TILE; i += 1u) {
                small[i] = blocks[rows[i / 4u] * dims.blocks / 4u + block + i % 4u];
            }
            for (var i = 0u; i < TILE; i += 1u) {
                let value = select(0.0, 1.0, at[i / 4u] < dims.rows) * wide[i / 4u];
                let c = i % 4u * 4u;
                sums[c] += small[i].x * value;
                sums[c + 1u] += small[i].y * value;
                sums[c + 2u] += small[i].z * value;
                sums[c + 3u] += small[i].w * value;
            }
        }
        let scale = select(1.0, dims.scale, own.scaled);
        for (var q = 0u; q < 4u; q += 1u) {
            for (var c = 0u; c < 4u; c += 1u) { partial[c * LANES + lane] = sums[q * 4u + c]; }
            workgroupBarrier();
            let row = q * 4u + lane / 8u;
            if lane < 32u && row < own.rows && column < own.width {
                var total = vec4<f32>();
                for (var k = 0u; k < 16u; k += 1u) {
                    total += partial[lane / 8u * LANES + k * 8u + across];
                }
                grad[own.place + row * own.width + column] += scale * total;
            }
            workgroupBarrier();
        }
    }
}
