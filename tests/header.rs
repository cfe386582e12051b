//! `include/hubrouter.h` is what `src/capi` exports. cbindgen writes the header
//! (`include/header.sh`); this test reads both and needs neither cbindgen nor the feature `capi`.
//! `tests/capi/abi.c` has what was promised.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use hubrouter::ErrorKind;

/// Kind and name of an item -> its parts: values of an enum, fields of a struct, arguments and
/// result of a function. Types are those of C without spaces before `*`.
type Items = BTreeMap<String, Vec<String>>;

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// The parts of `text` between commas that are in no brackets; the last one may be followed by one.
fn split(text: &str) -> Vec<&str> {
    let (mut depth, mut begin, mut parts) = (0, 0, Vec::new());
    for (at, c) in text.char_indices() {
        match c {
            '(' | '<' | '{' => depth += 1,
            ')' | '>' | '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(text[begin..at].trim());
                begin = at + 1;
            }
            _ => {}
        }
    }
    parts.push(text[begin..].trim());
    parts.retain(|part| !part.is_empty());
    parts
}

/// What stands between the first `open` of `text` and the bracket that closes it, and what follows.
fn inside(text: &str, open: char, close: char) -> (&str, &str) {
    let begin = text.find(open).unwrap() + 1;
    let mut depth = 1;
    for (at, c) in text[begin..].char_indices() {
        depth += i32::from(c == open) - i32::from(c == close);
        if depth == 0 {
            return (&text[begin..begin + at], &text[begin + at + 1..]);
        }
    }
    panic!("{open} is not closed: {text}");
}

/// The type of C for one of Rust.
fn c_type(rust: &str) -> String {
    let pointer = |to: &str| format!("{}*", c_type(to));
    let constant = |to: &str| format!("const {}*", c_type(to));
    let optional = rust.strip_prefix("Option<");
    if let Some(inner) = optional.and_then(|rest| rest.strip_suffix('>')) {
        let inner = inner.replace("'static ", "");
        return match (inner.strip_prefix("Box<"), inner.strip_prefix("&mut ")) {
            (Some(owned), _) => pointer(owned.strip_suffix('>').unwrap()),
            (_, Some(place)) => pointer(place),
            _ => constant(inner.strip_prefix('&').unwrap()),
        };
    }
    if let Some(inner) = rust.strip_prefix("MaybeUninit<") {
        return c_type(inner.strip_suffix('>').unwrap());
    }
    match rust {
        "usize" => "size_t".into(),
        "u32" => "uint32_t".into(),
        "i32" => "int32_t".into(),
        "f32" => "float".into(),
        "f64" => "double".into(),
        "c_char" => "char".into(),
        _ => match (rust.strip_prefix("*const "), rust.strip_prefix("*mut ")) {
            (Some(to), _) => constant(to),
            (_, Some(to)) => pointer(to),
            _ if rust.starts_with("hubrouter_") => rust.into(),
            _ => panic!("{rust} is no type of the C interface"),
        },
    }
}

/// `(a: A, ...) -> R`, from its bracket on, as `A a`, ... and `-> R`.
fn rust_signature(text: &str) -> Vec<String> {
    let (arguments, rest) = inside(text, '(', ')');
    let argument = |text: &str| {
        let (name, of) = text.split_once(':').unwrap();
        format!("{} {}", c_type(of.trim()), name.trim())
    };
    let mut parts: Vec<String> = split(arguments).into_iter().map(argument).collect();
    let result = rest.trim_start().strip_prefix("returns");
    let result = result.map(|of| of.split(['{', ',']).next().unwrap().trim());
    parts.push(format!("-> {}", result.map_or("void".into(), c_type)));
    parts
}

/// What the sources export.
fn exported() -> Items {
    let mut items = Items::new();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/capi");
    for entry in fs::read_dir(folder).unwrap() {
        let text = fs::read_to_string(entry.unwrap().path()).unwrap();
        let text = text.split("#[cfg(test)]").next().unwrap();
        let lines = text.lines().map(|line| line.split("//").next().unwrap());
        let code = lines.collect::<Vec<_>>().join(" ").replace("->", "returns");
        for part in code.split("#[unsafe(no_mangle)]").skip(1) {
            let declared = part.split_once("extern \"C\" fn ").unwrap().1;
            let name = declared.split('(').next().unwrap();
            items.insert(format!("function {name}"), rust_signature(declared));
        }
        for part in code.split("#[repr(C)]").skip(1) {
            let declared = part.split_once("pub struct ").unwrap().1;
            let name = declared.split_whitespace().next().unwrap();
            let field = |text: &str| {
                let (name, of) = text.split_once(':').unwrap();
                let name = name.trim().strip_prefix("pub ").unwrap();
                match of.split_once("extern \"C\" fn") {
                    Some((_, of)) => format!("{name}: {:?}", rust_signature(of)),
                    None => format!("{} {name}", c_type(of.trim())),
                }
            };
            let fields = split(inside(declared, '{', '}').0);
            let fields = fields.into_iter().map(field).collect();
            items.insert(format!("struct {name}"), fields);
        }
        for part in code.split("#[repr(i32)]").skip(1) {
            let declared = part.split_once("pub enum ").unwrap().1;
            let name = declared.split_whitespace().next().unwrap();
            let values = split(inside(declared, '{', '}').0);
            let values = values.into_iter().map(str::to_owned).collect();
            items.insert(format!("enum {name}"), values);
        }
    }
    items
}

/// A declaration of C, `const char *name`, as `const char* name`.
fn c_declared(text: &str) -> String {
    let words = text.split_whitespace().filter(|word| *word != "struct");
    let text = words.collect::<Vec<_>>().join(" ");
    let name = text.rfind([' ', '*']).map_or(0, |at| at + 1);
    let (of, name) = text.split_at(name);
    format!("{} {name}", of.replace(' ', "").replace("const", "const "))
}

/// `(A a, ...)` and the type of the result as `A a`, ... and `-> R`.
fn c_signature(result: &str, arguments: &str) -> Vec<String> {
    let arguments = split(arguments).into_iter().filter(|text| *text != "void");
    let mut parts: Vec<String> = arguments.map(c_declared).collect();
    let result = c_declared(&format!("{result} x"));
    parts.push(format!("-> {}", result.strip_suffix(" x").unwrap()));
    parts
}

/// What a header declares, as C reads it.
fn declared(header: &str) -> Items {
    let mut code = String::new();
    let mut skipped = false;
    let mut rest = header;
    while let Some((before, after)) = rest.split_once("/*") {
        code += before;
        rest = after.split_once("*/").unwrap().1;
    }
    let text = code + rest;
    let mut code = String::new();
    for line in text.lines().map(|line| line.split("//").next().unwrap()) {
        match line.trim() {
            "#ifdef __cplusplus" => skipped = true,
            line if line.starts_with("#endif") => skipped = false,
            line if line.starts_with('#') || skipped => {}
            line => code = code + line + " ",
        }
    }

    let mut items = Items::new();
    let (mut depth, mut begin) = (0, 0);
    for (at, c) in code.char_indices() {
        depth += i32::from(c == '{') - i32::from(c == '}');
        if c != ';' || depth > 0 {
            continue;
        }
        let statement = code[begin..at].trim();
        begin = at + 1;
        let words: Vec<&str> = statement.split([' ', '{', '(']).collect();
        match words[..] {
            ["enum", name, ..] => {
                let values = split(inside(statement, '{', '}').0).into_iter();
                items.insert(format!("enum {name}"), values.map(str::to_owned).collect());
            }
            ["typedef", "struct", name, ..] if statement.contains('{') => {
                let body = inside(statement, '{', '}').0.split(';').map(str::trim);
                let field = |text: &str| match text.split_once("(*") {
                    Some((result, rest)) => {
                        let (name, rest) = rest.split_once(')').unwrap();
                        let signature = c_signature(result, inside(rest, '(', ')').0);
                        format!("{name}: {signature:?}")
                    }
                    None => c_declared(text),
                };
                let fields = body.filter(|text| !text.is_empty()).map(field);
                items.insert(format!("struct {name}"), fields.collect());
            }
            // A handle, or the type of an enum.
            ["typedef", ..] => {}
            _ => {
                let (before, _) = statement.split_once('(').unwrap();
                let named = c_declared(before);
                let (result, name) = named.rsplit_once(' ').unwrap();
                let signature = c_signature(result, inside(statement, '(', ')').0);
                items.insert(format!("function {name}"), signature);
            }
        }
    }
    items
}

/// What is in one of the two and not in the other.
fn differences(header: &Items, sources: &Items) -> Vec<String> {
    let keys = header.keys().chain(sources.keys());
    let differ = keys.filter(|key| header.get(*key) != sources.get(*key));
    let show = |key: &String| {
        let (header, sources) = (header.get(key), sources.get(key));
        format!("{key}: the header has {header:?}, src/capi {sources:?}")
    };
    differ.map(show).collect()
}

#[test]
fn the_header_declares_what_the_sources_export() {
    let (header, sources) = (declared(&read("include/hubrouter.h")), exported());
    assert!(sources.len() > 30, "{sources:?}");
    let found = differences(&header, &sources);
    let found = found.join("\n");
    assert!(
        found.is_empty(),
        "include/header.sh has to be run:\n{found}"
    );
}

#[test]
fn what_differs_is_found() {
    let (header, sources) = (read("include/hubrouter.h"), exported());
    for (text, by, found) in [
        (
            "HUBROUTER_IO = 1,",
            "HUBROUTER_IO = 2,",
            "enum hubrouter_status",
        ),
        ("float score;", "double score;", "struct hubrouter_ranked"),
        (
            "const char *prompt,",
            "char *prompt,",
            "function hubrouter_router_route",
        ),
        (
            "size_t top,",
            "size_t count,",
            "function hubrouter_router_route",
        ),
        (
            "hubrouter_router **router",
            "hubrouter_router *router",
            "function hubrouter_router_open",
        ),
        (
            "void hubrouter_error_free(",
            "int hubrouter_error_free(",
            "hubrouter_error_free",
        ),
        (
            "uint32_t version;",
            "uint32_t version; void (*more)(void);",
            "struct hubrouter_functions",
        ),
    ] {
        assert!(header.contains(text), "the header has no {text:?}");
        let changed = declared(&header.replace(text, by));
        let differ = differences(&changed, &sources);
        assert!(
            differ.iter().any(|differ| differ.contains(found)),
            "{by}: {differ:?}"
        );
    }
}

#[test]
fn the_table_has_every_function_and_each_is_promised() {
    let sources = exported();
    let table: Vec<&str> = sources["struct hubrouter_functions"]
        .iter()
        .filter_map(|field| field.split_once(": "))
        .map(|(name, _)| name)
        .collect();
    let promised = read("tests/capi/abi.c");
    let mut count = 0;
    for (key, signature) in &sources {
        let Some(name) = key.strip_prefix("function ") else {
            continue;
        };
        assert!(
            promised.contains(name),
            "tests/capi/abi.c does not promise {name}"
        );
        if name != "hubrouter_api" {
            count += 1;
            let field = format!("{name}: {signature:?}");
            let there = sources["struct hubrouter_functions"].contains(&field);
            assert!(there, "the table has no {field}");
        }
    }
    assert_eq!(table.len(), count);
}

#[test]
fn statuses_below_100_are_the_kinds_of_errors() {
    let sources = exported();
    for (place, value) in sources["enum hubrouter_status"].iter().enumerate() {
        let (name, number) = value.split_once(" = ").unwrap();
        let number: usize = number.parse().unwrap();
        let kind = name.strip_prefix("HUBROUTER_").unwrap().to_lowercase();
        let kind = serde_json::from_str::<ErrorKind>(&format!("\"{kind}\""));
        assert_eq!(kind.is_ok(), (1..100).contains(&number), "{value}");
        assert_eq!(number, if number < 100 { place } else { number });
    }
}
