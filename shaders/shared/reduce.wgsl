
// reduce: one value of each lane of a workgroup becomes one for all; every lane must call this
//
//   order    a tree over the lanes, the same for any data
//   scratch  partial: written before it is read

override WG: u32 = 64u; // lanes per workgroup, a power of two

var<workgroup> partial: array<f32, WG>;

fn sum_lanes(lane: u32, value: f32) -> f32 {
    partial[lane] = value;
    workgroupBarrier();
    for (var half = WG / 2u; half > 0u; half /= 2u) {
        if lane < half { partial[lane] += partial[lane + half]; }
        workgroupBarrier();
    }
    let total = partial[0];
    workgroupBarrier();
    return total;
}

fn max_lanes(lane: u32, value: f32) -> f32 {
    partial[lane] = value;
    workgroupBarrier();
    for (var half = WG / 2u; half > 0u; half /= 2u) {
        if lane < half { partial[lane] = max(partial[lane], partial[lane + half]); }
        workgroupBarrier();
    }
    let largest = partial[0];
    workgroupBarrier();
    return largest;
}
