//! The header of a GGUF file: its metadata, and the sizes of its tensors.
//!
//! Little-endian, versions 2 and 3, as `docs/gguf.md` of ggml describes them. A length is compared
//! with what is left of the file before anything is allocated for it, and only short values are
//! kept.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use serde_json::{Number, Value};

use crate::error::{Result, bail, error};
use crate::files;

/// Most bytes of a header. A tokenizer of 256,000 tokens takes 15 MB.
const LARGEST: u64 = 256 << 20;

/// Longest key, and longest text that is kept, in bytes.
const LONGEST_KEY: u64 = 4096;
const LONGEST_TEXT: u64 = 16 << 10;

/// Most elements of an array that is kept.
const MOST_ELEMENTS: u64 = 256;

/// Most arrays within each other.
const DEEPEST: u32 = 4;

/// Most dimensions of a tensor.
const MOST_DIMENSIONS: u32 = 8;

/// What a GGUF file says of itself.
#[derive(Debug, Default)]
pub(super) struct GgufHeader {
    /// Of the metadata that is short.
    pub(super) metadata: BTreeMap<String, Value>,
    /// Elements of all tensors.
    pub(super) parameters: u64,
}

impl GgufHeader {
    /// Errors: no GGUF file of a version that is known; a length in it is larger than the file.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let (file, length) = files::open_file(path)?;
        Self::parse(BufReader::new(file), length).map_err(|error| error.at(path.display()))
    }

    /// The text under `key`.
    pub(super) fn text(&self, key: &str) -> Option<&str> {
        self.metadata.get(key)?.as_str()
    }

    fn parse(input: impl BufRead, length: u64) -> Result<Self> {
        let mut bytes = GgufBytes {
            input,
            left: length.min(LARGEST),
            whole: length <= LARGEST,
        };
        let magic = bytes.array::<4>().unwrap_or_default();
        if &magic != b"GGUF" {
            bail!(
                Format,
                "expected a GGUF file, found one that begins with \"{}\"",
                magic.escape_ascii()
            );
        }
        let version = bytes.u32()?;
        if version.swap_bytes() <= 0xffff && version > 0xffff {
            bail!(
                Unsupported,
                "expected a little-endian GGUF file, found a big-endian one"
            );
        }
        if !matches!(version, 2 | 3) {
            bail!(
                Unsupported,
                "expected GGUF of version 2 or 3, found version {version}; newer tools of \
                 llama.cpp convert old files"
            );
        }
        let (tensors, entries) = (bytes.u64()?, bytes.u64()?);
        let mut header = Self::default();
        for _ in 0..entries {
            let key = bytes.key()?;
            let kind = bytes.u32()?;
            let value = bytes.value(kind, 0).map_err(|error| error.at(&key))?;
            if let Some(value) = value {
                header.metadata.insert(key, value);
            }
        }
        for _ in 0..tensors {
            let elements = bytes.tensor()?;
            let sum = header.parameters.checked_add(elements);
            header.parameters = sum.ok_or_else(|| error!(Format, "the tensors are too large"))?;
        }
        Ok(header)
    }
}

/// The bytes that are left of a header.
struct GgufBytes<R> {
    input: R,
    left: u64,
    /// `left` ends with the file, and not with the bound of a header.
    whole: bool,
}

impl<R: BufRead> GgufBytes<R> {
    /// Takes `n` off what is left.
    fn take(&mut self, n: u64) -> Result<()> {
        match self.left.checked_sub(n) {
            Some(left) => self.left = left,
            None if self.whole => bail!(
                Format,
                "expected {n} more bytes, found {}: the file is cut or damaged",
                self.left
            ),
            None => bail!(
                Format,
                "expected a header of at most {LARGEST} bytes, found a larger one"
            ),
        }
        Ok(())
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.take(N as u64)?;
        let read = self.input.read_exact(&mut bytes);
        read.map_err(|e| error!(Io, "cannot read: {e}"))?;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn skip(&mut self, n: u64) -> Result<()> {
        self.take(n)?;
        let skipped = std::io::copy(&mut (&mut self.input).take(n), &mut std::io::sink());
        match skipped {
            Ok(skipped) if skipped == n => Ok(()),
            Ok(skipped) => bail!(
                Format,
                "expected {n} more bytes, found {skipped}: the file became shorter"
            ),
            Err(e) => bail!(Io, "cannot read: {e}"),
        }
    }

    /// `length` bytes of text, not more than the caller's bound.
    fn characters(&mut self, length: u64) -> Result<Option<String>> {
        self.take(length)?;
        let mut bytes = Vec::new();
        let read = (&mut self.input).take(length).read_to_end(&mut bytes);
        let read = read.map_err(|e| error!(Io, "cannot read: {e}"))?;
        if read as u64 != length {
            bail!(
                Format,
                "expected {length} more bytes, found {read}: the file became shorter"
            );
        }
        Ok(String::from_utf8(bytes).ok())
    }

    fn key(&mut self) -> Result<String> {
        let length = self.u64()?;
        if length > LONGEST_KEY {
            bail!(
                Format,
                "expected a key of at most {LONGEST_KEY} bytes, found one of {length}"
            );
        }
        let key = self.characters(length)?;
        key.ok_or_else(|| error!(Format, "expected a key in UTF-8, found other bytes"))
    }

    /// A value of a type of GGUF; `None`: it is long, or no number or text of JSON.
    fn value(&mut self, kind: u32, depth: u32) -> Result<Option<Value>> {
        let number = |x: f64| Number::from_f64(x).map(Value::Number);
        Ok(match kind {
            0 => Some(self.array::<1>()?[0].into()),
            1 => Some(i8::from_le_bytes(self.array()?).into()),
            2 => Some(u16::from_le_bytes(self.array()?).into()),
            3 => Some(i16::from_le_bytes(self.array()?).into()),
            4 => Some(self.u32()?.into()),
            5 => Some(i32::from_le_bytes(self.array()?).into()),
            6 => number(f32::from_le_bytes(self.array()?).into()),
            7 => Some((self.array::<1>()?[0] != 0).into()),
            8 => {
                let length = self.u64()?;
                if length > LONGEST_TEXT {
                    self.skip(length)?;
                    return Ok(None);
                }
                self.characters(length)?.map(Value::String)
            }
            9 => self.elements(depth)?,
            10 => Some(self.u64()?.into()),
            11 => Some(i64::from_le_bytes(self.array()?).into()),
            12 => number(f64::from_le_bytes(self.array()?)),
            _ => bail!(
                Format,
                "expected a type of value from 0 to 12, found {kind}"
            ),
        })
    }

    /// An array; `None`: it is long.
    fn elements(&mut self, depth: u32) -> Result<Option<Value>> {
        if depth == DEEPEST {
            bail!(
                Format,
                "expected at most {DEEPEST} arrays within each other, found more"
            );
        }
        let (kind, count) = (self.u32()?, self.u64()?);
        let each = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            10..=12 => 8,
            // A text or an array takes at least its length, or its type and its length.
            8 => 8,
            _ => 12,
        };
        let least = count.saturating_mul(each);
        if count > MOST_ELEMENTS && !matches!(kind, 8 | 9) {
            self.skip(least)?;
            return Ok(None);
        }
        if least > self.left {
            self.take(least)?;
        }
        let mut kept = Vec::new();
        for _ in 0..count {
            match (kind, count > MOST_ELEMENTS) {
                (8, true) => {
                    let length = self.u64()?;
                    self.skip(length)?;
                }
                _ => {
                    let value = self.value(kind, depth + 1)?;
                    kept.extend(value.filter(|_| count <= MOST_ELEMENTS));
                }
            }
        }
        Ok((count <= MOST_ELEMENTS).then_some(Value::Array(kept)))
    }

    /// The elements of a tensor.
    fn tensor(&mut self) -> Result<u64> {
        let name = self.key()?;
        let dimensions = self.u32()?;
        if dimensions > MOST_DIMENSIONS {
            bail!(
                Format,
                "tensor {name}: expected at most {MOST_DIMENSIONS} dimensions, found {dimensions}"
            );
        }
        let mut elements = 1_u64;
        for _ in 0..dimensions {
            let product = elements.checked_mul(self.u64()?);
            elements = product.ok_or_else(|| {
                error!(
                    Format,
                    "tensor {name}: expected a size of 64 bits, found a larger one"
                )
            })?;
        }
        // Its type and its place.
        self.skip(4 + 8)?;
        Ok(elements)
    }
}

/// The name of a `general.file_type`, llama.cpp's enumeration of how most tensors are quantised.
pub(super) fn quantisation(file_type: u64) -> Option<&'static str> {
    Some(match file_type {
        0 => "F32",
        1 => "F16",
        2 => "Q4_0",
        3 => "Q4_1",
        7 => "Q8_0",
        8 => "Q5_0",
        9 => "Q5_1",
        10 => "Q2_K",
        11 => "Q3_K_S",
        12 => "Q3_K_M",
        13 => "Q3_K_L",
        14 => "Q4_K_S",
        15 => "Q4_K_M",
        16 => "Q5_K_S",
        17 => "Q5_K_M",
        18 => "Q6_K",
        19 => "IQ2_XXS",
        20 => "IQ2_XS",
        21 => "Q2_K_S",
        22 => "IQ3_XS",
        23 => "IQ3_XXS",
        24 => "IQ1_S",
        25 => "IQ4_NL",
        26 => "IQ3_S",
        27 => "IQ3_M",
        28 => "IQ2_S",
        29 => "IQ2_M",
        30 => "IQ4_XS",
        31 => "IQ1_M",
        32 => "BF16",
        36 => "TQ1_0",
        37 => "TQ2_0",
        38 => "MXFP4_MOE",
        _ => return None,
    })
}

#[cfg(test)]
pub(super) mod make {
    //! GGUF files for tests.

    pub(crate) fn text(text: &str) -> Vec<u8> {
        let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
        bytes.extend(text.as_bytes());
        bytes
    }

    /// A metadata entry: key, type, bytes of the value.
    pub(crate) fn entry(key: &str, kind: u32, value: &[u8]) -> Vec<u8> {
        [&text(key), &kind.to_le_bytes()[..], value].concat()
    }

    pub(crate) fn file(entries: &[Vec<u8>], tensors: &[(&str, &[u64])]) -> Vec<u8> {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend((tensors.len() as u64).to_le_bytes());
        bytes.extend((entries.len() as u64).to_le_bytes());
        bytes.extend(entries.concat());
        for (name, shape) in tensors {
            bytes.extend(text(name));
            bytes.extend(u32::try_from(shape.len()).unwrap_or(0).to_le_bytes());
            for size in *shape {
                bytes.extend(size.to_le_bytes());
            }
            bytes.extend([0; 12]);
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::make::{entry, file, text};
    use super::*;
    use serde_json::json;

    fn parsed(bytes: &[u8]) -> Result<GgufHeader> {
        GgufHeader::parse(bytes, bytes.len() as u64)
    }

    fn array(kind: u32, count: u64, elements: &[u8]) -> Vec<u8> {
        [&kind.to_le_bytes()[..], &count.to_le_bytes(), elements].concat()
    }

    #[test]
    fn every_type_of_value_is_read() {
        let long: Vec<u8> = (0..300).flat_map(|_| text("token")).collect();
        let entries = [
            entry("u8", 0, &[200]),
            entry("i8", 1, &[0xff]),
            entry("u16", 2, &[1, 1]),
            entry("i16", 3, &[0xfe, 0xff]),
            entry("u32", 4, &7_u32.to_le_bytes()),
            entry("i32", 5, &(-7_i32).to_le_bytes()),
            entry("f32", 6, &0.5_f32.to_le_bytes()),
            entry("bool", 7, &[1]),
            entry("text", 8, &text("é")),
            entry("long", 8, &text(&"x".repeat(20_000))),
            entry("bytes", 8, &[&1_u64.to_le_bytes()[..], b"\xff"].concat()),
            entry("u64", 10, &(1_u64 << 60).to_le_bytes()),
            entry("i64", 11, &(-1_i64).to_le_bytes()),
            entry("f64", 12, &1e300_f64.to_le_bytes()),
            entry("nan", 12, &f64::NAN.to_le_bytes()),
            entry("tags", 9, &array(8, 2, &[text("a"), text("b")].concat())),
            entry("nested", 9, &array(9, 1, &array(4, 1, &[9, 0, 0, 0]))),
            entry("tokens", 9, &array(8, 300, &long)),
            entry("scores", 9, &array(6, 300, &[0; 1200])),
            entry("general.name", 8, &text("last")),
        ];
        let header = parsed(&file(&entries, &[("a", &[3, 4]), ("b", &[5]), ("c", &[])])).unwrap();
        let want = json!({
            "u8": 200, "i8": -1, "u16": 257, "i16": -2, "u32": 7, "i32": -7, "f32": 0.5,
            "bool": true, "text": "é", "u64": 1_u64 << 60, "i64": -1, "f64": 1e300,
            "tags": ["a", "b"], "nested": [[9]], "general.name": "last",
        });
        assert_eq!(serde_json::to_value(&header.metadata).unwrap(), {
            let sorted: BTreeMap<String, Value> = serde_json::from_value(want).unwrap();
            serde_json::to_value(sorted).unwrap()
        });
        assert_eq!(header.parameters, 12 + 5 + 1);
    }

    #[test]
    fn lengths_are_checked_before_they_are_believed() {
        let huge = &u64::MAX.to_le_bytes()[..];
        let with = |entries: &[Vec<u8>]| file(entries, &[]);
        let mut counts = file(&[], &[]);
        counts[16..24].copy_from_slice(huge);
        let mut tensors = file(&[], &[]);
        tensors[8..16].copy_from_slice(huge);
        let nested = (0..6).fold(array(4, 0, &[]), |inner, _| array(9, 1, &inner));
        for (bytes, says) in [
            (b"".to_vec(), "expected a GGUF file"),
            (b"GG".to_vec(), "expected a GGUF file"),
            (b"PK\x03\x04 a zip".to_vec(), "begins with \"PK\\x03\\x04\""),
            (
                b"GGUF\x01\0\0\0".to_vec(),
                "version 2 or 3, found version 1",
            ),
            (b"GGUF\0\0\0\x03".to_vec(), "big-endian"),
            (b"GGUF\x03\0\0\0\x01".to_vec(), "8 more bytes, found 1"),
            (counts, "more bytes"),
            (tensors, "more bytes"),
            (
                with(&[entry("a", 8, huge)]),
                "a: expected 18446744073709551615 more bytes, found 0",
            ),
            (
                with(&[entry("a", 9, &array(6, u64::MAX, &[]))]),
                "more bytes, found 0",
            ),
            (
                with(&[entry("a", 9, &array(8, u64::MAX, &[]))]),
                "more bytes, found 0",
            ),
            (
                with(&[entry("a", 9, &array(9, 1 << 40, &[]))]),
                "more bytes, found 0",
            ),
            (
                with(&[entry("a", 9, &array(8, 2, huge))]),
                "more bytes, found",
            ),
            (with(&[entry("a", 13, &[])]), "from 0 to 12, found 13"),
            (
                with(&[entry("a", 9, &nested)]),
                "4 arrays within each other",
            ),
            (
                with(&[entry(&"k".repeat(5000), 7, &[1])]),
                "a key of at most 4096 bytes",
            ),
            (
                file(&[], &[("t", &[1 << 40, 1 << 40])]),
                "tensor t: expected a size of 64 bits",
            ),
            (
                file(&[], &[("t", &[1; 9])]),
                "at most 8 dimensions, found 9",
            ),
            (
                file(&[], &[("t", &[u64::MAX]), ("u", &[1])]),
                "tensors are too large",
            ),
        ] {
            let error = parsed(&bytes).unwrap_err().to_string();
            assert!(error.contains(says), "{says}: {error}");
        }
    }

    #[test]
    fn every_cut_is_an_error() {
        let entries = [
            entry("general.name", 8, &text("x")),
            entry("tags", 9, &array(8, 2, &[text("a"), text("b")].concat())),
        ];
        let whole = file(&entries, &[("a", &[3, 4])]);
        parsed(&whole).unwrap();
        for end in 0..whole.len() {
            parsed(&whole[..end]).unwrap_err();
        }
    }

    /// Neither a panic nor much memory: whatever the bytes are, only short values are kept.
    #[test]
    fn changed_bytes_are_read_within_bounds() {
        let tags = array(8, 2, &[text("a"), text("b")].concat());
        let entries = [
            entry("general.name", 8, &text("x")),
            entry("tags", 9, &tags),
            entry("nested", 9, &array(9, 1, &array(4, 1, &[9, 0, 0, 0]))),
            entry("n", 4, &7_u32.to_le_bytes()),
        ];
        let whole = file(&entries, &[("a", &[3, 4]), ("b", &[5])]);
        let (mut read, mut refused) = (0, 0);
        for draw in 0..20_000 {
            let mut bytes = whole.clone();
            for change in 0..=draw % 3 {
                let random = crate::num::mix(draw * 3 + change);
                let at = usize::try_from(random % whole.len() as u64).unwrap();
                bytes[at] = random.to_le_bytes()[7];
            }
            match parsed(&bytes) {
                Ok(header) => {
                    let kept = serde_json::to_string(&header.metadata).unwrap();
                    assert!(kept.len() <= 8 * whole.len(), "{kept}");
                    read += 1;
                }
                Err(_) => refused += 1,
            }
        }
        assert!(read > 1000 && refused > 1000, "{read} {refused}");
    }

    /// As a file would that is larger than any header.
    #[test]
    fn a_header_is_bounded() {
        let bytes = file(&[entry("a", 8, &(1_u64 << 40).to_le_bytes())], &[]);
        let error = GgufHeader::parse(&bytes[..], 1 << 50)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("a header of at most 268435456 bytes"),
            "{error}"
        );
    }
}
