//! An emulation of AMX's tiles, for machines without them, and the tests that it makes possible.
//!
//! It runs the text that `asm!` assembles: the dozen forms of instructions in it, as Intel's manual
//! defines them. Configurations that the CPU would refuse, and memory outside of a product's
//! operands, are panics. What it does not show is that the CPU does the same.

use std::arch::asm;
use std::cell::RefCell;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::*;
use crate::device::cpu::int8::dot;

type Tile = [[u8; 64]; HALF];

/// Tiles, and what was done to their configuration.
#[derive(Default)]
pub(in super::super) struct Emulation {
    config: RefCell<Option<TileConfig>>,
    /// Rows of the first and second half that were configured; `None`: a release.
    log: RefCell<Vec<Option<[u8; 2]>>>,
    /// A change of the instructions, (from, to), that must be noticed.
    planted: Option<(&'static str, &'static str)>,
}

/// What instructions can reach.
struct Reach<'m> {
    registers: HashMap<&'static str, usize>,
    readable: [&'m [u8]; 2],
    writable: &'m mut [u8],
    config: TileConfig,
    tiles: [Tile; 8],
}

impl Unit for &Emulation {
    fn configure(self, config: &TileConfig) {
        assert_eq!((config.palette, config.start), (1, 0));
        assert_eq!(config.reserved, [0; 14]);
        for tile in 0..8 {
            assert!((1..=16).contains(&config.rows[tile]), "rows of tile {tile}");
            let line = config.line[tile];
            assert!(
                (1..=64).contains(&line) && line.is_multiple_of(4),
                "tile {tile}"
            );
        }
        assert_eq!(
            (config.line[8..].iter().max(), config.rows[8..].iter().max()),
            (Some(&0), Some(&0))
        );
        *self.config.borrow_mut() = Some(*config);
        self.log
            .borrow_mut()
            .push(Some([config.rows[4], config.rows[5]]));
    }

    fn release(self) {
        *self.config.borrow_mut() = None;
        self.log.borrow_mut().push(None);
    }

    #[expect(unsafe_code, reason = "as in the trait; all is checked here")]
    unsafe fn multiply(self, mut operands: Operands<'_>) {
        macro_rules! as_text {
            ([$from:ident] $($text:tt),*; $($name:ident)*; $($tile:tt)*) => {(
                &[$($text),*][..],
                HashMap::from([$((stringify!($name), $from.$name as usize)),*]),
                &[$($tile),*][..],
            )};
        }
        let registers = operands.registers();
        let (text, registers, clobbers) = match operands.is_tall() {
            true => two_halves!(as_text!(registers)),
            false => one_half!(as_text!(registers)),
        };
        let text: Vec<String> = match self.planted {
            None => text.iter().map(|line| (*line).to_owned()).collect(),
            Some((from, to)) => text.iter().map(|line| line.replace(from, to)).collect(),
        };
        for word in text.iter().flat_map(|line| line.split([' ', ','])) {
            assert!(
                !word.starts_with("tmm") || clobbers.contains(&word),
                "{word}"
            );
        }
        Reach {
            registers,
            readable: [operands.a, operands.panel].map(bytemuck::cast_slice),
            writable: bytemuck::cast_slice_mut(&mut operands.sums.0[..operands.rows]),
            config: self.config.borrow().expect("tiles that are configured"),
            // What a tile held before is never used.
            tiles: [[[0xa5; 64]; HALF]; 8],
        }
        .run(&text);
    }
}

impl Reach<'_> {
    fn run(mut self, text: &[String]) {
        let (mut at, mut is_zero) = (0, false);
        while let Some(line) = text.get(at) {
            at += 1;
            let (name, rest) = line.split_once(' ').unwrap_or((line, ""));
            let operands: Vec<&str> = rest.split(", ").collect();
            match (name, &operands[..]) {
                ("2:", _) => {}
                ("tilezero", [to]) => self.tiles[tile(to)] = [[0; 64]; HALF],
                ("tileloadd", [to, from]) => self.load(tile(to), from),
                ("tilestored", [to, from]) => self.store(to, tile(from)),
                ("tdpbusd", [sums, a, b]) => self.multiply(tile(sums), tile(a), tile(b)),
                ("add", [to, what]) => {
                    let what = self.value(what);
                    *self.register(to) += what;
                }
                ("dec", [what]) => {
                    let count = self.register(what);
                    *count -= 1;
                    is_zero = *count == 0;
                }
                ("jnz", ["2b"]) if !is_zero => {
                    at = text.iter().position(|line| line == "2:").expect("a label");
                }
                ("jnz", ["2b"]) => {}
                _ => panic!("{line}: an instruction that is not emulated"),
            }
        }
    }

    fn register(&mut self, name: &str) -> &mut usize {
        let name = name.trim_matches(['{', '}']);
        self.registers
            .get_mut(name)
            .expect("a register of the list")
    }

    /// A register's or a number's.
    fn value(&mut self, text: &str) -> usize {
        text.parse().unwrap_or_else(|_| *self.register(text))
    }

    /// The bytes of a line, and the address of each line of a tile: `[{base} + {stride}*1 + more]`.
    fn lines(&mut self, tile: usize, place: &str) -> (usize, Vec<usize>) {
        let place = place.trim_matches(['[', ']']);
        let (mut begin, mut stride) = (0, 0);
        for part in place.split(" + ") {
            match part.strip_suffix("*1") {
                Some(register) => stride = *self.register(register),
                None => begin += self.value(part),
            }
        }
        let (bytes, rows) = (self.config.line[tile], self.config.rows[tile]);
        let address = |row| begin + usize::from(row) * stride;
        (usize::from(bytes), (0..rows).map(address).collect())
    }

    fn load(&mut self, to: usize, place: &str) {
        let (bytes, addresses) = self.lines(to, place);
        self.tiles[to] = [[0; 64]; HALF];
        for (row, address) in addresses.into_iter().enumerate() {
            let mut found = self.readable.iter().filter_map(|memory| {
                let from = address.checked_sub(memory.as_ptr().addr())?;
                memory.get(from..from + bytes)
            });
            let line = found.next().expect("a line of the operands");
            self.tiles[to][row][..bytes].copy_from_slice(line);
        }
    }

    fn store(&mut self, place: &str, from: usize) {
        let (bytes, addresses) = self.lines(from, place);
        for (row, address) in addresses.into_iter().enumerate() {
            let to = address.checked_sub(self.writable.as_ptr().addr());
            let line = to.and_then(|to| self.writable.get_mut(to..to + bytes));
            let line = line.expect("a row of sums");
            line.copy_from_slice(&self.tiles[from][row][..bytes]);
        }
    }

    /// Sums of products of the unsigned bytes of `a` and the signed bytes of `b`, by fours.
    fn multiply(&mut self, sums: usize, a: usize, b: usize) {
        let (rows, line) = (self.config.rows, self.config.line);
        let is_defined = rows[sums] == rows[a]
            && line[sums] == line[b]
            && line[a] == 4 * u16::from(rows[b])
            && sums != a
            && sums != b
            && a != b;
        assert!(
            is_defined,
            "tiles {sums}, {a}, {b}: rows {rows:?}, lines {line:?}"
        );
        let [a, b] = [a, b].map(|tile| self.tiles[tile]);
        for (sums, a) in self.tiles[sums].iter_mut().zip(a).take(rows[sums].into()) {
            for (x, b) in a.as_chunks::<4>().0.iter().zip(b) {
                let columns = sums.as_chunks_mut::<4>().0.iter_mut();
                for (sum, w) in columns.zip(b.as_chunks::<4>().0) {
                    let products = x.iter().zip(w);
                    let four: i32 = products
                        .map(|(x, w)| i32::from(*x) * i32::from(w.cast_signed()))
                        .sum();
                    *sum = i32::from_le_bytes(*sum).wrapping_add(four).to_le_bytes();
                }
            }
        }
    }
}

fn tile(name: &str) -> usize {
    let number = name.strip_prefix("tmm").expect("a tile");
    number.parse().expect("its number")
}

/// Lines that look random.
fn noise(count: usize, seed: usize) -> Vec<ByteLine> {
    let byte = |at: usize| (((at + seed) * 2_654_435_761) >> 13).to_le_bytes()[0];
    let line = |line: usize| ByteLine(std::array::from_fn(|at| byte(line * 64 + at)));
    (0..count).map(line).collect()
}

/// Whether a product with `planted` in its instructions is the reference's; a panic means no.
fn is_right(rows: usize, blocks: usize, planted: Option<(&'static str, &'static str)>) -> bool {
    let (a, panel) = (noise(rows * blocks, 1), noise(PANEL * blocks, 99));
    let (mut got, mut want) = (Sums::new(), Sums::new());
    dot(rows, &a, &panel, &mut want);
    let emulation = Emulation {
        planted,
        ..Emulation::default()
    };
    let product = || Tiles::with(&emulation, |tiles| tiles.dot(rows, &a, &panel, &mut got));
    catch_unwind(AssertUnwindSafe(product)).is_ok() && got == want
}

#[test]
fn planted_errors_in_the_instructions_are_noticed() {
    for rows in [1, 16, 17, 32] {
        assert!(
            is_right(rows, 6, None) && is_right(rows, 24, None),
            "{rows}"
        );
    }
    for (from, to) in [
        ("tilezero tmm1", "tilezero tmm0"),
        (
            "tileloadd tmm6, [{b} + {line}*1]",
            "tileloadd tmm6, [{b} + {line}*1 + 64]",
        ),
        ("+ 1024", "+ 960"),
        ("+ {line}", "+ {row}"),
        ("tmm4, tmm6", "tmm6, tmm4"),
        ("tdpbusd tmm1, tmm4, tmm7", "tdpbusd tmm1, tmm4, tmm6"),
        ("{b}, 2048", "{b}, 2112"),
        ("{b}, 2048", "{b}, 1024"),
        ("{a0}, {step}", "{a0}, 64"),
        ("dec {blocks}", "add {blocks}, 0"),
        ("jnz 2b", "2:"),
        ("[{c0} + {row}*1]", "[{c0} + {line}*1]"),
        ("*1 + 64], tmm1", "*1 + 68], tmm1"),
    ] {
        assert!(!is_right(9, 6, Some((from, to))), "{from} -> {to}");
        assert!(!is_right(31, 6, Some((from, to))), "{from} -> {to}");
    }
    for (from, to) in [
        ("tilezero tmm3", "tilezero tmm2"),
        ("{a1}, {step}", "{a1}, {row}"),
        ("[{a1}", "[{a0}"),
        ("tdpbusd tmm3, tmm5, tmm7", "tdpbusd tmm3, tmm4, tmm7"),
        ("[{c1} + {row}*1 + 64]", "[{c0} + {row}*1 + 64]"),
    ] {
        assert!(!is_right(32, 6, Some((from, to))), "{from} -> {to}");
    }
}

#[test]
fn tiles_are_configured_for_other_rows_and_released_at_the_end() {
    let emulation = Emulation::default();
    let product = |tiles: &Tiles<&Emulation>, rows: usize| {
        let (a, panel) = (noise(rows, 1), noise(PANEL, 2));
        tiles.dot(rows, &a, &panel, &mut Sums::new());
    };
    let log = || emulation.log.take();
    Tiles::with(&emulation, |_| ());
    assert_eq!(log(), []);
    Tiles::with(&emulation, |tiles| {
        [18, 18, 16, 16, 33 / 2, 31].map(|rows| product(tiles, rows))
    });
    let each = [Some([9, 9]), Some([16, 16]), Some([16, 15]), None];
    assert_eq!(log(), each);
    // One within another takes the tiles away, and they are configured again.
    Tiles::with(&emulation, |outer| {
        product(outer, 5);
        Tiles::with(&emulation, |inner| product(inner, 5));
        product(outer, 5);
    });
    assert_eq!(log(), [Some([5, 5]), None, Some([5, 5]), None]);
    let panic = catch_unwind(AssertUnwindSafe(|| {
        Tiles::with(&emulation, |tiles| {
            product(tiles, 4);
            panic!("on purpose");
        })
    }));
    assert!(panic.is_err());
    assert_eq!(log(), [Some([4, 4]), None]);
    assert_eq!(CONFIGURED.get(), 0);
}

#[test]
fn operands_of_other_lengths_are_refused() {
    for (rows, of_a, of_panel) in [
        (0, 0, 32),
        (33, 33, 32),
        (2, 3, 32),
        (2, 2, 31),
        (2, 2, 64),
        (2, 0, 0),
    ] {
        let (a, panel) = (noise(of_a, 1), noise(of_panel, 2));
        let mut sums = Sums::new();
        let product = AssertUnwindSafe(|| {
            let emulation = Emulation::default();
            Tiles::with(&emulation, |tiles| tiles.dot(rows, &a, &panel, &mut sums));
        });
        let panic = catch_unwind(product).expect_err("lengths that differ");
        let message = panic.downcast_ref::<String>().expect("a message");
        assert!(message.starts_with("int8: "), "{message}");
    }
}

#[test]
fn tiles_are_refused_with_the_reason() {
    let good = Signs {
        features: FEATURES | 1,
        kept: KEPT | 0xe7,
        palette: PALETTE,
    };
    let never = || -> io::Result<()> { panic!("nothing to ask for") };
    let why = |signs: Signs| signs.judge(never).expect_err("a reason");
    assert_eq!(good.judge(|| Ok(())), Ok(()));
    assert_eq!(
        why(Signs {
            features: 1 << 24,
            ..good
        }),
        "not on this CPU"
    );
    assert_eq!(
        why(Signs {
            features: 1 << 25,
            ..good
        }),
        "not on this CPU"
    );
    let kept = 0xe7 | 1 << 17;
    assert_eq!(
        why(Signs { kept, ..good }),
        "the system does not keep its registers"
    );
    let palette = [0, 0, 0];
    assert_eq!(
        why(Signs { palette, ..good }),
        "tiles of another size, [0, 0, 0]"
    );
    let refused = good.judge(|| Err(io::Error::from_raw_os_error(libc::EINVAL)));
    let want = "Linux refuses permission: Invalid argument (os error 22)";
    assert_eq!(refused, Err(want.to_owned()));
}

/// The machine code of a list of instructions, which is jumped over.
macro_rules! encode {
    ([] $($text:tt),*; $($name:ident)*; $($tile:tt)*) => {{
        let (begin, end): (*const u8, *const u8);
        // SAFETY: Nothing is executed but two loads of an address and a jump. Between the two
        // addresses there is code, which may be read.
        unsafe {
            asm!(
                "lea {begin}, [rip + 3f]",
                "lea {end}, [rip + 4f]",
                "jmp 4f",
                "3:",
                $($text,)*
                "4:",
                begin = out(reg) begin,
                end = out(reg) end,
                $($name = in(reg) 0usize,)*
            );
            let length = end.addr() - begin.addr();
            std::slice::from_raw_parts(begin, length).to_vec()
        }
    }};
}

/// Intel's manual: VEX.128, map 0F38, W0. Prefix F2, opcode 49: `tilezero`, its tile in ModRM.reg.
/// Prefix 66, opcode 5E: unsigned by signed bytes, sums in ModRM.reg, unsigned in ModRM.rm, signed
/// in VEX.vvvv, inverted.
#[test]
#[expect(unsafe_code, reason = "reads machine code")]
fn the_text_assembles_to_the_instructions_of_the_manual() {
    let zero = |tile: u8| vec![0xc4, 0xe2, 0x7b, 0x49, 0xc0 | tile << 3];
    let product =
        |sums: u8, a: u8, b: u8| vec![0xc4, 0xe2, (!b & 15) << 3 | 1, 0x5e, 0xc0 | sums << 3 | a];
    let one = [zero(0), zero(1), product(0, 4, 6), product(1, 4, 7)];
    let two = [
        zero(0),
        zero(1),
        zero(2),
        zero(3),
        product(0, 4, 6),
        product(1, 4, 7),
        product(2, 5, 6),
        product(3, 5, 7),
    ];
    for (code, want) in [
        (one_half!(encode!()), &one[..]),
        (two_halves!(encode!()), &two[..]),
    ] {
        let mut left = &code[..];
        for instruction in want {
            let at = left.windows(5).position(|bytes| bytes == instruction);
            let at = at.unwrap_or_else(|| panic!("{instruction:x?} in {left:x?}"));
            left = &left[at + 5..];
        }
        let products = code
            .windows(3)
            .filter(|bytes| bytes[0] == 0xe2 && bytes[2] == 0x5e);
        assert_eq!(products.count(), want.len() / 2);
    }
}
