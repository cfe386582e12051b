// score: s[b,m] = scale u[b,:] . keys[:,m] + offsets[m], the lowest score where that is the offset
//
//   shapes   u: [B, D]   keys: [D, M]   offsets: [M]   s: [B, M]
//   layout   row-major f32, contiguous; keys are transposed so that lanes read side by side
//   entries  forward       one lane per model and up to 8 prompts   s   =   (overwrites)
//            forward_add   the same                                 s   +=  (adds)
//   order    d ascending in one sum
//   uses     nothing; no workgroup memory

override WG: u32 = 64u; // lanes per workgroup
const PROMPTS = 8u;
const LOWEST = -3.0e38;

struct Dims { prompts: u32, models: u32, width: u32, scale: f32 }

@group(0) @binding(0) var<uniform> dims: Dims;
@group(0) @binding(1) var<storage, read> u: array<f32>; // [B, D]
@group(0) @binding(2) var<storage, read> keys: array<f32>; // [D, M]
@group(0) @binding(3) var<storage, read> offsets: array<f32>; // [M]
@group(0) @binding(4) var<storage, read_write> s: array<f32>; // [B, M]

fn element(b: u32, d: u32) -> f32 {
    return u[min(b, dims.prompts - 1u) * dims.width + d];
}

fn score(m: u32, b: u32, add: bool) {
    if m >= dims.models { return; }
    var low = vec4<f32>();
    var high = vec4<f32>();
    for (var d = 0u; d < dims.width; d += 1u) {
        let key = keys[d * dims.models + m];
        low += key * vec4<f32>(
            element(b, d),
            element(b + 1u, d),
            element(b + 2u, d),
            element(b + 3u, d),
        );
        high += key * vec4<f32>(
            element(b + 4u, d),
            element(b + 5u, d),
            element(b + 6u, d),
            element(b + 7u, d),
        );
    }
    let may = offsets[m] > LOWEST;
    let offset = select(0.0, offsets[m], may);
    let last = min(PROMPTS, dims.prompts - b);
    for (var j = 0u; j < last; j += 1u) {
        var sum = low[j % 4u];
        if j >= 4u { sum = high[j % 4u]; }
        let place = (b + j) * dims.models + m;
        let before = select(0.0, s[place], add && may);
        s[place] = select(LOWEST, before + sum * dims.scale + offset, may);
    }
}

@compute @workgroup_size(WG)
fn forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    score(group.x * WG + lane, group.y * PROMPTS, false);
}

@compute @workgroup_size(WG)
fn forward_add(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    score(group.x * WG + lane, group.y * PROMPTS, true);
}
