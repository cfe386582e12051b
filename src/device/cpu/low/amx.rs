//! Products by AMX's tiles: of unsigned and signed bytes, summed exactly in i32, and of bf16,
//! summed in f32.
//!
//! Stable Rust has no intrinsics for tiles, so their instructions are text here. No tile lives
//! between two Rust statements: a product loads, multiplies and stores within one `asm!`. Tests
//! hand the same text to an emulation (`amx/testing.rs`), under the same code that prepares it.
//!
//! A process asks Linux for tiles once, and a thread's tiles need a configuration: the rows of
//! each. It is loaded when a product has other rows than the one before, and released with
//! [`Tiles`], so that no thread that is idle or computes something else has tiles to be saved.

use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};
use std::cell::Cell;
use std::io;
use std::marker::PhantomData;

use super::bf16::Bf16;
use super::int8::Int8;
use super::wide::Dot;
use super::{LowLine, Numbers, PANEL, SumsOf};

/// Most rows of a tile.
const HALF: usize = 16;

/// Proof that this CPU has tiles of these numbers, and that this process may use them.
#[derive(Clone, Copy)]
pub(crate) struct Amx<N>(PhantomData<N>);

/// Numbers that tiles multiply.
pub(crate) trait TileNumbers: Numbers {
    /// The bit of CPUID 7, EDX, for their product.
    const FEATURE: u32;

    /// # Safety
    ///
    /// As [`Unit::multiply`], by [`Operands::registers`] of up to 16 rows.
    #[expect(unsafe_code, reason = "a condition that types do not show")]
    unsafe fn multiply_one(registers: Registers);

    /// # Safety
    ///
    /// As [`Unit::multiply`], by [`Operands::registers`] of 17 to 32 rows.
    #[expect(unsafe_code, reason = "a condition that types do not show")]
    unsafe fn multiply_two(registers: Registers);
}

/// What this CPU and its system say of tiles.
#[derive(Clone, Copy)]
struct Signs {
    /// CPUID 7, EDX.
    features: u32,
    /// XCR0: the registers that the system keeps for each thread.
    kept: u64,
    /// CPUID 0x1d, 1: EAX, EBX, ECX.
    palette: [u32; 3],
}

/// AMX-TILE.
const TILE: u32 = 1 << 24;

/// The tiles' configuration, and the tiles.
const KEPT: u64 = 1 << 17 | 1 << 18;

/// 8 KiB in tiles of 1 KiB; lines of 64 bytes, 8 tiles; 16 lines.
const PALETTE: [u32; 3] = [1024 << 16 | 8192, 8 << 16 | 64, 16];

impl Signs {
    #[expect(unsafe_code, reason = "questions to the CPU")]
    #[allow(
        unused_unsafe,
        reason = "CPUID is safe from a later Rust than the oldest on"
    )]
    fn read() -> Self {
        // SAFETY: Every CPU with AVX-512, which comes first, has CPUID, and leaf 7.
        let (leaves, kinds, features) =
            unsafe { (__cpuid(0).eax, __cpuid(1).ecx, __cpuid_count(7, 0).edx) };
        let keeps = kinds & 1 << 27 != 0;
        Self {
            features,
            // SAFETY: OSXSAVE says that the system has turned XGETBV on.
            kept: if keeps { unsafe { _xgetbv(0) } } else { 0 },
            palette: if leaves < 0x1d {
                [0; 3]
            } else {
                // SAFETY: The CPU has this leaf.
                let palette = unsafe { __cpuid_count(0x1d, 1) };
                [palette.eax, palette.ebx, palette.ecx]
            },
        }
    }

    /// Why tiles with the product `feature` cannot be used; `ask` asks the system for them.
    fn judge(self, feature: u32, ask: impl FnOnce() -> io::Result<()>) -> Result<(), String> {
        let features = TILE | feature;
        if self.features & features != features {
            return Err("not on this CPU".to_owned());
        }
        if self.kept & KEPT != KEPT {
            return Err("the system does not keep its registers".to_owned());
        }
        if self.palette != PALETTE {
            return Err(format!("tiles of another size, {:x?}", self.palette));
        }
        ask().map_err(|error| format!("Linux refuses permission: {error}"))
    }
}

/// Asks Linux for tiles, for all threads of this process. It refuses where a sandbox forbids the
/// call, where a thread's stack for signals is too small for tiles, and before Linux 5.16.
#[expect(unsafe_code, reason = "a system call")]
fn ask() -> io::Result<()> {
    const ARCH_REQ_XCOMP_PERM: usize = 0x1023;
    const XFEATURE_XTILEDATA: usize = 18;
    // SAFETY: The call has two numbers and no pointer. From now on a signal's frame has room for
    // tiles, which Linux checks against the stacks that there are.
    let outcome = unsafe {
        libc::syscall(
            libc::SYS_arch_prctl,
            ARCH_REQ_XCOMP_PERM,
            XFEATURE_XTILEDATA,
        )
    };
    match outcome {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

impl<N: TileNumbers> Amx<N> {
    /// To be called on a CPU with AVX-512. `Err`: why this process cannot use tiles.
    pub(super) fn detect() -> Result<Self, String> {
        let judged = Signs::read().judge(N::FEATURE, ask);
        judged.map(|()| Self(PhantomData))
    }
}

/// The rows and bytes of a line of each tile, as `ldtilecfg` reads them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
pub(super) struct TileConfig {
    palette: u8,
    start: u8,
    reserved: [u8; 14],
    line: [u16; 16],
    rows: [u8; 16],
}

impl TileConfig {
    /// Tiles 0 to 3 for sums, 4 and 5 for the two halves of the rows, 6 and 7 for the panel's.
    fn new(heights: [usize; 2]) -> Self {
        let [first, second, whole] = [heights[0], heights[1], HALF].map(|n| n.to_le_bytes()[0]);
        let mut config = Self {
            palette: 1,
            start: 0,
            reserved: [0; 14],
            line: [0; 16],
            rows: [0; 16],
        };
        config.line[..8].fill(64);
        config.rows[..8]
            .copy_from_slice(&[first, first, second, second, first, second, whole, whole]);
        config
    }
}

/// A product whose lengths are right.
pub(super) struct Operands<'o, N: Numbers> {
    rows: usize,
    blocks: usize,
    a: &'o [LowLine],
    panel: &'o [LowLine],
    sums: &'o mut SumsOf<N>,
}

/// A row of sums, i32 or f32.
type SumRow = [[u32; 16]; 2];

/// What the instructions' text names.
#[derive(Clone, Copy)]
pub(crate) struct Registers {
    /// The first lines of the two halves of a block's rows.
    a0: *const LowLine,
    a1: *const LowLine,
    /// A block of the panel.
    b: *const LowLine,
    /// The sums of the two halves of the rows.
    c0: *mut SumRow,
    c1: *mut SumRow,
    /// Bytes from a line to the next, from a row of sums to the next, and from a block of rows to
    /// the next.
    line: usize,
    row: usize,
    step: usize,
    blocks: usize,
}

impl<'o, N: Numbers> Operands<'o, N> {
    fn new(rows: usize, a: &'o [LowLine], panel: &'o [LowLine], sums: &'o mut SumsOf<N>) -> Self {
        const { assert!(size_of::<N::Sum>() == size_of::<u32>()) };
        let blocks = panel.len() / PANEL;
        assert!(
            (1..=2 * HALF).contains(&rows)
                && blocks > 0
                && panel.len() == blocks * PANEL
                && a.len() == blocks * rows,
            "AMX: {} lines of {rows} rows by {} of a panel",
            a.len(),
            panel.len()
        );
        Self {
            rows,
            blocks,
            a,
            panel,
            sums,
        }
    }

    /// Whether the rows need two tiles.
    fn is_tall(&self) -> bool {
        self.rows > HALF
    }

    /// The rows of each half; a tile takes as long for 1 row as for 9, so both are about as tall.
    /// The second is not used where one half is enough.
    fn heights(&self) -> [usize; 2] {
        match self.is_tall() {
            true => [self.rows.div_ceil(2), self.rows / 2],
            false => [self.rows; 2],
        }
    }

    fn config(&self) -> TileConfig {
        TileConfig::new(self.heights())
    }

    fn registers(&mut self) -> Registers {
        let [first, _] = self.heights();
        let (a0, c0) = (self.a.as_ptr(), self.sums.0.as_mut_ptr().cast::<SumRow>());
        Registers {
            a0,
            a1: a0.wrapping_add(first),
            b: self.panel.as_ptr(),
            c0,
            c1: c0.wrapping_add(first),
            line: size_of::<LowLine>(),
            row: size_of::<SumRow>(),
            step: self.rows * size_of::<LowLine>(),
            blocks: self.blocks,
        }
    }
}

/// Where tiles are: this CPU, or an emulation.
pub(super) trait Unit: Copy {
    type Numbers: TileNumbers;

    fn configure(self, config: &TileConfig);

    fn release(self);

    /// # Safety
    ///
    /// This thread's tiles have the configuration of `operands`.
    #[expect(unsafe_code, reason = "a condition that types do not show")]
    unsafe fn multiply(self, operands: Operands<'_, Self::Numbers>);
}

thread_local! {
    /// The rows that this thread's tiles are configured for; 0: they are not.
    static CONFIGURED: Cell<usize> = const { Cell::new(0) };
}

/// This thread's tiles, which are released with it.
pub(super) struct Tiles<U: Unit> {
    unit: U,
    /// Not `Send` and not `Sync`.
    of_this_thread: PhantomData<*const ()>,
}

impl<U: Unit> Tiles<U> {
    pub(super) fn with<T>(unit: U, job: impl FnOnce(&Self) -> T) -> T {
        job(&Self {
            unit,
            of_this_thread: PhantomData,
        })
    }
}

impl<U: Unit> Drop for Tiles<U> {
    fn drop(&mut self) {
        if CONFIGURED.replace(0) != 0 {
            self.unit.release();
        }
    }
}

impl<U: Unit> Dot for &Tiles<U> {
    type Numbers = U::Numbers;

    const TALL: usize = 2 * HALF;

    #[expect(unsafe_code, reason = "the step into tiles")]
    fn dot(self, rows: usize, a: &[LowLine], panel: &[LowLine], sums: &mut SumsOf<U::Numbers>) {
        let operands = Operands::new(rows, a, panel, sums);
        if CONFIGURED.get() != rows {
            self.unit.configure(&operands.config());
            CONFIGURED.set(rows);
        }
        // SAFETY: The rows determine the configuration, and these rows' was loaded: nothing else
        // loads one on this thread while there are `Tiles`, but others of this thread, and those
        // that go first leave 0 behind.
        unsafe { self.unit.multiply(operands) }
    }
}

/// Calls a macro with each kind of numbers, the bit of its product in CPUID, and the product's
/// name.
macro_rules! each_numbers {
    ($use:ident) => {
        $use!(Int8, 25, "tdpbusd");
        $use!(Bf16, 22, "tdpbf16ps");
    };
}

/// Hands the instructions for up to 16 rows to a macro, with the product `$dot`: their text, the
/// registers and the tiles that it names. Loads and products take turns; the tiles of a panel have
/// a line for four bytes of inputs, in it four bytes of each output.
macro_rules! one_half {
    ($dot:literal, $use:ident!($($with:tt)*)) => {
        $use! {
            [$($with)*]
            "tilezero tmm0",
            "tilezero tmm1",
            "2:",
            "tileloadd tmm4, [{a0} + {line}*1]",
            "tileloadd tmm6, [{b} + {line}*1]",
            concat!($dot, " tmm0, tmm4, tmm6"),
            "tileloadd tmm7, [{b} + {line}*1 + 1024]",
            concat!($dot, " tmm1, tmm4, tmm7"),
            "add {b}, 2048",
            "add {a0}, {step}",
            "dec {blocks}",
            "jnz 2b",
            "tilestored [{c0} + {row}*1], tmm0",
            "tilestored [{c0} + {row}*1 + 64], tmm1";
            a0 b c0 line row step blocks;
            "tmm0" "tmm1" "tmm4" "tmm6" "tmm7"
        }
    };
}

/// As [`one_half`], for 17 to 32 rows.
macro_rules! two_halves {
    ($dot:literal, $use:ident!($($with:tt)*)) => {
        $use! {
            [$($with)*]
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "2:",
            "tileloadd tmm6, [{b} + {line}*1]",
            "tileloadd tmm4, [{a0} + {line}*1]",
            concat!($dot, " tmm0, tmm4, tmm6"),
            "tileloadd tmm7, [{b} + {line}*1 + 1024]",
            concat!($dot, " tmm1, tmm4, tmm7"),
            "tileloadd tmm5, [{a1} + {line}*1]",
            concat!($dot, " tmm2, tmm5, tmm6"),
            concat!($dot, " tmm3, tmm5, tmm7"),
            "add {b}, 2048",
            "add {a0}, {step}",
            "add {a1}, {step}",
            "dec {blocks}",
            "jnz 2b",
            "tilestored [{c0} + {row}*1], tmm0",
            "tilestored [{c0} + {row}*1 + 64], tmm1",
            "tilestored [{c1} + {row}*1], tmm2",
            "tilestored [{c1} + {row}*1 + 64], tmm3";
            a0 a1 b c0 c1 line row step blocks;
            "tmm0" "tmm1" "tmm2" "tmm3" "tmm4" "tmm5" "tmm6" "tmm7"
        }
    };
}

macro_rules! assemble {
    ([$registers:ident] $($text:expr),*; $($name:ident)*; $($tile:tt)*) => {
        asm!(
            $($text,)*
            $($name = inout(reg) $registers.$name => _,)*
            $(out($tile) _,)*
            options(nostack),
        )
    };
}

#[expect(unsafe_code, reason = "instructions without intrinsics")]
impl<N: TileNumbers> Unit for Amx<N> {
    type Numbers = N;

    fn configure(self, config: &TileConfig) {
        // SAFETY: `self` proves that the CPU has the instruction and the process its permission.
        // It reads the 64 bytes of `config`: palette 1, lines of 64 bytes, 1 to 16 rows.
        unsafe {
            asm!(
                "ldtilecfg [{config}]",
                config = in(reg) config,
                options(nostack, readonly, preserves_flags),
            );
        }
    }

    fn release(self) {
        // SAFETY: As above; what is in tiles is of no use any more.
        unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) }
    }

    unsafe fn multiply(self, mut operands: Operands<'_, N>) {
        let registers = operands.registers();
        let is_tall = operands.is_tall();
        // SAFETY: `self` proves that the CPU has the instructions and the process its permission.
        // The tiles have the rows of each half, lines of 64 bytes (the caller's promise), so a
        // block reads `rows` lines of `a` and 32 of `panel`, as often as both have blocks, at least
        // once; sums of `rows` rows are written. `Operands::new` has checked the lengths.
        unsafe {
            match is_tall {
                true => N::multiply_two(registers),
                false => N::multiply_one(registers),
            }
        }
    }
}

macro_rules! tile_numbers {
    ($numbers:ident, $bit:literal, $dot:literal) => {
        #[expect(unsafe_code, reason = "instructions without intrinsics")]
        impl TileNumbers for $numbers {
            const FEATURE: u32 = 1 << $bit;

            #[inline(never)]
            unsafe fn multiply_one(registers: Registers) {
                // SAFETY: The caller's promise. The instructions change memory and what is listed
                // alone.
                unsafe { one_half!($dot, assemble!(registers)) }
            }

            #[inline(never)]
            unsafe fn multiply_two(registers: Registers) {
                // SAFETY: The caller's promise. The instructions change memory and what is listed
                // alone.
                unsafe { two_halves!($dot, assemble!(registers)) }
            }
        }
    };
}

each_numbers!(tile_numbers);

#[cfg(test)]
mod testing;
#[cfg(test)]
pub(super) use testing::Emulation;
