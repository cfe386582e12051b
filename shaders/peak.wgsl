// peak: copies and multiply-adds at a device's peak, for benches to compare with
//
//   shapes   x, y: [n]
//   layout   contiguous f32
//   entries  copy          one lane per element               y   =   x
//            multiply_add  one lane per element, 32 chains
//                          y   =   x after dims.turns steps of v * 0.999 + 0.001
//   order    none
//   uses     nothing; no workgroup memory

override WG: u32 = 256u; // lanes per workgroup

struct Dims { n: u32, turns: u32 }

@group(0) @binding(0) var<uniform> dims: Dims;
@group(0) @binding(1) var<storage, read> x: array<f32>; // [n]
@group(0) @binding(2) var<storage, read_write> y: array<f32>; // [n]

@compute @workgroup_size(WG)
fn copy(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = group.x * WG + lane;
    if i < dims.n { y[i] = x[i]; }
}

@compute @workgroup_size(WG)
fn multiply_add(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = group.x * WG + lane;
    if i >= dims.n { return; }
    var a = vec4<f32>(x[i]);
    var b = a; var c = a; var d = a; var e = a; var f = a; var g = a; var h = a;
    for (var turn = 0u; turn < dims.turns; turn += 1u) {
        a = a * 0.999 + 0.001; b = b * 0.999 + 0.001; c = c * 0.999 + 0.001; d = d * 0.999 + 0.001;
        e = e * 0.999 + 0.001; f = f * 0.999 + 0.001; g = g * 0.999 + 0.001; h = h * 0.999 + 0.001;
    }
    let sum = a + b + c + d + e + f + g + h;
    y[i] = (sum.x + sum.y + sum.z + sum.w) / 32.0;
}
