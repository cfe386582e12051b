//! The CPU: as many threads as the host allowed, the SIMD level found or named at open.

pub(crate) mod barrier;
pub(crate) mod blocks;
mod cores;
mod crowd;
pub(crate) mod dense;
pub(crate) mod gemm;
mod level;
pub(crate) mod low;
pub(crate) mod math;
pub(crate) mod prefetch;
mod team;
mod turn;

use std::cell::Cell;
#[cfg(test)]
use std::time::Duration;

use crate::error::{Result, bail};
use barrier::{Attendance, Barrier};
use crowd::Crowd;
use gemm::Level;
pub use level::CpuLevel;
use low::{LowFormat, LowKernel};
use team::Team;
use turn::Turns;

/// Below this many multiply-adds a job is not worth a second thread.
const SMALL: usize = 15_000;

/// The same where the thread may have to be woken.
const SMALL_TO_WAKE: usize = 60_000;

/// Threads taken when the host names no number: a gateway has other work to do.
const MODEST: usize = 4;

/// Most threads a host may ask for.
const MOST: usize = 1024;

pub(crate) struct Cpu {
    /// None: everything runs on the caller's thread.
    team: Option<Team>,
    threads: usize,
    level: Level,
    /// What was asked for, which low precision has kernels of its own for.
    asked: CpuLevel,
    arch: pulp::Arch,
    /// One call at a time has all threads: two would only take each other's cores.
    turns: Turns,
    /// Calls that run alone, as many at a time as there are threads.
    alone: Turns,
    /// The process that the threads are in: a fork does not take them along.
    process: u32,
    /// Whether each thread can have a core.
    roomy: bool,
    crowd: Crowd,
}

/// A row-major matrix to be written; `stride` elements from one row to the next.
pub(crate) struct RowsMut<'y> {
    pub(crate) values: &'y mut [f32],
    pub(crate) columns: usize,
    pub(crate) stride: usize,
}

impl<'y> RowsMut<'y> {
    /// Consecutive rows of `columns`.
    pub(crate) fn whole(values: &'y mut [f32], columns: usize) -> Self {
        Self {
            values,
            columns,
            stride: columns,
        }
    }

    /// The last row may end at its last column.
    pub(crate) fn rows(&self) -> usize {
        self.values.len().div_ceil(self.stride.max(1))
    }
}

/// Some rows by some columns of a row-major matrix, to be written by one thread.
#[derive(Default)]
pub(crate) struct Tile<'t> {
    pub(crate) first_row: usize,
    pub(crate) first_column: usize,
    /// Of each row the tile's columns.
    pub(crate) rows: Vec<&'t mut [f32]>,
}

impl Cpu {
    /// `threads`: None for a modest number, Some(1) for the caller's thread alone.
    pub(crate) fn open(threads: Option<usize>) -> Result<Self> {
        Self::open_at(threads, CpuLevel::Auto)
    }

    /// As [`Cpu::open`], with the kernels of `asked`.
    ///
    /// Errors: this machine lacks them.
    pub(crate) fn open_at(threads: Option<usize>, asked: CpuLevel) -> Result<Self> {
        let mut cpu = Self::with_level(threads, asked.in_f32()?)?;
        cpu.asked = asked;
        Ok(cpu)
    }

    pub(crate) fn with_level(threads: Option<usize>, level: Level) -> Result<Self> {
        let available = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = threads.unwrap_or(available.min(MODEST));
        if threads == 0 || threads > MOST {
            bail!(
                InvalidRequest,
                "threads: expected 1 to {MOST}, found {threads}"
            );
        }
        let roomy = threads <= available;
        let team = match threads {
            1 => None,
            _ => Some(Team::new(threads - 1, roomy)?),
        };
        Ok(Self {
            team,
            threads,
            level,
            asked: CpuLevel::Auto,
            arch: level.arch(),
            turns: Turns::new(1),
            alone: Turns::new(threads),
            process: std::process::id(),
            roomy,
            crowd: Crowd::default(),
        })
    }

    /// Errors: this is a forked child, and the threads that would compute stayed in its parent.
    ///
    /// `gpu`: whether a GPU computes, which a child does not share with its parent either.
    pub(crate) fn check_process(&self, gpu: bool) -> Result<()> {
        let needed = if gpu {
            "a GPU's connection"
        } else {
            "its helping threads"
        };
        let now = std::process::id();
        if (gpu || self.team.is_some()) && self.process != now {
            bail!(
                Unsupported,
                "opened in process {} and called in process {now}, its fork, which has no part in \
                 {needed}: open a router in each child, or one on the CPU with threads(1) before the fork",
                self.process
            );
        }
        Ok(())
    }

    pub(crate) fn threads(&self) -> usize {
        self.threads
    }

    pub(crate) fn level(&self) -> Level {
        self.level
    }

    /// The kernels that were asked for.
    #[cfg(feature = "cli")]
    pub(crate) fn asked(&self) -> CpuLevel {
        self.asked
    }

    /// See [`LowKernel::detect`].
    pub(crate) fn low_kernel(&self, format: LowFormat) -> (Option<LowKernel>, String) {
        LowKernel::detect(format, self.asked)
    }

    /// Runs `job` on this thread, where [`Cpu::tiles`] and [`Cpu::rows`] may use every thread.
    ///
    /// On a machine that is busy with other work the caller runs it alone, and others theirs beside
    /// it: see [`Crowd`].
    pub(crate) fn run<R>(&self, job: impl FnOnce() -> R) -> R {
        let nested = team::is_in_a_team() || IS_ALONE.get();
        let Some(team) = self.team.as_ref().filter(|_| !nested) else {
            return job();
        };
        if !self.crowd.is_there() {
            let _turn = self.turns.take();
            if let Some((took, late)) = team.punctuality() {
                self.crowd.note(took, late);
            }
            if !self.crowd.is_there() {
                return team.call(job);
            }
        }
        let _turn = self.alone.take();
        Self::alone(job)
    }

    /// Runs `job` on this thread, without helpers.
    pub(crate) fn alone<R>(job: impl FnOnce() -> R) -> R {
        let _alone = Alone::begin();
        job()
    }

    /// Gives the next call all threads, however busy the machine was.
    #[cfg(test)]
    pub(crate) fn forget_crowd(&self) {
        self.crowd.note(Duration::ZERO, Duration::ZERO);
    }

    /// The team, if this thread computes for it.
    fn team(&self) -> Option<&Team> {
        self.team.as_ref().filter(|team| team.is_here())
    }

    /// Threads that the caller may use.
    pub(crate) fn reachable(&self) -> usize {
        self.team().map_or(1, |_| self.threads)
    }

    /// Whether so many multiply-adds are not worth a second thread.
    fn is_small(&self, work: usize) -> bool {
        work < if self.roomy { SMALL } else { SMALL_TO_WAKE }
    }

    /// `f` on each of `items` and its number, side by side in a call.
    fn each_of<I: Send>(&self, items: &mut [I], f: impl Fn(usize, &mut I) + Sync) {
        match self.team() {
            Some(team) => team.each_of(items, f),
            None => items
                .iter_mut()
                .enumerate()
                .for_each(|(n, item)| f(n, item)),
        }
    }

    /// Threads that may wait for each other often: none of them would have to be woken.
    pub(crate) fn lockstep_threads(&self) -> usize {
        if self.roomy { self.reachable() } else { 1 }
    }

    /// Both jobs, side by side where there are two threads.
    pub(crate) fn join<A: Send, B: Send>(
        &self,
        a: impl FnOnce() -> A + Send,
        b: impl FnOnce() -> B + Send,
    ) -> (A, B) {
        let (mut a, mut b) = ((Some(a), None), (Some(b), None));
        let jobs: &mut [&mut (dyn FnMut() + Send)] =
            &mut [&mut || a.1 = a.0.take().map(|a| a()), &mut || {
                b.1 = b.0.take().map(|b| b())
            }];
        self.run(|| self.each_of(jobs, |_, job| job()));
        match (a.1, b.1) {
            (Some(a), Some(b)) => (a, b),
            _ => unreachable!("a job that did not run"),
        }
    }

    /// [`Cpu::tiles_of`] consecutive rows of `columns`.
    pub(crate) fn tiles(
        &self,
        y: &mut [f32],
        columns: usize,
        height: usize,
        grain: usize,
        work: usize,
        f: impl Fn(Tile<'_>) + Sync + Send,
    ) {
        self.tiles_of(RowsMut::whole(y, columns), height, grain, work, f);
    }

    /// `f` on tiles of `y`, side by side: blocks of at most `height` rows, and of each block as
    /// many groups of whole `grain` columns as give every thread work.
    ///
    /// `work`: multiply-adds in all, or about; it only decides whether threads are worth it.
    pub(crate) fn tiles_of(
        &self,
        y: RowsMut<'_>,
        height: usize,
        grain: usize,
        work: usize,
        f: impl Fn(Tile<'_>) + Sync + Send,
    ) {
        let rows = y.rows();
        let RowsMut {
            values,
            columns,
            stride,
        } = y;
        if rows == 0 || columns == 0 {
            return;
        }
        let threads = if self.is_small(work) {
            1
        } else {
            self.reachable()
        };
        let mut blocks = rows.div_ceil(height);
        if blocks > threads {
            // As much for one thread as for another.
            blocks = blocks.next_multiple_of(threads);
        }
        let height = rows.div_ceil(blocks);
        let grains = columns.div_ceil(grain);
        let groups = threads.div_ceil(blocks).min(grains);
        let span = grains.div_ceil(groups) * grain;
        let mut tiles: Vec<Tile<'_>> = Vec::with_capacity(blocks * groups);
        for (block, y) in values.chunks_mut(height * stride).enumerate() {
            let begin = tiles.len();
            for first_column in (0..columns).step_by(span) {
                let rows = Vec::with_capacity(y.len().div_ceil(stride));
                tiles.push(Tile {
                    first_row: block * height,
                    first_column,
                    rows,
                });
            }
            for row in y.chunks_mut(stride) {
                let parts = row[..columns].chunks_mut(span);
                for (tile, part) in tiles[begin..].iter_mut().zip(parts) {
                    tile.rows.push(part);
                }
            }
        }
        let all = |_, tile: &mut Tile<'_>| f(std::mem::take(tile));
        match threads {
            1 => tiles.iter_mut().for_each(|tile| all(0, tile)),
            _ => self.each_of(&mut tiles, all),
        }
    }

    /// `f(first_row, rows)` on contiguous blocks of `data`, rows of `width`, side by side.
    ///
    /// `work`: multiply-adds a row, or about; it only decides whether threads are worth it.
    pub(crate) fn rows<T: Send>(
        &self,
        data: &mut [T],
        width: usize,
        work: usize,
        f: impl Fn(usize, &mut [T]) + Sync + Send,
    ) {
        let rows = data.len() / width.max(1);
        let blocks = if self.is_small(rows * work) {
            1
        } else {
            self.reachable().min(rows)
        };
        if blocks < 2 {
            return f(0, data);
        }
        let each = rows.div_ceil(blocks);
        let mut blocks: Vec<&mut [T]> = data.chunks_mut(each * width).collect();
        self.each_of(&mut blocks, |i, block| f(i * each, block));
    }

    /// `f(number, chunk)` on chunks of `size` elements of `data`, side by side.
    ///
    /// `work`: multiply-adds a chunk, or about; it only decides whether threads are worth it.
    pub(crate) fn each<T: Send>(
        &self,
        data: &mut [T],
        size: usize,
        work: usize,
        f: impl Fn(usize, &mut [T]) + Sync + Send,
    ) {
        let chunks = data.len().div_ceil(size.max(1));
        let all = data.chunks_mut(size.max(1));
        if self.is_small(chunks * work) {
            all.enumerate().for_each(|(number, chunk)| f(number, chunk));
        } else {
            let mut all: Vec<&mut [T]> = all.collect();
            self.each_of(&mut all, |number, chunk| f(number, chunk));
        }
    }

    /// `f` of the numbers below `count`, side by side.
    ///
    /// `work`: multiply-adds of one, or about; it only decides whether threads are worth it.
    pub(crate) fn map<T: Send>(
        &self,
        count: usize,
        work: usize,
        f: impl Fn(usize) -> T + Sync + Send,
    ) -> Vec<T> {
        let mut places: Vec<Option<T>> = (0..count).map(|_| None).collect();
        self.rows(&mut places, 1, work, |first, places| {
            for (i, place) in places.iter_mut().enumerate() {
                *place = Some(f(first + i));
            }
        });
        places.into_iter().flatten().collect()
    }

    /// `f` on all `parts`, each on a thread of its own, so that they may wait for each other. False:
    /// one was so late that the job was given up half done.
    pub(crate) fn abreast<T: Send>(
        &self,
        parts: &mut [T],
        f: impl Fn(&mut T, &mut Attendance<'_>) + Sync + Send,
    ) -> bool {
        let barrier = Barrier::new(parts.len());
        let attend = |part: &mut T| f(part, &mut barrier.attend());
        if let [alone] = parts {
            attend(alone);
            return true;
        }
        let (wanted, threads) = (parts.len(), self.reachable());
        assert!(wanted <= threads, "{wanted} parts for {threads} thread(s)");
        self.each_of(parts, |_, part| attend(part));
        if let (true, Some(team)) = (barrier.is_given_up(), self.team()) {
            team.miss();
        }
        !barrier.is_given_up()
    }

    /// `f(first_row, parts)` on the same contiguous rows of several arrays, side by side; `widths`:
    /// elements of a row of each.
    ///
    /// `work`: multiply-adds a row, or about; it only decides whether threads are worth it.
    pub(crate) fn lockstep<const N: usize>(
        &self,
        arrays: [&mut [f32]; N],
        widths: [usize; N],
        work: usize,
        f: impl Fn(usize, [&mut [f32]; N]) + Sync + Send,
    ) {
        let rows = arrays[0].len() / widths[0].max(1);
        let blocks = if self.is_small(rows * work) {
            1
        } else {
            self.reachable().min(rows)
        };
        if blocks < 2 {
            return f(0, arrays);
        }
        let each = rows.div_ceil(blocks);
        // Seven rows on five threads are four blocks of two.
        let blocks = rows.div_ceil(each);
        let mut widths = widths.iter();
        let mut chunks = arrays.map(|array| {
            let width = widths.next().copied().unwrap_or(1);
            array.chunks_mut(each * width)
        });
        let mut parts: Vec<[&mut [f32]; N]> = (0..blocks)
            .map(|_| {
                chunks
                    .each_mut()
                    .map(|part| part.next().unwrap_or_default())
            })
            .collect();
        self.each_of(&mut parts, |i, parts| {
            f(i * each, parts.each_mut().map(|part| &mut part[..]));
        });
    }

    /// Runs `op`, which spells its vectors out, at this CPU's SIMD level.
    pub(crate) fn dispatch<Op: pulp::WithSimd>(&self, op: Op) -> Op::Output {
        self.arch.dispatch(op)
    }

    /// Runs `f`, compiled for the widest vectors that this CPU has. Only what is inlined into `f`
    /// profits: give closures and functions `#[inline(always)]`.
    #[inline(always)]
    pub(crate) fn simd<R>(&self, f: impl FnOnce() -> R) -> R {
        self.arch.dispatch(f)
    }
}

impl Drop for Cpu {
    fn drop(&mut self) {
        // A forked child cannot wake threads that are not there.
        if self.process != std::process::id() {
            std::mem::forget(self.team.take());
        }
    }
}

thread_local! {
    /// Whether this thread runs a call alone that could have had more.
    static IS_ALONE: Cell<bool> = const { Cell::new(false) };
}

/// While it lives [`IS_ALONE`] is true.
struct Alone;

impl Alone {
    fn begin() -> Self {
        IS_ALONE.set(true);
        Self
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        IS_ALONE.set(false);
    }
}

/// The rows `ids`, ascending, of `table`, with their ids.
pub(crate) fn pick_rows<'t>(
    mut table: &'t mut [f32],
    ids: &[u32],
    width: usize,
) -> Vec<(usize, &'t mut [f32])> {
    let (mut picked, mut begin) = (Vec::with_capacity(ids.len()), 0);
    for id in ids.iter().map(|id| *id as usize) {
        let (_, rest) = table.split_at_mut((id - begin) * width);
        let (row, rest) = rest.split_at_mut(width);
        picked.push((id, row));
        (table, begin) = (rest, id + 1);
    }
    picked
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of any number of rows on any number of threads.
    #[test]
    fn every_row_is_in_one_block() {
        for threads in 1..=9 {
            let cpu = Cpu::open(Some(threads)).expect("a pool");
            for rows in 0..40u16 {
                let want: Vec<f32> = (0..rows).map(f32::from).collect();
                let count = usize::from(rows);
                let put = |first: usize, places: &mut [f32]| {
                    assert!(first <= count, "block at {first} of {rows} rows");
                    let rows = want[first..].iter();
                    places.iter_mut().zip(rows).for_each(|(x, row)| *x += row);
                };
                let mut apart = vec![0.0; count];
                cpu.run(|| cpu.rows(&mut apart, 1, SMALL_TO_WAKE, put));
                let (mut wide, mut narrow) = (vec![1.0; 3 * count], vec![0.0; count]);
                cpu.run(|| {
                    let arrays = [&mut wide[..], &mut narrow[..]];
                    cpu.lockstep(arrays, [3, 1], SMALL_TO_WAKE, |first, [wide, narrow]| {
                        assert_eq!(wide.len(), 3 * narrow.len());
                        wide.fill(2.0);
                        put(first, narrow);
                    });
                });
                let made = cpu.run(|| cpu.map(count, SMALL_TO_WAKE, |row| want[row]));
                for found in [apart, narrow, made] {
                    assert_eq!(found, want, "{rows} rows on {threads} threads");
                }
                assert!(wide.iter().all(|x| *x == 2.0));
            }
        }
    }
}
