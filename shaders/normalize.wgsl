// normalize: u = z / max(|z|, 1e-12) of each row, and its gradient
//
//   shapes   z, grad: [N], matrices [R, D] at z_at and grad_at   u, du: [R, D]
//   layout   row-major f32, contiguous
//   entries  forward    one workgroup per row   u      =   (overwrites)
//            backward   one workgroup per row   grad   +=  (adds) (du - (du . u) u) / |z|
//   order    lanes in steps of WG, then a tree
//   scratch  partial of shared/reduce.wgsl: written before it is read
//   uses     shared/reduce.wgsl

const LEAST = 1e-12;

// stride: workgroups.
struct Dims { rows: u32, width: u32, stride: u32, z_at: u32, grad_at: u32 }

@group(0) @binding(0) var<uniform> dims: Dims;
@group(0) @binding(1) var<storage, read> z: array<f32>; // [N]
@group(0) @binding(2) var<storage, read> du: array<f32>; // [R, D]
@group(0) @binding(3) var<storage, read_write> u: array<f32>; // [R, D]
@group(0) @binding(4) var<storage, read_write> grad: array<f32>; // [N]

fn length_of(at: u32, lane: u32) -> f32 {
    var squares = 0.0;
    for (var c = lane; c < dims.width; c += WG) { squares += z[at + c] * z[at + c]; }
    return max(sqrt(sum_lanes(lane, squares)), LEAST);
}

@compute @workgroup_size(WG)
fn forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    for (var r = group.x; r < dims.rows; r += dims.stride) {
        let row = r * dims.width;
        let length = length_of(dims.z_at + row, lane);
        for (var c = lane; c < dims.width; c += WG) {
            u[row + c] = z[dims.z_at + row + c] / length;
        }
    }
}

@compute @workgroup_size(WG)
fn backward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    for (var r = group.x; r < dims.rows; r += dims.stride) {
        let row = r * dims.width;
        let length = length_of(dims.z_at + row, lane);
        var products = 0.0;
        for (var c = lane; c < dims.width; c += WG) { products += du[row + c] * u[row + c]; }
        let along = select(0.0, sum_lanes(lane, products), length > LEAST);
        for (var c = lane; c < dims.width; c += WG) {
            grad[dims.grad_at + row + c] += (du[row + c] - along * u[row + c]) / length;
        }
    }
}
