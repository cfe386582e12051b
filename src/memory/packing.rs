//! Integers packed into as few bits as their block needs.
//!
//! A block has 32 values: a byte w, then w bits for each value, lowest bit first. A negative number
//! -n is stored as 2n - 1, any other n as 2n (zigzag encoding).

use crate::error::{Result, bail};

const BLOCK: usize = 32;

/// Appends `values` to `bytes`.
pub(super) fn pack(values: impl IntoIterator<Item = i64>, bytes: &mut Vec<u8>) {
    let mut values = values.into_iter().peekable();
    while values.peek().is_some() {
        let mut block = [0u64; BLOCK];
        for (place, value) in block.iter_mut().zip(&mut values) {
            *place = (value.cast_unsigned() << 1) ^ (value >> 63).cast_unsigned();
        }
        let all = block.iter().fold(0, |all, value| all | value);
        let width = 64 - all.leading_zeros();
        #[expect(clippy::cast_possible_truncation, reason = "at most 64")]
        bytes.push(width as u8);
        let (mut waiting, mut bits) = (0u128, 0);
        for value in block {
            waiting |= u128::from(value) << bits;
            bits += width;
            while bits >= 8 {
                #[expect(clippy::cast_possible_truncation, reason = "the lowest byte")]
                bytes.push(waiting as u8);
                waiting >>= 8;
                bits -= 8;
            }
        }
    }
}

/// Takes `count` values from the beginning of `bytes`.
///
/// Errors: `bytes` are too short or malformed.
pub(super) fn unpack(bytes: &mut &[u8], count: usize) -> Result<Vec<i64>> {
    let mut values = Vec::new();
    while values.len() < count {
        let (width, packed) = match bytes.split_first() {
            Some((width, rest)) if *width <= 64 => match rest.split_at_checked(4 * *width as usize)
            {
                Some((packed, rest)) => {
                    *bytes = rest;
                    (u32::from(*width), packed)
                }
                None => bail!(Format, "expected {count} packed numbers, found an end"),
            },
            Some((width, _)) => bail!(Format, "expected a width up to 64 bits, found {width}"),
            None => bail!(
                Format,
                "expected {count} packed numbers, found {}",
                values.len()
            ),
        };
        let mask = if width == 64 {
            u64::MAX
        } else {
            (1 << width) - 1
        };
        let (mut waiting, mut bits, mut packed) = (0u128, 0, packed.iter());
        for _ in 0..BLOCK.min(count - values.len()) {
            while bits < width {
                waiting |= u128::from(*packed.next().unwrap_or(&0)) << bits;
                bits += 8;
            }
            #[expect(clippy::cast_possible_truncation, reason = "the lowest bits")]
            let value = waiting as u64 & mask;
            waiting >>= width;
            bits -= width;
            values.push((value >> 1).cast_signed() ^ -((value & 1).cast_signed()));
        }
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_was_packed_comes_back(
            values in proptest::collection::vec(any::<i64>(), 0..100),
            shift in 0..64u32,
        ) {
            let values: Vec<i64> = values.iter().map(|value| value >> shift).collect();
            let mut bytes = Vec::new();
            pack(values.iter().copied(), &mut bytes);
            pack([7], &mut bytes);
            let mut rest = &bytes[..];
            prop_assert_eq!(unpack(&mut rest, values.len()).unwrap(), values);
            prop_assert_eq!(unpack(&mut rest, 1).unwrap(), [7]);
            prop_assert!(rest.is_empty());
        }
    }

    #[test]
    fn small_numbers_take_few_bits() {
        let mut bytes = Vec::new();
        pack([0; 64], &mut bytes);
        assert_eq!(bytes, [0, 0]);
        bytes.clear();
        pack([-4, 3], &mut bytes);
        assert_eq!(bytes.len(), 1 + 4 * 3);
    }

    #[test]
    fn damage_is_an_error() {
        let mut bytes = Vec::new();
        pack([1000; 40], &mut bytes);
        for (damaged, want) in [
            (&bytes[..bytes.len() - 1], "found an end"),
            (&bytes[..1 + 4 * 11], "found 32"),
            (&[65, 1][..], "up to 64 bits"),
        ] {
            let error = unpack(&mut &*damaged, 40).unwrap_err().to_string();
            assert!(error.contains(want), "{error}");
        }
    }
}
