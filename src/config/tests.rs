//! The room at its boundary: text in, settings or problems out.

mod bad_proxy;
mod bad_supervise;
mod billing;
mod good;

use std::path::Path;

use super::proxy::Settings;
use super::{Problem, Problems, proxy, supervise};

fn settings(text: &str) -> Result<Settings, Problems> {
    proxy::parse(Path::new("proxy.toml"), text)
}

fn keeper(text: &str) -> Result<crate::supervisor::Config, Problems> {
    supervise::parse(Path::new("supervise.toml"), text)
}

/// A case of a table of bad files: what is written, and of each problem its line, key path and a piece of the rest.
type Bad = (&'static str, &'static [(usize, &'static str, &'static str)]);

/// Every problem must be expected, and every expected problem must be there, in the order of lines.
fn assert_problems(text: &str, problems: &[Problem], expected: &[(usize, &str, &str)]) {
    let shown: Vec<String> = problems.iter().map(Problem::to_string).collect();
    let shown = shown.join("\n");
    assert_eq!(problems.len(), expected.len(), "{text}\ngave\n{shown}");
    for (problem, (line, key, piece)) in problems.iter().zip(expected) {
        assert_eq!((problem.line, problem.key.as_str()), (*line, *key), "{text}\ngave\n{shown}");
        assert!(problem.to_string().contains(piece), "{text}\nlacks {piece:?}\n{shown}");
    }
}
