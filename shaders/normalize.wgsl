// normalize: u = z / max(|z|, 1e-12), each row
//
//   shapes   z, u: [B, D]
//   layout   row-major f32, contiguous
//   entries  forward    one workgroup per row   u   =   (overwrites)
//   order    lanes in steps of WG, then a tree
//   scratch  partial of shared/reduce.wgsl: written before it is read
//   uses     shared/reduce.wgsl

struct Dims { width: u32 }

@group(0) @binding(0) var<uniform> dims: Dims;
@group(0) @binding(1) var<storage, read> z: array<f32>; // [B, D]
@group(0) @binding(2) var<storage, read_write> u: array<f32>; // [B, D]

@compute @workgroup_size(WG)
fn forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = group.x * dims.width;
    var squares = 0.0;
    for (var c = lane; c < dims.width; c += WG) { squares += z[row + c] * z[row + c]; }
    let length = max(sqrt(sum_lanes(lane, squares)), 1e-12);
    for (var c = lane; c < dims.width; c += WG) { u[row + c] = z[row + c] / length; }
}
