// Tiles of a product: a lane keeps 4 x 4 sums, a workgroup 4 DOWN rows by 4 ACROSS columns.
//
// A caller fills xs and ws for STEP terms of the sums, waits, calls multiply_tile with its lane's
// first row and column in the tile, and waits again. Order: terms ascending in one sum.

override DOWN: u32 = 16u; // lanes down a tile
override ACROSS: u32 = 16u; // lanes across a tile
const TILE = 4u; // rows and columns of a lane
const STEP = 16u; // terms staged at a time

var<workgroup> xs: array<f32, DOWN * TILE * STEP>; // [STEP, rows]
var<workgroup> ws: array<f32, ACROSS * TILE * STEP>; // [STEP, columns]

// Row j of a lane's sums is sums[j].
fn multiply_tile(before: mat4x4<f32>, r: u32, c: u32) -> mat4x4<f32> {
    var sums = before;
    for (var k = 0u; k < STEP; k += 1u) {
        let a = k * DOWN * TILE + r;
        let b = k * ACROSS * TILE + c;
        let weights = vec4<f32>(ws[b], ws[b + 1u], ws[b + 2u], ws[b + 3u]);
        sums[0] += xs[a] * weights;
        sums[1] += xs[a + 1u] * weights;
        sums[2] += xs[a + 2u] * weights;
        sums[3] += xs[a + 3u] * weights;
    }
    return sums;
}
