// embed: x[t,c] = words[ids[t],c] + places[positions[t],c]
//
//   shapes   ids, positions: [T]   words: [V, H]   places: [P, H]
//            x: [T, H], from element `first` on
//   layout   row-major f32, contiguous; places holds position and type rows, added
//   entries  forward    one workgroup per token; further ones do nothing   x   =   (overwrites)
//   order    one addition an element
//   uses     nothing; no workgroup memory

override WG: u32 = 64u; // lanes per workgroup

struct Dims { tokens: u32, hidden: u32, first: u32 }

@group(0) @binding(0) var<uniform> dims: Dims;
@group(0) @binding(1) var<storage, read> ids: array<u32>; // [T]
@group(0) @binding(2) var<storage, read> positions: array<u32>; // [T]
@group(0) @binding(3) var<storage, read> words: array<f32>; // [V, H]
@group(0) @binding(4) var<storage, read> places: array<f32>; // [P, H]
@group(0) @binding(5) var<storage, read_write> x: array<f32>; // [T, H]

@compute @workgroup_size(WG)
fn forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let t = group.x;
    if t >= dims.tokens { return; }
    let word = ids[t] * dims.hidden;
    let place = positions[t] * dims.hidden;
    for (var c = lane; c < dims.hidden; c += WG) {
        x[dims.first + t * dims.hidden + c] = words[word + c] + places[place + c];
    }
}
