// pool: one row of each prompt's rows, and back
//
//   shapes   x, dx: [T, H]   offsets: [B + 1]   h, dh: [B, H]
//            h inside rows of `stride` elements, from `first` on
//   layout   row-major f32, contiguous
//   entries  one workgroup per prompt; each overwrites (=) h or dx
//            mean             h    =   mean of x over the prompt
//            first            h    =   x of the first token
//            backward_mean    dx   =   dh / n for each of n tokens
//            backward_first   dx   =   dh for the first token, 0 for the others
//   order    tokens ascending, one lane per column
//   uses     nothing; no workgroup memory

override WG: u32 = 64u; // lanes per workgroup

struct Dims { hidden: u32, first: u32, stride: u32 }

@group(0) @binding(0) var<uniform> dims: Dims;
@group(0) @binding(1) var<storage, read> offsets: array<u32>; // [B + 1]
@group(0) @binding(2) var<storage, read> x: array<f32>; // [T, H]
@group(0) @binding(3) var<storage, read_write> h: array<f32>; // [B, stride]
@group(0) @binding(4) var<storage, read> dh: array<f32>; // [B, stride]
@group(0) @binding(5) var<storage, read_write> dx: array<f32>; // [T, H]

@compute @workgroup_size(WG)
fn mean(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let begin = offsets[group.x];
    let end = offsets[group.x + 1u];
    for (var c = lane; c < dims.hidden; c += WG) {
        var sum = 0.0;
        for (var t = begin; t < end; t += 1u) { sum += x[t * dims.hidden + c]; }
        h[dims.first + group.x * dims.stride + c] = sum / f32(end - begin);
    }
}

@compute @workgroup_size(WG)
fn first(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = offsets[group.x] * dims.hidden;
    for (var c = lane; c < dims.hidden; c += WG) {
        h[dims.first + group.x * dims.stride + c] = x[row + c];
    }
}

@compute @workgroup_size(WG)
fn backward_mean(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let begin = offsets[group.x];
    let end = offsets[group.x + 1u];
    for (var c = lane; c < dims.hidden; c += WG) {
        let share = dh[group.x * dims.hidden + c] / f32(end - begin);
        for (var t = begin; t < end; t += 1u) { dx[t * dims.hidden + c] = share; }
    }
}

@compute @workgroup_size(WG)
fn backward_first(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let begin = offsets[group.x];
    let end = offsets[group.x + 1u];
    for (var c = lane; c < dims.hidden; c += WG) {
        dx[begin * dims.hidden + c] = dh[group.x * dims.hidden + c];
        for (var t = begin + 1u; t < end; t += 1u) { dx[t * dims.hidden + c] = 0.0; }
    }
}
