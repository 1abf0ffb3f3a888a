//! The shipped `config/proxy.toml` with some values set anew. By lines, not by parsing: the file stays as it is for a
//! reader, comments and all, and what comes out is read by the same code as any other configuration.

/// The shipped configuration, itself documentation.
pub const PROXY: &str = include_str!("../../../config/proxy.toml");

/// Sets `key` in the first section that begins with the line `header` (such as `[node]` or `[[upstream]]`) to `value`,
/// which is TOML. A section or key that is not there is added.
pub fn set(text: &str, header: &str, key: &str, value: &str) -> String {
    let mut out: Vec<&str> = Vec::new();
    let line = format!("{key} = {value}");
    let mut lines = text.lines();
    let found = lines.by_ref().inspect(|line| out.push(line)).any(|line| uncommented(line) == header);
    if !found {
        out.extend(["", header, &line]);
        return out.join("\n") + "\n";
    }
    // Set right after the header, and dropped where it was.
    out.push(&line);
    let mut in_section = true;
    while let Some(old) = lines.next() {
        in_section &= !old.starts_with('[');
        if in_section && is_assignment(old, key) {
            let mut open = depth(old);
            while open > 0 {
                open += lines.next().map_or(-open, depth);
            }
        } else {
            out.push(old);
        }
    }
    out.join("\n") + "\n"
}

/// As [`set`], in the section that begins with the line `header` and then names itself `name`. One that is not there changes
/// nothing.
pub fn set_named(text: &str, header: &str, name: &str, key: &str, value: &str) -> String {
    let Some(at) = text.find(&format!("{header}\nname = \"{name}\"\n")) else { return text.to_owned() };
    let (before, from) = text.split_at(at);
    format!("{before}{}", set(from, header, key, value))
}

fn is_assignment(line: &str, key: &str) -> bool {
    line.trim_start().strip_prefix(key).is_some_and(|rest| rest.trim_start().starts_with('='))
}

fn uncommented(line: &str) -> &str {
    line.split('#').next().unwrap_or(line).trim_end()
}

/// Brackets opened minus closed outside of comments: more than 0 when a value goes on in the next line. (A `#` or bracket
/// within a string would be misread; the shipped file has none in the values set here, and a test reads the outcome.)
fn depth(line: &str) -> i32 {
    uncommented(line).chars().fold(0, |depth, c| match c {
        '[' | '{' => depth + 1,
        ']' | '}' => depth - 1,
        _ => depth,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# top\n[node]   # who\nname = \"a\" # a comment\n# threads = 2\n\n[listen]\nhttp = [\n  \"[::]:80\",\n]\nname = \"other\"\n";

    fn parsed(text: &str) -> toml::Table {
        text.parse().unwrap_or_else(|error| panic!("{error}\n{text}"))
    }

    #[test]
    fn a_value_is_replaced_in_its_section_only() {
        let table = parsed(&set(TEXT, "[node]", "name", "\"b\""));
        assert_eq!(table["node"]["name"].as_str(), Some("b"));
        assert_eq!(table["listen"]["name"].as_str(), Some("other"));
    }

    #[test]
    fn a_value_of_several_lines_is_replaced_whole() {
        let table = parsed(&set(TEXT, "[listen]", "http", "[\"[::]:8080\"]"));
        assert_eq!(table["listen"]["http"].as_array().map(Vec::len), Some(1));
        assert_eq!(table["listen"]["name"].as_str(), Some("other"));
    }

    #[test]
    fn a_section_is_found_by_its_name() {
        let text = "[[u]]\nname = \"a\"\nat = 1\n\n[[u]]\nname = \"b\"\nat = 2\n";
        let table = parsed(&set_named(text, "[[u]]", "b", "at", "3"));
        assert_eq!((table["u"][0]["at"].as_integer(), table["u"][1]["at"].as_integer()), (Some(1), Some(3)));
        assert_eq!(set_named(text, "[[u]]", "c", "at", "3"), text);
    }

    #[test]
    fn what_is_missing_is_added() {
        let text = set(&set(TEXT, "[node]", "threads", "1"), "[drain]", "delay", "\"0s\"");
        let table = parsed(&text);
        assert_eq!(table["node"]["threads"].as_integer(), Some(1));
        assert_eq!(table["drain"]["delay"].as_str(), Some("0s"));
    }
}
