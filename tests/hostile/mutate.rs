//! Changes of files: of any bytes, of JSON, of JSON Lines. Those of safetensors are in `tensors.rs`.

use serde_json::{Map, Value, json};

use crate::draws::Draws;

/// As text in any file.
const NUMBERS: [&str; 22] = [
    "0",
    "-1",
    "1",
    "-0.0",
    "255",
    "65536",
    "2147483647",
    "2147483648",
    "-2147483649",
    "4294967295",
    "4294967296",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "1e39",
    "-1e39",
    "1e308",
    "1e400",
    "1e-46",
    "NaN",
    "Infinity",
];

/// Bytes of a text that is made by repeating, at most; that of a list is some of these.
const LARGEST: usize = 1 << 20;

/// Texts that are hard on somebody.
pub const TEXTS: [&str; 26] = [
    "",
    " ",
    "\u{0}",
    "\u{1b}[2J\u{1b}]0;x\u{7}",
    "a\nb",
    "a\r\nb",
    "\u{feff}",
    "\u{202e}abc",
    "\u{200b}\u{200d}",
    "e\u{301}\u{301}\u{301}\u{301}",
    "漢字",
    "ﷺ",
    "👩‍👩‍👧‍👦🐦🎵",
    "ขอบคุณ",
    "\u{d7ff}\u{e000}",
    "\u{10ffff}",
    "../../etc/passwd",
    "/etc/passwd",
    ".",
    "..",
    "con",
    "%s%n",
    "[UNK] [CLS] [SEP]",
    "ß İ ǆ",
    "\u{85}\u{2028}\u{2029}",
    "'\";--",
];

/// Changes `bytes`; `others`: files to splice with. Says what was done.
pub fn bytes(bytes: &mut Vec<u8>, others: &[&[u8]], draws: &mut Draws) -> String {
    let at = draws.below(bytes.len());
    match draws.below(9) {
        0 if !bytes.is_empty() => {
            bytes[at] ^= 1 << draws.below(8);
            format!("bit flipped at {at}")
        }
        1 if !bytes.is_empty() => {
            bytes[at] = draws.byte();
            format!("byte changed at {at}")
        }
        2 => {
            bytes.truncate(at);
            format!("cut at {at}")
        }
        3 => {
            let other = others
                .get(draws.below(others.len()))
                .copied()
                .unwrap_or(b"");
            let from = draws.below(other.len());
            bytes.truncate(at);
            bytes.extend(&other[from..]);
            format!("spliced at {at} with another file from {from}")
        }
        4 => number(bytes, draws),
        5 => {
            let end = (at + 1 + draws.below(64)).min(bytes.len());
            let part = bytes[at.min(end)..end].to_vec();
            bytes.splice(at..at, part.repeat(1 + draws.below(4)));
            format!("{} bytes repeated at {at}", part.len())
        }
        6 => {
            let end = (at + 1 + draws.below(64)).min(bytes.len());
            bytes.drain(at.min(end)..end);
            format!("bytes {at}..{end} removed")
        }
        7 => {
            let text = draws.pick(&TEXTS);
            bytes.splice(at..at, text.bytes());
            format!("{text:?} put in at {at}")
        }
        _ => {
            let some: Vec<u8> = (0..1 + draws.below(8)).map(|_| draws.byte()).collect();
            bytes.splice(at..at, some.iter().copied());
            format!("{some:?} put in at {at}")
        }
    }
}

/// Puts one of [`NUMBERS`] in the place of a number in the text, or somewhere.
fn number(bytes: &mut Vec<u8>, draws: &mut Draws) -> String {
    let from = draws.below(bytes.len());
    let is_digit = |byte: &u8| byte.is_ascii_digit();
    let at = bytes[from..]
        .iter()
        .position(is_digit)
        .map_or(from, |at| from + at);
    let digits = bytes[at..].iter().take_while(|byte| is_digit(byte)).count();
    let value = draws.pick(&NUMBERS);
    bytes.splice(at..at + digits, value.bytes());
    format!("number at {at} is {value}")
}

/// Changes one place of `text`, which should be JSON; other bytes are changed as [`bytes`] does.
pub fn json_text(text: &mut Vec<u8>, others: &[&[u8]], draws: &mut Draws) -> String {
    let parsed: Option<Value> = serde_json::from_slice(text).ok();
    let Some(mut value) = parsed.filter(|_| !draws.one_in(4)) else {
        return bytes(text, others, draws);
    };
    if draws.one_in(12) {
        return double_a_key(text, draws);
    }
    let said = json(&mut value, draws);
    *text = render(&value, draws.one_in(2));
    said
}

/// `value` as text, with the parts that [`raw`] made as they are.
pub fn render(value: &Value, pretty: bool) -> Vec<u8> {
    let write = if pretty {
        serde_json::to_vec_pretty
    } else {
        serde_json::to_vec
    };
    let mut text = write(value).unwrap();
    if let Some(at) = find(&text, RAW.as_bytes()) {
        let from = at + RAW.len();
        let end = from + find(&text[from..], b"\"").unwrap();
        let raw = String::from_utf8(text[from..end].to_vec())
            .unwrap()
            .replace('\'', "\"");
        text.splice(at..=end, raw.bytes());
    }
    text
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).position(|window| window == what)
}

/// A line of the text, which is that of a key where the JSON is pretty, stands twice.
fn double_a_key(text: &mut Vec<u8>, draws: &mut Draws) -> String {
    let lines: Vec<&[u8]> = text.split_inclusive(|byte| *byte == b'\n').collect();
    let at = draws.below(lines.len());
    let mut doubled = lines[..at].concat();
    doubled.extend(lines[at]);
    if lines[at].contains(&b',') || !lines[at].contains(&b':') {
        doubled.extend(lines[at]);
    } else {
        doubled.extend(b",");
        doubled.extend(lines[at]);
    }
    doubled.extend(lines.get(at + 1..).unwrap_or_default().concat());
    *text = doubled;
    format!("line {} stands twice", at + 1)
}

/// Changes one place of `value`, found by a random walk.
pub fn json(value: &mut Value, draws: &mut Draws) -> String {
    walk(value, String::new(), draws)
}

fn walk(value: &mut Value, place: String, draws: &mut Draws) -> String {
    let (stop, change) = (draws.one_in(6), draws.one_in(8));
    match value {
        Value::Object(map) if !map.is_empty() && !stop => {
            let key = draws.pick(&map.keys().cloned().collect::<Vec<_>>()).clone();
            let place = format!("{place}/{key}");
            match map.get_mut(&key) {
                Some(value) if !change => walk(value, place, draws),
                _ => format!("{place}: {}", change_key(map, &key, draws)),
            }
        }
        Value::Array(list) if !list.is_empty() && !stop => {
            let index = draws.below(list.len());
            let place = format!("{place}/{index}");
            match list.get_mut(index) {
                Some(value) if !change => walk(value, place, draws),
                _ => format!("{place}: {}", change_list(list, index, draws)),
            }
        }
        _ => {
            *value = extreme(value, draws);
            let shown: String = value.to_string().chars().take(60).collect();
            format!("{place} is {shown}")
        }
    }
}

fn change_key(map: &mut Map<String, Value>, key: &str, draws: &mut Draws) -> String {
    match draws.below(4) {
        0 => {
            map.remove(key);
            "removed".into()
        }
        1 => {
            let value = map.remove(key).unwrap();
            let name = format!("{key}{}", draws.pick(&TEXTS));
            map.insert(name.clone(), value);
            format!("called {name:?}")
        }
        2 => {
            let other = draws.pick(&map.keys().cloned().collect::<Vec<_>>()).clone();
            map[key] = map[&other].clone();
            format!("has the value of {other}")
        }
        _ => {
            map.insert((*draws.pick(&TEXTS)).to_owned(), json!(1));
            "a neighbour added".into()
        }
    }
}

fn change_list(list: &mut Vec<Value>, index: usize, draws: &mut Draws) -> String {
    match draws.below(4) {
        0 => {
            list.remove(index);
            "removed".into()
        }
        1 => {
            let one = list[index].clone();
            let most = 1 + LARGEST / one.to_string().len();
            let many = most.min(*draws.pick(&[1, 1, 2, 70, 5000]));
            list.extend((0..many).map(|_| one.clone()));
            format!("repeated {many} times")
        }
        2 => {
            list.clear();
            "list emptied".into()
        }
        _ => {
            let other = draws.below(list.len());
            list.swap(index, other);
            format!("swapped with {other}")
        }
    }
}

/// Another value in the place of `value`, often of the same type.
fn extreme(value: &Value, draws: &mut Draws) -> Value {
    match value {
        Value::Number(_) if !draws.one_in(4) => match draws.below(3) {
            0 => raw(draws.pick::<&str>(&NUMBERS[..20])),
            1 => json!(draws.below(40)),
            _ => json!(
                value.as_f64().unwrap_or(1.0) * draws.pick(&[-1.0, 0.5, 2.0, 1e3, 1e-30, 1e30])
            ),
        },
        Value::String(text) if !draws.one_in(4) => match draws.below(4) {
            0 => json!(draws.pick(&TEXTS)),
            1 => json!(format!("{text}{}", draws.pick(&TEXTS))),
            2 => json!(text.repeat((1 + draws.below(2000)).min(1 + LARGEST / text.len().max(1)))),
            _ => json!(text.chars().rev().collect::<String>()),
        },
        Value::Bool(on) if !draws.one_in(4) => json!(!on),
        _ => match draws.below(10) {
            0 => Value::Null,
            1 => json!(true),
            2 => json!({}),
            3 => json!([]),
            4 => json!(draws.pick(&TEXTS)),
            5 => raw(draws.pick::<&str>(&NUMBERS)),
            6 => nested(
                *draws.pick(&[
                    3, 20, 60, 100, 118, 120, 121, 122, 123, 124, 125, 126, 127, 128, 3000,
                ]),
                draws,
            ),
            7 => json!("x".repeat(*draws.pick(&[1000, 70_000, 1 << 20]))),
            8 => json!((0..*draws.pick(&[10, 1000, 50_000])).collect::<Vec<_>>()),
            _ => json!(draws.next()),
        },
    }
}

/// How a part begins that [`Value`] cannot hold; [`render`] takes this and the quotes off.
const RAW: &str = "\"~RAW~";

fn raw(text: &str) -> Value {
    json!(format!("{}{text}", &RAW[1..]))
}

fn nested(depth: usize, draws: &mut Draws) -> Value {
    let object = draws.one_in(2);
    // Built as text: values of great depth overflow the stack when they are dropped.
    let (open, close) = if object { ("{'a':", "}") } else { ("[", "]") };
    raw(&format!("{}0{}", open.repeat(depth), close.repeat(depth)))
}

/// Changes a file of JSON Lines: one line as [`json_text`], or the order and number of lines.
pub fn json_lines(text: &mut Vec<u8>, others: &[&[u8]], draws: &mut Draws) -> String {
    let mut lines: Vec<Vec<u8>> = text
        .split(|byte| *byte == b'\n')
        .map(<[u8]>::to_vec)
        .collect();
    let at = draws.below(lines.len());
    let said = match draws.below(10) {
        0 => {
            lines.remove(at);
            "removed".into()
        }
        1 => {
            let many = *draws.pick(&[1, 1, 300]);
            let line = lines[at].clone();
            lines.splice(at..at, (0..many).map(|_| line.clone()));
            format!("repeated {many} times")
        }
        2 => {
            let blank = draws.pick(&["", " ", "\r", "\t", "\u{feff}", "null", "{}", "[]"]);
            lines.insert(at, blank.as_bytes().to_vec());
            format!("{blank:?} before it")
        }
        3 => return bytes(text, others, draws),
        _ => json_text(&mut lines[at], others, draws),
    };
    *text = lines.join(&b'\n');
    format!("line {}: {said}", at + 1)
}
