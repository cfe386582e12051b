//! Changes of safetensors files: their header, their values, or any bytes.

use serde_json::{Value, json};

use crate::draws::Draws;
use crate::mutate;

/// f32 and f16 values, little-endian, that are hard on somebody: NaN, infinities, the largest, the
/// smallest, zero.
const VALUES: [[u8; 4]; 9] = [
    [0, 0, 0xc0, 0x7f],
    [0, 0, 0x80, 0x7f],
    [0, 0, 0x80, 0xff],
    [0xff, 0xff, 0x7f, 0x7f],
    [1, 0, 0, 0],
    [0, 0, 0, 0],
    [0, 0x7c, 0, 0xfc],
    [0xff, 0x7b, 0xff, 0xfb],
    [0, 0x7e, 0, 0x7e],
];

/// Changes `bytes`, which should be a safetensors file.
pub fn tensors(bytes: &mut Vec<u8>, others: &[&[u8]], draws: &mut Draws) -> String {
    match parts(bytes) {
        Some((header, data)) if !draws.one_in(5) => {
            if draws.one_in(2) {
                values(bytes, data, draws)
            } else {
                let mut header = header;
                let said = entry(&mut header, bytes.len() - data, draws);
                let rest = bytes.split_off(data);
                *bytes = joined(&mutate::render(&header, false), &rest, draws);
                said
            }
        }
        _ => mutate::bytes(bytes, others, draws),
    }
}

/// The header, and where the data begins.
fn parts(bytes: &[u8]) -> Option<(Value, usize)> {
    let length = u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?);
    let data = usize::try_from(length).ok()?.checked_add(8)?;
    let header = serde_json::from_slice(bytes.get(8..data)?).ok()?;
    Some((header, data))
}

/// A file of this header, now and then with a length that is not the header's.
fn joined(header: &[u8], data: &[u8], draws: &mut Draws) -> Vec<u8> {
    let length = match draws.below(20) {
        0 => *draws.pick(&[0, 1, u64::MAX, 1 << 32, 1 << 62, 100_000_001]),
        1 => header.len() as u64 + draws.next() % 16,
        _ => header.len() as u64,
    };
    [&length.to_le_bytes()[..], header, data].concat()
}

/// Changes the header: of one tensor, or anywhere.
fn entry(header: &mut Value, data: usize, draws: &mut Draws) -> String {
    let names: Vec<String> = header
        .as_object()
        .map(|map| map.keys().cloned().collect())
        .unwrap_or_default();
    if names.is_empty() || draws.one_in(4) {
        return mutate::json(header, draws);
    }
    let name = draws.pick(&names).clone();
    let tensor = &mut header[&name];
    if !tensor.is_object() {
        return mutate::json(header, draws);
    }
    let said = match draws.below(3) {
        0 => {
            let kinds = [
                "F32", "F16", "BF16", "F64", "I64", "U8", "BOOL", "F8_E4M3", "F4", "Q4",
            ];
            tensor["dtype"] = json!(draws.pick(&kinds));
            "dtype"
        }
        1 => {
            tensor["shape"] = shape(&tensor["shape"], draws);
            "shape"
        }
        _ => {
            let place = |draws: &mut Draws| {
                let any = [0, 1, data, data + 1, usize::MAX, 1 << 62, 1 << 32];
                if draws.one_in(2) {
                    *draws.pick(&any)
                } else {
                    draws.below(data + 8)
                }
            };
            tensor["data_offsets"] = json!([place(draws), place(draws)]);
            "data_offsets"
        }
    };
    format!("{said} of {name} is {}", tensor)
}

fn shape(old: &Value, draws: &mut Draws) -> Value {
    let mut sizes: Vec<u64> = old
        .as_array()
        .map(|sizes| sizes.iter().filter_map(Value::as_u64).collect())
        .unwrap_or_default();
    match draws.below(4) {
        0 => sizes.reverse(),
        1 => sizes.push(*draws.pick(&[0, 1, 2, u64::MAX])),
        2 => drop(sizes.pop()),
        _ => {
            let at = draws.below(sizes.len());
            if let Some(size) = sizes.get_mut(at) {
                *size = *draws.pick(&[
                    0,
                    1,
                    *size + 1,
                    *size * 2,
                    1 << 31,
                    1 << 32,
                    1 << 62,
                    u64::MAX,
                ]);
            }
        }
    }
    json!(sizes)
}

/// Changes values behind the header: one, a stretch, all of them.
fn values(bytes: &mut [u8], data: usize, draws: &mut Draws) -> String {
    let count = (bytes.len() - data) / 4;
    let value = *draws.pick(&VALUES);
    let first = draws.below(count);
    let many = *draws.pick(&[1, 1, 8, 32, 64, usize::MAX]);
    let scale = draws
        .one_in(3)
        .then(|| *draws.pick(&[1e25_f32, 1e-25, 1e38, -1.0, 0.0]));
    let words = bytes[data..].chunks_exact_mut(4).skip(first).take(many);
    for word in words {
        let new = scale.map_or(value, |scale| {
            let old = f32::from_le_bytes([word[0], word[1], word[2], word[3]]);
            (old * scale).to_le_bytes()
        });
        word.copy_from_slice(&new);
    }
    format!("values from {first}, {many} of them, are {value:?} or times {scale:?}")
}
