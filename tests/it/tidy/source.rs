//! Rust source as `tidy` reads it: code without comments and literals, and the literals by themselves. Not a parser; it
//! knows just enough to tell the three apart.

/// A file taken apart. Places are byte offsets and are the same in all parts.
pub struct Source {
    /// The text with comments and the insides of literals blanked out; as long as the text.
    pub code: String,
    /// String literals and where their opening quote is.
    pub literals: Vec<(usize, String)>,
}

impl Source {
    pub fn of(text: &str) -> Source {
        let bytes = text.as_bytes();
        let mut code = bytes.to_vec();
        let mut literals = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            let rest = &text[at..];
            let end = if rest.starts_with("//") {
                at + rest.find('\n').unwrap_or(rest.len())
            } else if rest.starts_with("/*") {
                at + block_comment(rest)
            } else if let Some((open, close)) = string(bytes, at) {
                literals.push((open - 1, text[open..close].to_owned()));
                blank(&mut code, open, close);
                at = (close + 1).min(bytes.len());
                continue;
            } else if let Some(length) = character(rest) {
                at + length
            } else {
                at += rest.chars().next().map_or(1, char::len_utf8);
                continue;
            };
            blank(&mut code, at, end);
            at = end;
        }
        Source { code: String::from_utf8_lossy(&code).into_owned(), literals }
    }
}

fn blank(code: &mut [u8], from: usize, to: usize) {
    code[from..to].iter_mut().filter(|byte| **byte != b'\n').for_each(|byte| *byte = b' ');
}

/// The length of a block comment, nested ones included.
fn block_comment(rest: &str) -> usize {
    let bytes = rest.as_bytes();
    let (mut depth, mut at) = (0usize, 0);
    while at + 1 < bytes.len() {
        match &bytes[at..at + 2] {
            b"/*" => depth += 1,
            b"*/" => depth -= 1,
            _ => {
                at += 1;
                continue;
            }
        }
        at += 2;
        if depth == 0 {
            return at;
        }
    }
    rest.len()
}

/// The inside of a string literal that begins here: plain, byte or raw.
fn string(bytes: &[u8], at: usize) -> Option<(usize, usize)> {
    if bytes[at] == b'"' {
        let mut end = at + 1;
        while end < bytes.len() && bytes[end] != b'"' {
            end += if bytes[end] == b'\\' { 2 } else { 1 };
        }
        return Some((at + 1, end.min(bytes.len())));
    }
    let follows_word = at > 0 && (bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'_');
    if bytes[at] != b'r' || (follows_word && bytes[at - 1] != b'b') {
        return None;
    }
    let hashes = bytes[at + 1..].iter().take_while(|byte| **byte == b'#').count();
    let open = at + 1 + hashes;
    if bytes.get(open) != Some(&b'"') {
        return None;
    }
    let closing: Vec<u8> = std::iter::once(b'"').chain(std::iter::repeat_n(b'#', hashes)).collect();
    let inside = &bytes[open + 1..];
    let length = inside.windows(closing.len()).position(|window| window == closing).unwrap_or(inside.len());
    Some((open + 1, open + 1 + length))
}

/// The length of a character literal that begins here; a lifetime is none.
fn character(rest: &str) -> Option<usize> {
    let inside = rest.strip_prefix('\'')?;
    if let Some(escaped) = inside.strip_prefix('\\') {
        let first = escaped.chars().next()?.len_utf8();
        return Some(2 + first + escaped[first..].find('\'')? + 1);
    }
    let length = inside.chars().next()?.len_utf8();
    inside[length..].starts_with('\'').then_some(length + 2)
}

/// Code with every item under `#[cfg(test)]` blanked out; as long as before.
pub fn without_tests(code: &str) -> String {
    const MARK: &str = "#[cfg(test)]";
    let mut kept = code.as_bytes().to_vec();
    let mut from = 0;
    while let Some(found) = code[from..].find(MARK) {
        let start = from + found;
        let mut depth = 0usize;
        let mut end = code.len();
        for (at, byte) in code.bytes().enumerate().skip(start + MARK.len()) {
            match byte {
                b'{' => depth += 1,
                b'}' => depth = depth.saturating_sub(1),
                b';' => {}
                _ => continue,
            }
            if depth == 0 {
                end = at + 1;
                break;
            }
        }
        blank(&mut kept, start, end);
        from = end;
    }
    String::from_utf8_lossy(&kept).into_owned()
}

#[test]
fn comments_and_literals_are_told_from_code() {
    let text = "a(\"b \\\" c\", 'd', '\\'', b\"e\", r#\"f \" g\"#); // h\n/* i /* j */ k */ fn l<'m>() {}";
    let source = Source::of(text);
    assert_eq!(source.code.len(), text.len());
    assert!(
        !source.code.contains(|c: char| "bcdefghijk".contains(c) && c != 'b' && c != 'f'),
        "{}",
        source.code
    );
    assert!(source.code.contains("fn l<'m>() {}"));
    let literals: Vec<&str> = source.literals.iter().map(|(_, literal)| literal.as_str()).collect();
    assert_eq!(literals, ["b \\\" c", "e", "f \" g"]);
}

#[test]
fn tests_are_told_from_the_rest() {
    let code =
        "fn a() {}\n#[cfg(test)]\nmod tests { fn b() { c(); } }\nfn d() {}\n#[cfg(test)]\nmod e;\nfn f() {}";
    let kept = without_tests(code);
    assert!(["fn a", "fn d", "fn f"].iter().all(|part| kept.contains(part)), "{kept}");
    assert!(["fn b", "c()", "mod e"].iter().all(|part| !kept.contains(part)), "{kept}");
}
