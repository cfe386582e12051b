// linear: y[t,o] = end(sum over i of x[t,i] w[o,i] + bias[o]), end(v) = v, or gelu(v) where dims says so; dx[t,i] = sum over o of dy[t,o] w[o,i]
//
//   shapes   x, dx, base: [T, in]   w: [out, in]   bias: [out]   y, dy: [T, out]
//   layout   row-major f32, contiguous
//   entries  forward        one workgroup per tile of 4 DOWN rows by 4 ACROSS columns   y    =
//                           (overwrites)
//            backward       the same                                                    dx   =
//                           (overwrites)
//            backward_add   the same, and base                                          dx   =
//                           (overwrites)
//   order    i, or o, ascending in one sum, whatever the tile: a row is the same alone and in a
//            batch
//   scratch  xs, ws of tile: written before they are read
//   uses     tile: multiply_tile; math: below

// gelu: 1 where it is the end
struct Dims { rows: u32, inputs: u32, outputs: u32, gelu: u32 }

@group(0) @binding(0) var<uniform> dims: Dims;
@group(0) @binding(1) var<storage, read> x: array<f32>; // [T, in]
@group(0) @binding(2) var<storage, read> w: array<f32>; // [out, in]
@group(0) @binding(3) var<storage, read> bias: array<f32>; // [out]
@group(0) @binding(4) var<storage, read_write> y: array<f32>; // [T, out]
@group(0) @binding(5) var<storage, read> dy: array<f32>; // [T, out]
@group(0) @binding(6) var<storage, read_write> dx: array<f32>; // [T, in]
@group(0) @binding(7) var<storage, read> base: array<f32>; // [T, in]

@compute @workgroup_size(DOWN * ACROSS)
fn forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let high = DOWN * TILE;
    let wide = ACROSS * TILE;
    let first_row = group.y * high;
    let first_column = group.x * wide;
    let r = (lane / ACROSS) * TILE;
    let c = (lane % ACROSS) * TILE;
    var sums = mat4x4<f32>();
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
        sums = multiply_tile(sums, r, c);
        workgroupBarrier();
    }
    store(first_row + r, first_column + c, sums[0]);
    store(first_row + r + 1u, first_column + c, sums[1]);
    store(first_row + r + 2u, first_column + c, sums[2]);
    store(first_row + r + 3u, first_column + c, sums[3]);
}

fn store(row: u32, column: u32, sums: vec4<f32>) {
    if row >= dims.rows { return; }
    let last = min(TILE, dims.outputs - min(column, dims.outputs));
    for (var j = 0u; j < last; j += 1u) {
        var value = sums[j] + bias[column + j];
        if dims.gelu == 1u { value *= below(value); }
        y[row * dims.outputs + column + j] = value;
    }
}

// The lane's sums of dx.
fn gradient(group: vec3<u32>, lane: u32) -> mat4x4<f32> {
    let high = DOWN * TILE;
    let wide = ACROSS * TILE;
    let first_row = group.y * high;
    let first_column = group.x * wide;
    var sums = mat4x4<f32>();
    for (var start = 0u; start < dims.outputs; start += STEP) {
        for (var n = lane; n < high * STEP; n += DOWN * ACROSS) {
            let row = first_row + n / STEP;
            let o = start + n % STEP;
            var value = 0.0;
            if row < dims.rows && o < dims.outputs { value = dy[row * dims.outputs + o]; }
            xs[(n % STEP) * high + n / STEP] = value;
        }
        for (var n = lane; n < wide * STEP; n += DOWN * ACROSS) {
            let column = first_column + n % wide;
            let o = start + n / wide;
            var value = 0.0;
            if column < dims.inputs && o < dims.outputs { value = w[o * dims.inputs + column]; }
            ws[n] = value;
        }
        workgroupBarrier();
        sums = multiply_tile(sums, (lane / ACROSS) * TILE, (lane % ACROSS) * TILE);
        workgroupBarrier();
    }
    return sums;
}

@compute @workgroup_size(DOWN * ACROSS)
fn backward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let sums = gradient(group, lane);
    let row = (group.y * DOWN + lane / ACROSS) * TILE;
    let column = (group.x * ACROSS + lane % ACROSS) * TILE;
    let last = min(TILE, dims.inputs - min(column, dims.inputs));
    for (var i = 0u; i < TILE && row + i < dims.rows; i += 1u) {
        for (var j = 0u; j < last; j += 1u) {
            dx[(row + i) * dims.inputs + column + j] = sums[i][j];
        }
    }
}

@compute @workgroup_size(DOWN * ACROSS)
fn backward_add(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let sums = gradient(group, lane);
    let row = (group.y * DOWN + lane / ACROSS) * TILE;
    let column = (group.x * ACROSS + lane % ACROSS) * TILE;
    let last = min(TILE, dims.inputs - min(column, dims.inputs));
    for (var i = 0u; i < TILE && row + i < dims.rows; i += 1u) {
        for (var j = 0u; j < last; j += 1u) {
            let place = (row + i) * dims.inputs + column + j;
            dx[place] = sums[i][j] + base[place];
        }
    }
}
