// square: sums[n] += scale g[n]^2 over a range of the gradients, which are zeroed: Fisher weights,
// batch by batch
//
//   shapes   grad: [N], len elements at an offset   sums: [len]
//   layout   flat f32
//   entries  accumulate   64 elements in a turn   sums   +=   (adds); grad   =   (zeroed)
//   order    none
//   uses     nothing; no workgroup memory

override WG: u32 = 64u; // lanes per workgroup

// stride: elements between turns of a lane.
struct Dims { offset: u32, len: u32, stride: u32, scale: f32 }

@group(0) @binding(0) var<uniform> dims: Dims;
@group(0) @binding(1) var<storage, read_write> grad: array<f32>; // [N]
@group(0) @binding(2) var<storage, read_write> sums: array<f32>; // [len]

@compute @workgroup_size(WG)
fn accumulate(@builtin(global_invocation_id) id: vec3<u32>) {
    for (var n = id.x; n < dims.len; n += dims.stride) {
        let g = grad[dims.offset + n];
        grad[dims.offset + n] = 0.0;
        sums[n] += dims.scale * g * g;
    }
}
