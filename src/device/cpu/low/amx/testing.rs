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
use crate::device::cpu::low::Sums;
use crate::device::cpu::low::bf16::f32s;
use crate::device::cpu::low::dot;

type Tile = [[u8; 64]; HALF];

/// Tiles, and what was done to their configuration.
pub(in super::super) struct Emulation<N> {
    config: RefCell<Option<TileConfig>>,
    /// Rows of the first and second half that were configured; `None`: a release.
    log: RefCell<Vec<Option<[u8; 2]>>>,
    /// A change of the instructions, (from, to), that must be noticed.
    planted: Option<(&'static str, &'static str)>,
    numbers: PhantomData<N>,
}

impl<N> Default for Emulation<N> {
    fn default() -> Self {
        Self {
            config: RefCell::default(),
            log: RefCell::default(),
            planted: None,
            numbers: PhantomData,
        }
    }
}

/// The instructions' text, what its registers hold, and the tiles that it lists.
type Text = (
    &'static [&'static str],
    HashMap<&'static str, usize>,
    &'static [&'static str],
);

/// Numbers whose products are emulated.
pub(in super::super) trait TileText: TileNumbers {
    fn text(is_tall: bool, registers: Registers) -> Text;
}

macro_rules! as_text {
    ([$from:ident] $($text:expr),*; $($name:ident)*; $($tile:tt)*) => {(
        &[$($text),*][..],
        HashMap::from([$((stringify!($name), $from.$name as usize)),*]),
        &[$($tile),*][..],
    )};
}

macro_rules! tile_text {
    ($numbers:ident, $bit:literal, $dot:literal) => {
        impl TileText for $numbers {
            fn text(is_tall: bool, registers: Registers) -> Text {
                match is_tall {
                    true => two_halves!($dot, as_text!(registers)),
                    false => one_half!($dot, as_text!(registers)),
                }
            }
        }
    };
}

each_numbers!(tile_text);

/// What instructions can reach.
struct Reach<'m> {
    registers: HashMap<&'static str, usize>,
    readable: [&'m [u8]; 2],
    writable: &'m mut [u8],
    config: TileConfig,
    tiles: [Tile; 8],
}

impl<N: TileText> Unit for &Emulation<N> {
    type Numbers = N;

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
    unsafe fn multiply(self, mut operands: Operands<'_, N>) {
        let registers = operands.registers();
        let (text, registers, clobbers) = N::text(operands.is_tall(), registers);
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
            // What a tile held before is never used; as f32 it is 1.5e16.
            tiles: [[[0x5a; 64]; HALF]; 8],
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
                ("tdpbusd" | "tdpbf16ps", [sums, a, b]) => {
                    let tiles = [sums, a, b].map(|name| tile(name));
                    self.check(tiles);
                    match name {
                        "tdpbusd" => self.multiply_bytes(tiles),
                        _ => self.multiply_bf16(tiles),
                    }
                }
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

    /// The shapes of sums, first and second factor.
    fn check(&self, [sums, a, b]: [usize; 3]) {
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
    }

    /// Sums of products of the unsigned bytes of `a` and the signed bytes of `b`, by fours.
    fn multiply_bytes(&mut self, [sums, a, b]: [usize; 3]) {
        let rows = self.config.rows[sums].into();
        let [a, b] = [a, b].map(|tile| self.tiles[tile]);
        for (sums, a) in self.tiles[sums].iter_mut().zip(a).take(rows) {
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

    /// Sums of products of bf16, by twos: of the even and of the odd inputs apart, one chain of
    /// fused multiply-adds each, both added to what was there. What is below 2^-126 counts as zero.
    fn multiply_bf16(&mut self, [sums, a, b]: [usize; 3]) {
        let flushed = |x: f32| {
            if x.is_subnormal() {
                0.0f32.copysign(x)
            } else {
                x
            }
        };
        let rows = self.config.rows[sums].into();
        let [a, b] = [a, b].map(|tile| self.tiles[tile]);
        for (sums, a) in self.tiles[sums].iter_mut().zip(a).take(rows) {
            let mut chains = [[0.0f32; 2]; 16];
            for (x, b) in a.as_chunks::<4>().0.iter().zip(b) {
                for (chain, w) in chains.iter_mut().zip(b.as_chunks::<4>().0) {
                    let [x, w] = [*x, *w].map(f32s);
                    for (i, chain) in chain.iter_mut().enumerate() {
                        *chain = flushed(flushed(x[i]).mul_add(flushed(w[i]), *chain));
                    }
                }
            }
            for (sum, [even, odd]) in sums.as_chunks_mut::<4>().0.iter_mut().zip(chains) {
                let all = flushed(f32::from_le_bytes(*sum)) + flushed(even + odd);
                *sum = flushed(all).to_le_bytes();
            }
        }
    }
}

fn tile(name: &str) -> usize {
    let number = name.strip_prefix("tmm").expect("a tile");
    number.parse().expect("its number")
}

/// Lines that look random, and whose products are exact.
fn noise<N: Numbers>(count: usize, seed: usize) -> Vec<LowLine> {
    let byte = |at: usize| (((at + seed) * 2_654_435_761) >> 13).to_le_bytes()[0];
    let line = |line: usize| N::exact_line(std::array::from_fn(|at| byte(line * 64 + at)));
    (0..count).map(line).collect()
}

/// Whether a product with `planted` in its instructions is the reference's; a panic means no.
fn is_right<N: TileText>(
    rows: usize,
    blocks: usize,
    planted: Option<(&'static str, &'static str)>,
) -> bool {
    let (a, panel) = (noise::<N>(rows * blocks, 1), noise::<N>(PANEL * blocks, 99));
    let (mut got, mut want) = (Sums::new(), Sums::new());
    dot::<N>(rows, &a, &panel, &mut want);
    let emulation = Emulation::<N> {
        planted,
        ..Emulation::default()
    };
    let product = || Tiles::with(&emulation, |tiles| tiles.dot(rows, &a, &panel, &mut got));
    catch_unwind(AssertUnwindSafe(product)).is_ok() && got == want
}

#[test]
fn planted_errors_in_the_instructions_are_noticed() {
    notice_planted_errors::<Int8>();
    notice_planted_errors::<Bf16>();
}

fn notice_planted_errors<N: TileText>() {
    for rows in [1, 16, 17, 32] {
        assert!(
            is_right::<N>(rows, 6, None) && is_right::<N>(rows, 24, None),
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
        (" tmm1, tmm4, tmm7", " tmm1, tmm4, tmm6"),
        ("{b}, 2048", "{b}, 2112"),
        ("{b}, 2048", "{b}, 1024"),
        ("{a0}, {step}", "{a0}, 64"),
        ("dec {blocks}", "add {blocks}, 0"),
        ("jnz 2b", "2:"),
        ("[{c0} + {row}*1]", "[{c0} + {line}*1]"),
        ("*1 + 64], tmm1", "*1 + 68], tmm1"),
    ] {
        assert!(!is_right::<N>(9, 6, Some((from, to))), "{from} -> {to}");
        assert!(!is_right::<N>(31, 6, Some((from, to))), "{from} -> {to}");
    }
    for (from, to) in [
        ("tilezero tmm3", "tilezero tmm2"),
        ("{a1}, {step}", "{a1}, {row}"),
        ("[{a1}", "[{a0}"),
        (" tmm3, tmm5, tmm7", " tmm3, tmm4, tmm7"),
        ("[{c1} + {row}*1 + 64]", "[{c0} + {row}*1 + 64]"),
    ] {
        assert!(!is_right::<N>(32, 6, Some((from, to))), "{from} -> {to}");
    }
}

#[test]
fn tiles_are_configured_for_other_rows_and_released_at_the_end() {
    let emulation = Emulation::<Int8>::default();
    let product = |tiles: &Tiles<&Emulation<Int8>>, rows: usize| {
        let (a, panel) = (noise::<Int8>(rows, 1), noise::<Int8>(PANEL, 2));
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
        let (a, panel) = (noise::<Int8>(of_a, 1), noise::<Int8>(of_panel, 2));
        let mut sums = Sums::new();
        let product = AssertUnwindSafe(|| {
            let emulation = Emulation::<Int8>::default();
            Tiles::with(&emulation, |tiles| tiles.dot(rows, &a, &panel, &mut sums));
        });
        let panic = catch_unwind(product).expect_err("lengths that differ");
        let message = panic.downcast_ref::<String>().expect("a message");
        assert!(message.starts_with("AMX: "), "{message}");
    }
}

#[test]
fn tiles_are_refused_with_the_reason() {
    let (int8, bf16) = (Int8::FEATURE, Bf16::FEATURE);
    let good = Signs {
        features: TILE | int8 | bf16 | 1,
        kept: KEPT | 0xe7,
        palette: PALETTE,
    };
    let never = || -> io::Result<()> { panic!("nothing to ask for") };
    let why = |signs: Signs| signs.judge(int8, never).expect_err("a reason");
    assert_eq!(good.judge(int8, || Ok(())), Ok(()));
    assert_eq!(good.judge(bf16, || Ok(())), Ok(()));
    // Of the two products only that of bytes.
    let features = TILE | int8;
    let bytes_alone = Signs { features, ..good };
    assert_eq!(bytes_alone.judge(int8, || Ok(())), Ok(()));
    assert_eq!(
        bytes_alone.judge(bf16, never),
        Err("not on this CPU".to_owned())
    );
    assert_eq!(
        why(Signs {
            features: TILE,
            ..good
        }),
        "not on this CPU"
    );
    assert_eq!(
        why(Signs {
            features: int8 | bf16,
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
    let refused = good.judge(int8, || Err(io::Error::from_raw_os_error(libc::EINVAL)));
    let want = "Linux refuses permission: Invalid argument (os error 22)";
    assert_eq!(refused, Err(want.to_owned()));
}

/// The machine code of a list of instructions, which is jumped over.
macro_rules! encode {
    ([] $($text:expr),*; $($name:ident)*; $($tile:tt)*) => {{
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
/// A product has its sums in ModRM.reg, the first factor in ModRM.rm, the second in VEX.vvvv,
/// inverted. Prefix 66, opcode 5E: unsigned by signed bytes; prefix F3, opcode 5C: bf16.
#[test]
#[expect(unsafe_code, reason = "reads machine code")]
fn the_text_assembles_to_the_instructions_of_the_manual() {
    // The prefix as VEX.pp has it: 1 is 66, 2 is F3.
    check_encoding(
        [
            one_half!("tdpbusd", encode!()),
            two_halves!("tdpbusd", encode!()),
        ],
        1,
        0x5e,
    );
    check_encoding(
        [
            one_half!("tdpbf16ps", encode!()),
            two_halves!("tdpbf16ps", encode!()),
        ],
        2,
        0x5c,
    );
}

fn check_encoding([one, two]: [Vec<u8>; 2], prefix: u8, opcode: u8) {
    let zero = |tile: u8| vec![0xc4, 0xe2, 0x7b, 0x49, 0xc0 | tile << 3];
    let product = |sums: u8, a: u8, b: u8| {
        let vex = (!b & 15) << 3 | prefix;
        vec![0xc4, 0xe2, vex, opcode, 0xc0 | sums << 3 | a]
    };
    let of_one = [zero(0), zero(1), product(0, 4, 6), product(1, 4, 7)];
    let of_two = [
        zero(0),
        zero(1),
        zero(2),
        zero(3),
        product(0, 4, 6),
        product(1, 4, 7),
        product(2, 5, 6),
        product(3, 5, 7),
    ];
    for (code, want) in [(one, &of_one[..]), (two, &of_two[..])] {
        let mut left = &code[..];
        for instruction in want {
            let at = left.windows(5).position(|bytes| bytes == instruction);
            let at = at.unwrap_or_else(|| panic!("{instruction:x?} in {left:x?}"));
            left = &left[at + 5..];
        }
        let products = code
            .windows(3)
            .filter(|bytes| bytes[0] == 0xe2 && bytes[2] == opcode);
        assert_eq!(products.count(), want.len() / 2);
    }
}

/// Inputs in four bytes of a line are a pair, even and odd, and their sums meet at the end.
#[test]
fn sums_of_bf16_are_two_chains() {
    let half = |x: f32| super::super::bf16::upper_half(x).to_le_bytes();
    // 2^24 + 1 is no f32, so 2^24 in the even chain would swallow the ones of the odd one.
    let (mut a, mut panel) = (vec![LowLine([0; 64]); 1], vec![LowLine([0; 64]); PANEL]);
    for (pair, x) in [[16_777_216.0, 1.0], [0.0, 1.0], [-16_777_216.0, 0.0]]
        .into_iter()
        .enumerate()
    {
        for (i, x) in x.into_iter().enumerate() {
            a[0].0[4 * pair + 2 * i..][..2].copy_from_slice(&half(x));
            panel[pair].0[2 * i..][..2].copy_from_slice(&half(1.0));
        }
    }
    let emulation = Emulation::<Bf16>::default();
    let mut sums = Sums::new();
    Tiles::with(&emulation, |tiles| tiles.dot(1, &a, &panel, &mut sums));
    assert_eq!(sums.0[0][0][0], 2.0);
    dot::<Bf16>(1, &a, &panel, &mut sums);
    assert_eq!(sums.0[0][0][0], 0.0);
}
