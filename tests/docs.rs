//! The documentation holds together: sections and vectors that are cited exist, links lead somewhere.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Specifications whose sections are cited.
const SPECIFICATIONS: [&str; 2] = ["carve.md", "cmrbench.md"];

/// Path below the root -> text of every file of `folder` with one of `endings`.
fn collect(folder: &str, endings: &[&str], files: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(Path::new(ROOT).join(folder)).unwrap() {
        let entry = entry.unwrap();
        let path = format!("{folder}/{}", entry.file_name().to_str().unwrap());
        let is = |ending: &&str| path.ends_with(ending);
        if entry.path().is_dir() {
            if entry.file_name() != "target" {
                collect(&path, endings, files);
            }
        } else if endings.iter().any(is) {
            files.insert(path, fs::read_to_string(entry.path()).unwrap());
        }
    }
}

fn sources() -> BTreeMap<String, String> {
    let mut files = BTreeMap::new();
    for folder in ["src", "shaders", "tests", "benches", "bindings", "examples"] {
        collect(folder, &[".rs", ".wgsl", ".py", ".md"], &mut files);
    }
    // It cites what does not exist.
    files.remove("tests/docs.rs");
    files
}

fn specification(name: &str) -> String {
    fs::read_to_string(Path::new(ROOT).join("docs").join(name)).unwrap()
}

/// Numbers of the sections of a specification: headings, `**12.5 ...**`, `| 12.1 |`, and the items of
/// a numbered list directly in a section.
fn sections(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut section = String::new();
    for line in text.lines() {
        let number = |rest: &str| -> String {
            let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.');
            rest[..end.unwrap_or(rest.len())]
                .trim_matches('.')
                .to_owned()
        };
        if let Some(rest) = line.strip_prefix("## ") {
            section = number(rest);
            found.push(section.clone());
        } else if let Some(rest) = line
            .strip_prefix("### ")
            .or_else(|| line.strip_prefix("**"))
            .or_else(|| line.strip_prefix("| "))
        {
            found.push(number(rest));
        } else if line
            .split_once(". ")
            .is_some_and(|(n, _)| n.parse::<u32>().is_ok())
        {
            found.push(format!("{section}.{}", number(line)));
        }
    }
    found
}

/// The words of a file, without the marks of comments between them.
fn words(text: &str) -> Vec<&str> {
    let marks = ["//", "///", "//!", "#"];
    let all = text.split_whitespace();
    all.filter(|word| !marks.contains(word)).collect()
}

/// What `text` cites of the specification `name`: `7`, `12.5`, `V19`.
fn citations(text: &str, name: &str) -> Vec<String> {
    let words = words(text);
    let mut cited = Vec::new();
    for (place, word) in words.iter().enumerate() {
        if !word.contains(name) {
            continue;
        }
        let trim = |word: &str| {
            let marks = |c: char| !c.is_ascii_alphanumeric();
            word.trim_matches(marks).to_owned()
        };
        let Some(next) = words.get(place + 1).map(|word| trim(word)) else {
            continue;
        };
        let is_number = |text: &str| text.starts_with(|c: char| c.is_ascii_digit());
        if next == "section" {
            cited.extend(words.get(place + 2).map(|word| trim(word)));
        } else if next == "sections" {
            let list = words[place + 2..].iter().map(|word| trim(word));
            let list = list.take_while(|word| is_number(word) || word == "and" || word == "to");
            cited.extend(list.filter(|word| is_number(word)));
        } else if next.strip_prefix('V').is_some_and(is_number) {
            cited.push(next);
        }
    }
    cited
}

/// Numbers of test vectors at the end of the names of tests.
fn vectors(text: &str) -> Vec<String> {
    let names = text
        .split("fn ")
        .skip(1)
        .filter_map(|rest| rest.split('(').next());
    let numbers = names
        .filter_map(|name| name.rsplit_once("_v"))
        .map(|(_, number)| number);
    let numbers = numbers.filter(|number| number.parse::<u32>().is_ok());
    numbers.map(|number| format!("V{number}")).collect()
}

/// Whether `text`, the specification, has what is cited.
fn has(text: &str, cited: &str) -> bool {
    match cited.starts_with('V') {
        true => text.contains(&format!("* **{cited}** ")),
        false => sections(text).iter().any(|section| section == cited),
    }
}

/// Relative links of a page to nothing.
fn broken_links(folder: &str, text: &str) -> Vec<String> {
    let links = text
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split(')').next());
    let links = links.map(|link| link.split('#').next().unwrap_or(link));
    let relative = links.filter(|link| !link.is_empty() && !link.contains("://"));
    let broken = relative.filter(|link| !Path::new(ROOT).join(folder).join(link).exists());
    broken.map(str::to_owned).collect()
}

#[test]
fn what_is_cited_exists() {
    let mut count = 0;
    for name in SPECIFICATIONS {
        let text = specification(name);
        for (path, source) in sources() {
            for cited in citations(&source, name) {
                assert!(has(&text, &cited), "{path}: {name} has no {cited}");
                count += 1;
            }
        }
    }
    let text = specification("carve.md");
    for (path, source) in sources() {
        for vector in vectors(&source) {
            assert!(has(&text, &vector), "{path}: carve.md has no {vector}");
            count += 1;
        }
    }
    assert!(
        count > 100,
        "expected more than 100 citations, found {count}"
    );
}

#[test]
fn links_lead_somewhere() {
    let mut pages = BTreeMap::new();
    for folder in ["docs", "shaders", "benches", "bindings", "weights", "tests", "examples"] {
        collect(folder, &[".md"], &mut pages);
    }
    let readme = Path::new(ROOT).join("README.md");
    pages.insert(
        "./README.md".to_owned(),
        fs::read_to_string(readme).unwrap(),
    );
    for (path, text) in &pages {
        let folder = path.rsplit_once('/').unwrap().0;
        let broken = broken_links(folder, text);
        assert!(broken.is_empty(), "{path}: links to nothing: {broken:?}");
    }
}

/// The names that `pub use` of a module publishes, those left out of the documentation not.
fn published(module: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let text = fs::read_to_string(Path::new(ROOT).join(module)).unwrap();
    for statement in text.split_inclusive(';') {
        let Some((before, used)) = statement.split_once("\npub use ") else {
            continue;
        };
        let used = used.trim_end_matches(';');
        let list = used.rsplit_once("::").map_or(used, |(_, last)| last);
        if !before.trim_end().ends_with("#[doc(hidden)]") {
            let list = list.trim_matches(['{', '}']).split(',');
            names.extend(list.map(|name| name.trim().to_owned()));
        }
    }
    names.remove("");
    names
}

/// The items directly in `module` that the list of the interface has.
fn listed(list: &str, module: &str) -> BTreeSet<String> {
    let path = |line: &str| -> Option<String> {
        let line = line.strip_prefix("#[non_exhaustive] ").unwrap_or(line);
        let rest = line.strip_prefix("pub ")?;
        let (kind, rest) = rest.split_once(' ')?;
        let rest = rest.strip_prefix(module)?;
        let name = rest.split(['(', '<', ' ', ':', '=', '&']).next()?;
        let kinds = ["struct", "enum", "fn", "trait", "type", "const"];
        let inside = rest[name.len()..].starts_with("::");
        (kinds.contains(&kind) && !inside).then(|| name.to_owned())
    };
    list.lines().filter_map(path).collect()
}

#[test]
fn the_list_of_the_interface_has_every_published_name() {
    let list = fs::read_to_string(Path::new(ROOT).join("docs/api.md")).unwrap();
    for (module, path) in [("src/lib.rs", ""), ("src/learn/mod.rs", "learn::")] {
        let (names, listed) = (published(module), listed(&list, path));
        assert!(names.len() > 10, "{names:?}");
        let differ: Vec<_> = names.symmetric_difference(&listed).collect();
        assert!(differ.is_empty(), "docs/api.sh has to be run: {differ:?}");
    }
}

#[test]
fn what_is_missing_is_found() {
    let text = specification("carve.md");
    let cited = |source: &str| citations(source, "carve.md");
    assert_eq!(cited("(carve.md\n//! section 4.7)."), ["4.7"]);
    assert_eq!(
        cited("carve.md sections 7, 12.3 and 12.55."),
        ["7", "12.3", "12.55"]
    );
    assert_eq!(cited("/// carve.md V29: x"), ["V29"]);
    for missing in ["4.7", "12.55", "17", "V29"] {
        assert!(!has(&text, missing), "{missing}");
    }
    for there in ["4.6", "7", "12.3", "12.5", "V19"] {
        assert!(has(&text, there), "{there}");
    }
    assert!(has(&specification("cmrbench.md"), "11.1"));
    assert_eq!(vectors("fn soft_v99() {} fn x_v() {}"), ["V99"]);
    assert_eq!(
        broken_links("docs", "[a](limits.md#x) [b](nothing.md)"),
        ["nothing.md"]
    );
}
