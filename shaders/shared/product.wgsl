
// product: what the kernels of products with widths that are multiples of four share
//
//   uses     math: below

struct Dims {
    rows: u32, inputs4: u32, outputs: u32,
    x_row: u32, y_row: u32, r_row: u32, // first rows of x, of y and of residual
    gelu: u32, // 1: it is the end
    eps: f32,
}

fn sum_of(v: vec4<f32>) -> f32 { return (v.x + v.y) + (v.z + v.w); }

fn gelu_of(v: vec4<f32>) -> vec4<f32> {
    return v * vec4<f32>(below(v.x), below(v.y), below(v.z), below(v.w));
}
