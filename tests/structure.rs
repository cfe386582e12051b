//! The invariants of `docs/architecture.md`, read off the sources; each check is shown to fail on a
//! planted violation.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use wgpu::naga;
use wgpu::naga::valid::Capabilities;

/// Path below the source tree -> text.
type Tree = BTreeMap<String, String>;

fn tree() -> Tree {
    let mut tree = Tree::new();
    for folder in ["src", "shaders"] {
        collect(Path::new(common::ROOT), folder, &mut tree);
    }
    tree
}

fn collect(root: &Path, folder: &str, tree: &mut Tree) {
    for entry in fs::read_dir(root.join(folder)).unwrap() {
        let entry = entry.unwrap();
        let path = format!("{folder}/{}", entry.file_name().to_str().unwrap());
        if entry.path().is_dir() {
            collect(root, &path, tree);
        } else {
            tree.insert(path, fs::read_to_string(entry.path()).unwrap());
        }
    }
}

/// The Rust code of `text` without comments and without its tests.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
    let lines = text.lines().map(|line| match line.find("//") {
        // A scheme, as in https://, is no comment.
        Some(at) if !line[..at].ends_with(':') => &line[..at],
        _ => line,
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// Source files with their code; tests of the crate's inside left out.
fn sources(tree: &Tree) -> impl Iterator<Item = (&str, String)> {
    tree.iter()
        .filter(|(path, _)| {
            path.ends_with(".rs") && !path.ends_with("/tests.rs") && !path.ends_with("/testing.rs")
        })
        .map(|(path, text)| (path.as_str(), code(text)))
}

/// Places of `words` in sources outside of `allowed` (paths or their beginnings).
fn only_in(tree: &Tree, rule: &str, words: &[&str], allowed: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for (path, code) in sources(tree) {
        if allowed.iter().any(|allowed| path.starts_with(allowed)) {
            continue;
        }
        for (number, line) in code.lines().enumerate() {
            for word in words.iter().filter(|word| has_word(line, word)) {
                found.push(format!("{path}:{}: {rule}: {word}", number + 1));
            }
        }
    }
    found
}

/// `word` in `line`, not as a part of a longer name.
fn has_word(line: &str, word: &str) -> bool {
    let name = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back().is_some_and(name) && word.starts_with(name);
        let after =
            line[at + word.len()..].chars().next().is_some_and(name) && word.ends_with(name);
        !before && !after
    })
}

/// What clippy cannot see; `clippy.toml` has clocks, threads, files, the environment, printing and
/// sockets.
fn places(tree: &Tree) -> Vec<String> {
    let mut found = only_in(
        tree,
        "wgpu and naga live in src/device/gpu",
        &["wgpu", "naga"],
        &["src/device/gpu/"],
    );
    found.extend(only_in(
        tree,
        "unsafe lives in eleven files and in src/capi",
        &["unsafe"],
        &[
            "src/weights.rs",
            "src/device/cpu/gemm.rs",
            "src/device/cpu/low/amx.rs",
            "src/device/cpu/low/avx512bf16.rs",
            "src/device/cpu/low/neon.rs",
            "src/device/cpu/low/vnni.rs",
            "src/device/cpu/prefetch.rs",
            "src/device/cpu/team.rs",
            "src/device/gpu/kept.rs",
            "src/device/gpu/matrices.rs",
            "src/device/gpu/shader.rs",
            "src/capi/",
        ],
    ));
    found
}

fn safety_notes(tree: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    for (path, text) in tree.iter().filter(|(path, _)| path.ends_with(".rs")) {
        let lines: Vec<&str> = text.lines().collect();
        for (number, line) in lines.iter().enumerate() {
            let is_block = line.contains("unsafe {") && !line.trim_start().starts_with("//");
            let noted = lines[number.saturating_sub(6)..number]
                .iter()
                .any(|line| line.contains("// SAFETY:"));
            if is_block && !noted {
                found.push(format!(
                    "{path}:{}: unsafe without a SAFETY note",
                    number + 1
                ));
            }
        }
    }
    found
}

/// Modules in the order in which they may use each other: only what stands in an earlier group.
const ORDER: [&[&str]; 20] = [
    &["error"],
    &["num", "huge", "testing"],
    &["files"],
    &["weights"],
    &["device"],
    &["text", "options", "ops"],
    &["model", "hub"],
    &["encoder"],
    &["memory"],
    &["generation"],
    &["serve"],
    &["store"],
    &["route"],
    &["feedback", "layer"],
    &["learn"],
    &["exchange"],
    &["cmrbench"],
    &["verify"],
    &["diagnostics"],
    &["capi", "cli"],
];

fn rank(module: &str) -> Option<usize> {
    ORDER.iter().position(|group| group.contains(&module))
}

/// The module behind each name that `src/lib.rs` re-exports.
fn exports(tree: &Tree) -> BTreeMap<String, String> {
    let mut exports = BTreeMap::new();
    let joined = code(&tree["src/lib.rs"]).replace('\n', " ");
    for part in joined.split("pub use ").skip(1) {
        let (module, names) = part.split_once("::").unwrap();
        let names = names.split(';').next().unwrap();
        for name in names
            .split(|c: char| !c.is_alphanumeric() && c != '_')
            .filter(|name| !name.is_empty())
        {
            exports.insert(name.to_owned(), module.to_owned());
        }
    }
    exports
}

fn dependencies(tree: &Tree) -> Vec<String> {
    let exports = exports(tree);
    let mut found = Vec::new();
    for (path, code) in sources(tree) {
        let own = path
            .trim_start_matches("src/")
            .split(['/', '.'])
            .next()
            .unwrap();
        if matches!(own, "lib" | "main") {
            continue;
        }
        let Some(own_rank) = rank(own) else {
            found.push(format!(
                "{path}: {own} has no place in the order of modules"
            ));
            continue;
        };
        let joined = code.replace('\n', " ");
        for part in joined.split("crate::").skip(1) {
            // `crate::{A, b::C}` or `crate::module::...`
            let list = part
                .strip_prefix('{')
                .map_or(part, |list| list.split('}').next().unwrap());
            let items = if part.starts_with('{') {
                list.split(',').collect()
            } else {
                vec![list]
            };
            for item in items {
                let name: String = item
                    .trim()
                    .chars()
                    .take_while(|c| c.is_alphanumeric() || *c == '_')
                    .collect();
                let module = exports.get(&name).cloned().unwrap_or(name);
                let fine = module == own || rank(&module).is_some_and(|rank| rank < own_rank);
                if !fine && !module.is_empty() {
                    found.push(format!("{path}: {own} must not use {module}"));
                }
            }
        }
    }
    found
}

fn public_items(tree: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    for (path, code) in sources(tree) {
        for (number, line) in code.lines().enumerate() {
            let line = line.trim_start();
            let is_public = line.starts_with("pub ")
                && !line.starts_with("pub use")
                && !line.starts_with("pub mod");
            // Its methods are futures, of the language's own kind.
            if path == "src/route/tokio.rs" && line.starts_with("pub async fn") {
                continue;
            }
            for word in [
                "Tensor", "Device", "Gpu", "Cpu", "Kernel", "Pass", "Future", "async", "Buffer",
            ] {
                if is_public && has_word(line, word) {
                    found.push(format!("{path}:{}: a public item names {word}", number + 1));
                }
            }
        }
    }
    found
}

/// The type that a line at the beginning of an item defines.
fn defined(line: &str) -> Option<&str> {
    let line = line.strip_prefix("pub").unwrap_or(line);
    let line = match line.strip_prefix('(') {
        Some(scoped) => scoped.split_once(')')?.1,
        None => line,
    };
    let (keyword, rest) = line.trim_start().split_once(' ')?;
    let name = rest
        .split(|c: char| !c.is_alphanumeric() && c != '_')
        .next()?;
    matches!(keyword, "struct" | "enum" | "trait" | "type").then_some(name)
}

/// One noun means one thing. Each op has its own `Forward`, `Backward` and `Dims`, and without the
/// feature `gpu` types of the same names stand in for a GPU's.
fn names_once(tree: &Tree) -> Vec<String> {
    let mut places: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    let own = |path: &str| path.starts_with("src/ops/") || path == "src/device/no_gpu.rs";
    for (path, code) in sources(tree).filter(|(path, _)| !own(path)) {
        for line in code.lines().filter(|line| !line.starts_with(' ')) {
            if let Some(name) = defined(line) {
                places.entry(name.to_owned()).or_default().push(path);
            }
        }
    }
    let twice = places.into_iter().filter(|(_, places)| places.len() > 1);
    twice
        .map(|(name, places)| format!("the type {name} is defined more than once: {places:?}"))
        .collect()
}

fn words_of_layers(tree: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    for (path, code) in sources(tree) {
        let words: &[&str] = if path.starts_with("src/model/") {
            &["binding", "workgroup", "wgsl", "WGSL", "shader", "dispatch"]
        } else if path.starts_with("src/ops/") {
            &["Bert", "MiniLM", "bert", "Config"]
        } else {
            &[]
        };
        for word in words.iter().filter(|word| has_word(&code, word)) {
            found.push(format!("{path}: names {word}"));
        }
    }
    found
}

/// Op shaders by name.
fn shaders(tree: &Tree) -> impl Iterator<Item = (&str, &String)> {
    tree.iter().filter_map(|(path, text)| {
        let name = path.strip_prefix("shaders/")?.strip_suffix(".wgsl")?;
        (!name.contains('/')).then_some((name, text))
    })
}

fn pairs(tree: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    for (name, _) in shaders(tree) {
        if !tree.contains_key(&format!("src/ops/{name}.rs")) {
            found.push(format!("shaders/{name}.wgsl has no src/ops/{name}.rs"));
        }
    }
    for path in tree.keys() {
        let Some(name) = path
            .strip_prefix("src/ops/")
            .and_then(|path| path.strip_suffix(".rs"))
        else {
            continue;
        };
        // A folder holds parts of an op.
        let helper = matches!(name, "case" | "mod" | "testing" | "reference") || name.contains('/');
        if !helper && !tree.contains_key(&format!("shaders/{name}.wgsl")) {
            found.push(format!("{path} has no shaders/{name}.wgsl"));
        }
    }
    found
}

/// The shader of an op as it is compiled: with the shared parts that its `shader!` names.
fn whole_shader(tree: &Tree, name: &str) -> String {
    let op = &tree[&format!("src/ops/{name}.rs")];
    let call = op
        .split("shader!(")
        .nth(1)
        .unwrap()
        .split(')')
        .next()
        .unwrap();
    let parts: Vec<&str> = call
        .split(',')
        .map(|part| part.trim().trim_matches('"'))
        .collect();
    assert_eq!(parts[0], name, "src/ops/{name}.rs compiles another shader");
    let mut source = tree[&format!("shaders/{name}.wgsl")].clone();
    for part in &parts[1..] {
        source += &tree[&format!("shaders/shared/{part}.wgsl")];
    }
    source
}

fn shader_headers(tree: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    for (name, text) in shaders(tree) {
        let header: Vec<&str> = text
            .lines()
            .take_while(|line| line.starts_with("//"))
            .collect();
        let header = header.join("\n");
        let mut complain = |what: String| found.push(format!("shaders/{name}.wgsl: {what}"));
        if !header.starts_with(&format!("// {name}: ")) {
            complain("the header does not begin with the op's name".into());
        }
        for line in [
            "//   shapes ",
            "//   layout ",
            "//   entries ",
            "//   order ",
            "//   uses ",
        ] {
            if !header.contains(line) {
                complain(format!(
                    "the header has no line {:?}",
                    line.trim_start_matches("//   ").trim()
                ));
            }
        }
        let whole = whole_shader(tree, name);
        if whole.contains("var<workgroup>") && !header.contains("//   scratch ") {
            complain("workgroup memory without a scratch line".into());
        }
        let module = match naga::front::wgsl::parse_str(&whole) {
            Ok(module) => module,
            Err(error) => {
                complain(error.emit_to_string(&whole));
                continue;
            }
        };
        let flags = naga::valid::ValidationFlags::all();
        // What an adapter has to have beyond WebGPU's least, where a shader asks for it.
        let needs = match whole.contains("enable wgpu_cooperative_matrix;") {
            true => {
                Capabilities::SHADER_FLOAT16
                    | Capabilities::COOPERATIVE_MATRIX
                    | Capabilities::SUBGROUP
            }
            false => Capabilities::empty(),
        };
        if let Err(error) = naga::valid::Validator::new(flags, needs).validate(&module) {
            complain(error.emit_to_string(&whole));
        }
        for (_, variable) in module.global_variables.iter() {
            let buffer = variable.binding.as_ref().and(variable.name.as_deref());
            if let Some(buffer) =
                buffer.filter(|buffer| *buffer != "dims" && !has_word(&header, buffer))
            {
                complain(format!("the header does not name the buffer {buffer}"));
            }
        }
        for point in &module.entry_points {
            if point.name == "main" || !has_word(&header, &point.name) {
                complain(format!("the header does not name the entry {}", point.name));
            }
        }
    }
    found
}

/// A function that returns early and meets a barrier later: some lanes would wait for ever.
fn early_returns(tree: &Tree) -> Vec<String> {
    const BARRIERS: [&str; 4] = [
        "workgroupBarrier(",
        "sum_lanes(",
        "max_lanes(",
        "best_of_lanes(",
    ];
    let mut found = Vec::new();
    for (path, text) in tree.iter().filter(|(path, _)| path.ends_with(".wgsl")) {
        for function in text.split("\nfn ").skip(1) {
            let last = BARRIERS
                .iter()
                .filter_map(|barrier| function.rfind(barrier))
                .max()
                .unwrap_or(0);
            if function.find("return;").is_some_and(|at| at < last) {
                let name = function.split('(').next().unwrap();
                found.push(format!("{path}: {name} returns before a barrier"));
            }
        }
    }
    found
}

fn all(tree: &Tree) -> Vec<String> {
    [
        places,
        safety_notes,
        dependencies,
        public_items,
        names_once,
        words_of_layers,
        pairs,
        shader_headers,
        early_returns,
    ]
    .iter()
    .flat_map(|check| check(tree))
    .collect()
}

#[test]
fn the_invariants_hold() {
    let found = all(&tree());
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn planted_violations_are_found() {
    let plants: [(&str, &str, &str); 12] = [
        (
            "src/ops/gelu.rs",
            "fn x(d: wgpu::Device) {}",
            "wgpu and naga",
        ),
        (
            "src/hub/mod.rs",
            "fn x() { unsafe { y() } }",
            "unsafe lives",
        ),
        ("src/weights.rs", "fn x() { unsafe { y() } }", "SAFETY"),
        (
            "src/ops/linear.rs",
            "use crate::model::Config;",
            "ops must not use model",
        ),
        (
            "src/device/mod.rs",
            "fn x(r: crate::Router) {}",
            "device must not use route",
        ),
        (
            "src/encoder/mod.rs",
            "pub fn x(t: &Tensor) {}",
            "public item names Tensor",
        ),
        (
            "src/text/words.rs",
            "pub(crate) enum Serving { A }",
            "the type Serving is defined more than once",
        ),
        (
            "src/model/bert.rs",
            "fn x() { let workgroup = 1; }",
            "names workgroup",
        ),
        (
            "src/ops/softmax.rs",
            "//! An op.",
            "no shaders/softmax.wgsl",
        ),
        (
            "shaders/gelu.wgsl",
            "@group(0) @binding(9) var<storage, read> stray: array<f32>;",
            "the buffer stray",
        ),
        (
            "shaders/gelu.wgsl",
            "fn broken() { let x = 1u + 1.0; }",
            "shaders/gelu.wgsl",
        ),
        (
            "shaders/pool.wgsl",
            "\nfn x(l: u32) {\n if l > 1u { return; }\n workgroupBarrier();\n}",
            "returns before a barrier",
        ),
    ];
    for (path, plant, rule) in plants {
        let mut tree = tree();
        // Before the tests of the file, which are not looked at.
        let text = tree.entry(path.to_owned()).or_default();
        let at = text.find("#[cfg(test)]\nmod tests {").unwrap_or(text.len());
        text.insert_str(at, &format!("\n{plant}\n"));
        let found = all(&tree);
        assert!(
            found.iter().any(|found| found.contains(rule)),
            "{plant:?} in {path} was not found: {found:?}"
        );
    }
}
