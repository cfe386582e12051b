//! Runs the cases of a boundary in a child process with little memory, and says what broke.
//!
//! Variables: tests/README.md.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::case::Case;
use crate::common::{Folder, ROOT};
use crate::draws::Draws;

const SECONDS: &str = "HUBROUTER_FUZZ_SECONDS";
const SEED: &str = "HUBROUTER_FUZZ_SEED";
const OUT: &str = "HUBROUTER_FUZZ_OUT";
/// A case that was kept, to be run alone.
const CASE: &str = "HUBROUTER_FUZZ_CASE";
/// Set in a child: the first case, the one behind the last, and the seconds it has.
const CHILD: &str = "HUBROUTER_FUZZ_CHILD";
/// Set in a child: where it notes which case it is at, and then what it found.
const NOTES: &str = "HUBROUTER_FUZZ_NOTES";

/// A case takes so long at most, on a machine with much else to do.
pub const LONGEST: Duration = Duration::from_secs(30);

/// Address space of a child, in kilobytes: what is asked for beyond this aborts it.
const ADDRESS_SPACE: u64 = 3 << 20;

/// A boundary of the program: how to attack it, what is seen then, what must hold of that.
pub trait Boundary: Send + 'static {
    type Seen: Clone + Send;

    /// Also that of its folder in `tests/corpus` and, behind `hostile::`, of its test.
    const NAME: &'static str;

    /// Memory that a case may add, in megabytes.
    const MEMORY: u64 = 200;

    /// The case of these draws. It depends on nothing else.
    fn case(&self, draws: &mut Draws) -> Case;

    /// What the program makes of the case in `folder`, whose name is the test's alone to use.
    fn observe(&self, folder: &Path) -> Self::Seen;

    /// Says what must not be.
    fn judge(&self, seen: &Self::Seen) -> Result<(), String>;
}

/// A property that did not hold.
struct Failure {
    number: Option<u64>,
    what: String,
}

/// Runs `cases` cases of the boundary, or as many as there is time for where a time is given, and
/// those of its corpus that broke something once.
pub fn attack<B: Boundary>(make: impl Fn() -> B, test: &str, cases: u64) {
    if let Ok(range) = std::env::var(CHILD) {
        return child(make(), &range);
    }
    let _turn = turn();
    if let Ok(folder) = std::env::var(CASE) {
        let case = Case::read(Path::new(&folder));
        if let Err(what) = Runner::new(make()).run(&case) {
            panic!("{folder}: {what}");
        }
        return;
    }
    let time = number(SECONDS);
    let seed = seed();
    let limit = time.map_or(Duration::from_secs(600), Duration::from_secs);
    let end = time.map_or(cases, |_| u64::MAX);
    let began = Instant::now();
    let mut failures = corpus(&make);
    let (mut next, mut known) = (0, BTreeMap::<String, usize>::new());
    while next < end && began.elapsed() < limit {
        let (last, found) = parent(test, next..end, limit.saturating_sub(began.elapsed()));
        for failure in found {
            let count = known.entry(signature(&failure.what)).or_default();
            *count += 1;
            if *count <= 3 {
                failures.push(keep(&make(), seed, failure));
            }
        }
        next = last + 1;
    }
    println!(
        "{}: {next} cases in {:.0} s with seed {seed}",
        B::NAME,
        began.elapsed().as_secs_f64()
    );
    for (signature, count) in &known {
        println!("{}: {count} times: {signature}", B::NAME);
    }
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}

/// The boundaries take turns: each may use the machine's memory and time.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn number(variable: &str) -> Option<u64> {
    let value = std::env::var(variable).ok()?;
    Some(
        value
            .parse()
            .unwrap_or_else(|_| panic!("{variable}: expected a whole number, found {value:?}")),
    )
}

fn seed() -> u64 {
    number(SEED).unwrap_or(42)
}

/// The cases in `tests/corpus/NAME/found`, in this process: they broke something once.
fn corpus<B: Boundary>(make: &impl Fn() -> B) -> Vec<String> {
    let found = Path::new(ROOT)
        .join("tests/corpus")
        .join(B::NAME)
        .join("found");
    let Ok(entries) = fs::read_dir(&found) else {
        return Vec::new();
    };
    let mut folders: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    folders.retain(|path| path.is_dir());
    folders.sort();
    let mut runner = Runner::new(make());
    let run = |folder: &PathBuf| {
        let what = runner.run(&Case::read(folder)).err()?;
        Some(format!("{}: {what}", folder.display()))
    };
    folders.iter().filter_map(run).collect()
}

/// Numbers and names taken out: failures of one cause look the same.
fn signature(what: &str) -> String {
    let mut short = String::new();
    for word in what.split_whitespace().take(14) {
        let odd = word.len() > 40
            || word.contains('/')
            || word.chars().any(|c| c.is_ascii_digit() || !c.is_ascii());
        short.push_str(if odd { "_" } else { word });
        short.push(' ');
    }
    short.chars().take(200).collect()
}

/// Writes the case of a failure to a folder; says where, and how to run it again.
fn keep<B: Boundary>(boundary: &B, seed: u64, failure: Failure) -> String {
    let Some(number) = failure.number else {
        return failure.what;
    };
    let case = boundary.case(&mut Draws::new(seed, B::NAME, number));
    let out = std::env::var(OUT).map_or_else(
        |_| std::env::temp_dir().join("hubrouter-hostile"),
        PathBuf::from,
    );
    let folder = out.join(format!("{}-{seed}-{number}", B::NAME));
    let _ = fs::remove_dir_all(&folder);
    case.keep(&folder);
    let story = case.story.join("\n  ");
    let report = format!("{}\n  {story}\n  {}", folder.display(), failure.what);
    fs::write(folder.with_extension("txt"), &report).unwrap();
    format!("seed {seed}, case {number}, {CASE}={report}")
}

/// Runs a child over `cases`; the last case that it came to, and what it found.
fn parent(test: &str, cases: std::ops::Range<u64>, time: Duration) -> (u64, Vec<Failure>) {
    let folder = Folder::new("hostile");
    let notes = folder.join("notes");
    let script = format!("ulimit -c 0; ulimit -v {ADDRESS_SPACE}; exec \"$@\"");
    let mut child = Command::new("sh")
        .args(["-c", &script, "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(
            CHILD,
            format!("{} {} {}", cases.start, cases.end, time.as_secs()),
        )
        .env(NOTES, &notes)
        .env("TMPDIR", &folder.0)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(fs::File::create(folder.join("stderr")).unwrap())
        .spawn()
        .unwrap();
    let (mut seen, mut since) = (0, Instant::now());
    let ended = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break Some(status);
        }
        let length = fs::metadata(&notes).map_or(0, |data| data.len());
        if length != seen {
            (seen, since) = (length, Instant::now());
        }
        if since.elapsed() > LONGEST * 2 {
            let _ = child.kill();
            child.wait().unwrap();
            break None;
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let notes = fs::read_to_string(&notes).unwrap_or_default();
    let (last, mut found) = read_notes(&notes, cases.start);
    if ended.is_none_or(|status| !status.success()) {
        let errors = fs::read(folder.join("stderr")).unwrap_or_default();
        let errors = String::from_utf8_lossy(&errors);
        let tail: Vec<&str> = errors.lines().rev().take(6).collect();
        let tail = tail.into_iter().rev().collect::<Vec<_>>().join(" | ");
        let how = ended.map_or("killed: it hung".into(), |status| status.to_string());
        let number = Some(last);
        found.push(Failure {
            number,
            what: format!("the process ended, {how}: {tail}"),
        });
    }
    (last, found)
}

/// The last case of the notes, and what was found.
fn read_notes(notes: &str, first: u64) -> (u64, Vec<Failure>) {
    let (mut last, mut found) = (first, Vec::new());
    for line in notes.lines() {
        match line.split_once(' ') {
            Some(("case", number)) => last = number.parse().unwrap_or(last),
            Some(("found", what)) => found.push(Failure {
                number: Some(last),
                what: what.replace("\\n", "\n"),
            }),
            _ => (),
        }
    }
    (last, found)
}

/// In the child: runs the cases and notes what it finds.
fn child<B: Boundary>(boundary: B, range: &str) {
    let range: Vec<u64> = range.split(' ').map(|word| word.parse().unwrap()).collect();
    let path = std::env::var_os(NOTES).unwrap();
    let mut notes = String::new();
    let (began, seed) = (Instant::now(), seed());
    let mut file = fs::File::create(path).unwrap();
    let mut note = |line: std::fmt::Arguments<'_>| {
        notes.clear();
        writeln!(notes, "{line}").unwrap();
        std::io::Write::write_all(&mut file, notes.as_bytes()).unwrap();
    };
    let mut runner = Runner::new(boundary);
    for number in range[0]..range[1] {
        if began.elapsed() > Duration::from_secs(range[2]) {
            break;
        }
        note(format_args!("case {number}"));
        let case = runner.case(seed, number);
        if let Err(what) = runner.run(&case) {
            let short: String = what.chars().take(4000).collect();
            note(format_args!("found {}", short.replace('\n', "\\n")));
            // Whatever hangs still holds what it holds.
            if what.starts_with(HUNG) {
                break;
            }
        }
    }
}

const HUNG: &str = "no end within";

/// Runs cases on a thread of its own, one after the other.
pub struct Runner<B: Boundary> {
    boundary: std::sync::Arc<Mutex<B>>,
    folder: Folder,
    count: u32,
}

impl<B: Boundary> Runner<B> {
    pub fn new(boundary: B) -> Self {
        catch_words();
        Self {
            boundary: std::sync::Arc::new(Mutex::new(boundary)),
            folder: Folder::new(B::NAME),
            count: 0,
        }
    }

    fn case(&self, seed: u64, number: u64) -> Case {
        let boundary = self.boundary.lock().unwrap_or_else(PoisonError::into_inner);
        boundary.case(&mut Draws::new(seed, B::NAME, number))
    }

    /// What does not hold of the case, panics, hangs and memory included.
    pub fn run(&mut self, case: &Case) -> Result<(), String> {
        self.count += 1;
        let folder = self.folder.join(format!("case-{}", self.count));
        case.lay_out(&folder);
        let verdict = self.run_in(folder.clone());
        let _ = fs::remove_dir_all(&folder);
        verdict
    }

    fn run_in(&self, folder: PathBuf) -> Result<(), String> {
        let (send, receive) = mpsc::channel();
        let boundary = std::sync::Arc::clone(&self.boundary);
        let before = Memory::forget_peak();
        let work = std::thread::Builder::new()
            .name(WORKER.into())
            .spawn(move || {
                let boundary = boundary.lock().unwrap_or_else(PoisonError::into_inner);
                let verdict = catch_unwind(AssertUnwindSafe(|| {
                    boundary.judge(&boundary.observe(&folder))
                }));
                drop(boundary);
                let _ =
                    send.send(verdict.unwrap_or_else(|_| Err(format!("panic: {}", last_words()))));
            });
        let work = work.unwrap();
        let verdict = match receive.recv_timeout(LONGEST) {
            Ok(verdict) => verdict,
            Err(RecvTimeoutError::Timeout) => return Err(format!("{HUNG} {LONGEST:?}")),
            Err(RecvTimeoutError::Disconnected) => Err("the case's thread is gone".into()),
        };
        let _ = work.join();
        verdict?;
        match before.and_then(Memory::grown) {
            Some(megabytes) if megabytes > B::MEMORY => Err(format!(
                "{megabytes} MB of memory, expected at most {}",
                B::MEMORY
            )),
            _ => Ok(()),
        }
    }
}

const WORKER: &str = "hostile";

static WORDS: Mutex<String> = Mutex::new(String::new());

/// Panics of cases are kept, not printed.
fn catch_words() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if std::thread::current().name() == Some(WORKER) {
                *WORDS.lock().unwrap_or_else(PoisonError::into_inner) = info.to_string();
            } else {
                usual(info);
            }
        }));
    });
}

fn last_words() -> String {
    WORDS.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// Resident memory of this process in kilobytes, where the system says.
struct Memory(u64);

impl Memory {
    /// What is in use now; from here on the peak counts anew.
    fn forget_peak() -> Option<Self> {
        fs::write("/proc/self/clear_refs", "5").ok()?;
        Some(Self(status("VmRSS:")?))
    }

    /// Megabytes that were in use since, beyond what was then.
    fn grown(self) -> Option<u64> {
        Some(status("VmHWM:")?.saturating_sub(self.0) >> 10)
    }
}

fn status(field: &str) -> Option<u64> {
    let text = fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(field))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Files of the corpus in `tests/corpus/NAME`.
pub fn corpus_folder(name: &str) -> PathBuf {
    Path::new(ROOT).join("tests/corpus").join(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A boundary that does what it is told.
    struct Told(&'static str);

    impl Boundary for Told {
        type Seen = u32;
        const NAME: &'static str = "told";
        const MEMORY: u64 = 50;

        fn case(&self, draws: &mut Draws) -> Case {
            let files = BTreeMap::from([("file".to_owned(), vec![draws.byte()])]);
            Case {
                files,
                ..Case::default()
            }
        }

        fn observe(&self, folder: &Path) -> u32 {
            assert_eq!(fs::read(folder.join("file")).unwrap().len(), 1);
            match self.0 {
                "panic" => panic!("as told"),
                "memory" => {
                    let much = vec![1u8; 200 << 20];
                    std::hint::black_box(&much)
                        .iter()
                        .step_by(4096)
                        .map(|byte| u32::from(*byte))
                        .sum()
                }
                "wrong" => 0,
                _ => 1,
            }
        }

        fn judge(&self, seen: &u32) -> Result<(), String> {
            if *seen == 0 {
                Err("nothing was seen".into())
            } else {
                Ok(())
            }
        }
    }

    #[test]
    fn panics_memory_and_false_answers_are_found() {
        let _turn = turn();
        for (told, want) in [
            ("panic", "panic: "),
            ("wrong", "nothing was seen"),
            ("memory", " MB of memory"),
            ("well", ""),
        ] {
            let mut runner = Runner::new(Told(told));
            let case = runner.case(1, 1);
            let found = runner.run(&case).err().unwrap_or_default();
            assert!(
                found.contains(want) && found.is_empty() == want.is_empty(),
                "{told}: {found}"
            );
        }
    }

    #[test]
    fn an_abort_and_a_hang_of_a_child_are_found() {
        if std::env::var_os(CHILD).is_some() {
            let path = std::env::var_os(NOTES).unwrap();
            fs::write(path, "case 7\nfound something\ncase 8\n").unwrap();
            std::process::abort();
        }
        let test = "harness::tests::an_abort_and_a_hang_of_a_child_are_found";
        let (last, found) = parent(test, 3..9, Duration::from_secs(1));
        assert_eq!((last, found.len(), found[0].number), (8, 2, Some(7)));
        assert!(found[1].what.contains("signal"), "{}", found[1].what);
    }
}
