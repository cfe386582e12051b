// linear: y[t,o] = sum over i of x[t,i] w[o,i] + bias[o]
//
//   shapes   x: [T, in]   w: [out, in]   bias: [out]   y: [T, out]
//   layout   row-major f32, contiguous
//   entries  forward    one workgroup per tile of 4 DOWN rows by 4 ACROSS columns   y   =   (overwrites)
//   order    i ascending in one sum, whatever the tile: a row is the same alone and in a batch
//   scratch  xs, ws: written before they are read
//   uses     nothing

override DOWN: u32 = 16u; // lanes down a tile
override ACROSS: u32 = 16u; // lanes across a tile
const TILE = 4u; // rows and columns of a lane
const STEP = 16u; // inputs staged at a time

struct Dims { rows: u32, inputs: u32, outputs: u32 }

@group(0) @binding(0) var<uniform> dims: Dims;
@group(0) @binding(1) var<storage, read> x: array<f32>; // [T, in]
@group(0) @binding(2) var<storage, read> w: array<f32>; // [out, in]
@group(0) @binding(3) var<storage, read> bias: array<f32>; // [out]
@group(0) @binding(4) var<storage, read_write> y: array<f32>; // [T, out]

var<workgroup> xs: array<f32, DOWN * TILE * STEP>; // [STEP, rows]
var<workgroup> ws: array<f32, ACROSS * TILE * STEP>; // [STEP, columns]

@compute @workgroup_size(DOWN * ACROSS)
fn forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let high = DOWN * TILE;
    let wide = ACROSS * TILE;
    let first_row = group.y * high;
    let first_column = group.x * wide;
    let r = (lane / ACROSS) * TILE;
    let c = (lane % ACROSS) * TILE;
    var sums0 = vec4<f32>();
    var sums1 = vec4<f32>();
    var sums2 = vec4<f32>();
    var sums3 = vec4<f32>();
    for (var start = 0u; start < dims.inputs; start += STEP) {
        for (var n = lane; n < high * STEP; n += DOWN * ACROSS) {
            let row = first_row + n / STEP;
            let i = start + n % STEP;
            var value = 0.0;
            if row < dims.rows && i < dims.inputs { value = x[row * dims.inputs + i]; }
            xs[(n % STEP) * high + n / STEP] = value;
        }
        for (var n = lane; n < wide * STEP; n += DOWN * ACROSS) {
            let column = first_column + n / STEP;
            let i = start + n % STEP;
            var value = 0.0;
            if column < dims.outputs && i < dims.inputs { value = w[column * dims.inputs + i]; }
            ws[(n % STEP) * wide + n / STEP] = value;
        }
        workgroupBarrier();
        for (var k = 0u; k < STEP; k += 1u) {
            let a = k * high + r;
            let b = k * wide + c;
            let weights = vec4<f32>(ws[b], ws[b + 1u], ws[b + 2u], ws[b + 3u]);
            sums0 += xs[a] * weights;
            sums1 += xs[a + 1u] * weights;
            sums2 += xs[a + 2u] * weights;
            sums3 += xs[a + 3u] * weights;
        }
        workgroupBarrier();
    }
    store(first_row + r, first_column + c, sums0);
    store(first_row + r + 1u, first_column + c, sums1);
    store(first_row + r + 2u, first_column + c, sums2);
    store(first_row + r + 3u, first_column + c, sums3);
}

fn store(row: u32, column: u32, sums: vec4<f32>) {
    if row >= dims.rows { return; }
    let last = min(TILE, dims.outputs - min(column, dims.outputs));
    for (var j = 0u; j < last; j += 1u) {
        y[row * dims.outputs + column + j] = sums[j] + bias[column + j];
    }
}
