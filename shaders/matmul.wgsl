// matmul: y[m,n] = scale * sum over k of a[m,k] b[k,n]
//
//   shapes   a: [M, K]   b: [K, N]   y: [M, N]
//   layout   f32; element (r, c) of each is at offset + r down + c across, so that a transpose,
//            some columns of a tensor or a matrix inside a flat one are read in place
//   entries  one workgroup per tile of 4 DOWN rows by 4 ACROSS columns
//            product       y   =   (overwrites)
//            product_add   y   +=  (adds)
//   order    k ascending in one sum, whatever the tile; scaled, then added to y
//   scratch  xs, ws of tile: written before they are read
//   uses     tile: multiply_tile

struct Place { offset: u32, down: u32, across: u32, padding: u32 }
struct Dims { rows: u32, inner: u32, columns: u32, scale: f32, a: Place, b: Place, y: Place }

@group(0) @binding(0) var<uniform> dims: Dims;
@group(0) @binding(1) var<storage, read> a: array<f32>;
@group(0) @binding(2) var<storage, read> b: array<f32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;

fn at(place: Place, row: u32, column: u32) -> u32 {
    return place.offset + row * place.down + column * place.across;
}

// The lane's sums; lanes side by side read elements side by side, whichever way these lie.
fn multiply(group: vec3<u32>, lane: u32) -> mat4x4<f32> {
    let high = DOWN * TILE;
    let wide = ACROSS * TILE;
    var sums = mat4x4<f32>();
    for (var start = 0u; start < dims.inner; start += STEP) {
        for (var n = lane; n < high * STEP; n += DOWN * ACROSS) {
            var r = n / STEP;
            var k = n % STEP;
            if dims.a.across != 1u { r = n % high; k = n / high; }
            let row = group.y * high + r;
            var value = 0.0;
            if row < dims.rows && start + k < dims.inner { value = a[at(dims.a, row, start + k)]; }
            xs[k * high + r] = value;
        }
        for (var n = lane; n < wide * STEP; n += DOWN * ACROSS) {
            var c = n % wide;
            var k = n / wide;
            if dims.b.across != 1u { c = n / STEP; k = n % STEP; }
            let column = group.x * wide + c;
            var value = 0.0;
            if column < dims.columns && start + k < dims.inner {
                value = b[at(dims.b, start + k, column)];
            }
            ws[k * wide + c] = value;
        }
        workgroupBarrier();
        sums = multiply_tile(sums, (lane / ACROSS) * TILE, (lane % ACROSS) * TILE);
        workgroupBarrier();
    }
    return sums;
}

@compute @workgroup_size(DOWN * ACROSS)
fn product(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let sums = multiply(group, lane);
    store(group, lane, sums, false);
}

@compute @workgroup_size(DOWN * ACROSS)
fn product_add(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let sums = multiply(group, lane);
    store(group, lane, sums, true);
}

fn store(group: vec3<u32>, lane: u32, sums: mat4x4<f32>, add: bool) {
    let row = (group.y * DOWN + lane / ACROSS) * TILE;
    let column = (group.x * ACROSS + lane % ACROSS) * TILE;
    store_row(row, column, sums[0], add);
    store_row(row + 1u, column, sums[1], add);
    store_row(row + 2u, column, sums[2], add);
    store_row(row + 3u, column, sums[3], add);
}

fn store_row(row: u32, column: u32, sums: vec4<f32>, add: bool) {
    if row >= dims.rows { return; }
    let last = min(TILE, dims.columns - min(column, dims.columns));
    for (var j = 0u; j < last; j += 1u) {
        let place = at(dims.y, row, column + j);
        var value = dims.scale * sums[j];
        if add { value += y[place]; }
        y[place] = value;
    }
}
