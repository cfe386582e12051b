//! Asks that say nothing: "yes, go on" in English, German, Spanish and Chinese.

/// Longest text that may say nothing, in bytes.
const LONGEST: usize = 100;

/// A text of these words alone says nothing.
const WORDS: &str = "
    yes yeah yep yup y ye sure ok okay k alright fine great good nice cool perfect excellent awesome
    please pls thanks thank thx ty you go on ahead continue proceed carry keep going do does it that
    this so and then next more again now try retry resume start begin right correct exactly agreed
    agree approved approve lgtm sounds looks no nope not nah just let's lets yes! i'm ready i am
    option step number first second third one last finish done the all of them both work works for
    me a
    ja jawohl jo jep jup klar genau richtig bitte weiter weitermachen mach mache machen machs gut
    sehr super prima toll passt okay los geht geht's gehts gerne gern nein fahr fahre fort
    fortfahren einverstanden nochmal noch mal einmal das es so danke dank vielen dir nur zu dann
    jetzt nächster nächsten schritt alles ist stimmt mit ruhig doch also perfekt versuche versuch's
    versuchs und
    sí si vale claro continúa continua continúe continue continuar sigue siga seguir adelante por
    favor gracias muchas hazlo haz eso esto perfecto bien muy de acuerdo bueno otra vez dale listo
    venga procede correcto exacto exactamente inténtalo intenta nuevo siguiente paso ya está
    entonces ahora y
";

/// The same in Chinese, where words are not separated; a longer one before its beginnings.
const CHINESE: [&str; 46] = [
    "再试一次",
    "继续吧",
    "请继续",
    "没问题",
    "就这样",
    "谢谢你",
    "下一步",
    "可以的",
    "开始吧",
    "做吧",
    "继续",
    "好的",
    "是的",
    "对的",
    "行的",
    "可以",
    "谢谢",
    "多谢",
    "接着",
    "往下",
    "然后",
    "再来",
    "一次",
    "开始",
    "同意",
    "确认",
    "当然",
    "没错",
    "不错",
    "很好",
    "太好",
    "麻烦",
    "请",
    "好",
    "是",
    "对",
    "行",
    "嗯",
    "哦",
    "吧",
    "了",
    "啊",
    "呀",
    "的",
    "你",
    "您",
];

/// Signs of formulas, code and addresses: a text with one says something.
const SIGNS: &str = "+*/=^<>{}[]$#@%&|\\`~_:0123456789";

/// Whether `text` only tells the model to go on, or picks one of its numbered offers.
pub(super) fn says_nothing(text: &str) -> bool {
    let text = text.trim();
    if text.len() > LONGEST {
        return false;
    }
    if is_choice(text) {
        return true;
    }
    // A smile is no sign.
    let has_letters = text.chars().any(char::is_alphanumeric);
    if has_letters && text.contains(|c| SIGNS.contains(c)) {
        return false;
    }
    let is_between = |c: char| !(c.is_alphanumeric() || c == '\'' || c == '\u{2019}');
    text.split(is_between)
        .filter(|word| !word.is_empty())
        .all(is_filler)
}

/// `2`, `2.`, `(b)`, `option 3`: a pick among what the model offered.
fn is_choice(text: &str) -> bool {
    let lower = text.to_lowercase();
    let mut words = lower
        .split(|c: char| c.is_whitespace() || ".,!()".contains(c))
        .filter(|word| !word.is_empty());
    let first = words.next();
    let named = ["option", "number", "step", "nummer", "schritt", "opción"];
    let pick = match first {
        Some(word) if named.contains(&word) => words.next(),
        first => first,
    };
    let picks = |word: &str| match word.as_bytes() {
        [one] => one.is_ascii_alphanumeric(),
        [one, two] => one.is_ascii_digit() && two.is_ascii_digit(),
        _ => false,
    };
    pick.is_some_and(picks) && words.next().is_none()
}

fn is_filler(word: &str) -> bool {
    let word = word.to_lowercase().replace('\u{2019}', "'");
    let word = word.trim_matches('\'');
    WORDS.split_whitespace().any(|known| known == word) || is_chinese_filler(word)
}

fn is_chinese_filler(word: &str) -> bool {
    let mut rest = word;
    while !rest.is_empty() {
        let known = CHINESE.iter().find_map(|known| rest.strip_prefix(known));
        match known {
            Some(after) => rest = after,
            None => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_goes_on_says_nothing() {
        for text in [
            "yes",
            "Yes, go on.",
            "OK!",
            "go ahead please",
            "👍",
            "...",
            "2",
            "Option 2",
            "b)",
            "",
            "try again",
            "LGTM, continue",
            "sounds good, do it",
            ":)",
            "the second one",
            "Ja, bitte weiter!",
            "mach weiter",
            "genau so",
            "Los geht’s",
            "Vielen Dank, weiter so",
            "Sí, continúa por favor",
            "vale, adelante",
            "dale",
            "好的，请继续",
            "继续吧",
            "可以，谢谢！",
        ] {
            assert!(says_nothing(text), "{text}");
        }
    }

    #[test]
    fn what_asks_for_something_says_something() {
        for text in [
            "2+2",
            "Why?",
            "hello",
            "yes, but in Rust",
            "Translate it.",
            "go on with the tests",
            "x = 1",
            "C++",
            "Ja, aber auf Deutsch",
            "y en francés",
            "继续写测试",
            "翻译成英文",
            "2024",
            "ok: https://example.org",
            "yes yes yes yes yes yes yes yes yes yes yes yes yes yes yes \
             yes yes yes yes yes yes yes yes yes yes yes yes yes",
        ] {
            assert!(!says_nothing(text), "{text}");
        }
    }
}
