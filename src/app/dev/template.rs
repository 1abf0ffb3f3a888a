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
    fn what_is_missing_is_added() {
        let text = set(&set(TEXT, "[node]", "threads", "1"), "[drain]", "delay", "\"0s\"");
        let table = parsed(&text);
        assert_eq!(table["node"]["threads"].as_integer(), Some(1));
        assert_eq!(table["drain"]["delay"].as_str(), Some("0s"));
    }
}
