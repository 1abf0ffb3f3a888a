//! One TOML file: its text, its parsed tree, and the problems found in it.

use std::cell::RefCell;
use std::ops::Range;
use std::path::Path;

use toml::de::DeTable;

use super::error::{Problem, Problems};
use super::reader::Section;

/// More than any sensible configuration; bounds what a wrong path (a log, a device) can cost.
const FILE_BYTES_MAX: usize = 1 << 20;

/// Reads a file as UTF-8 text.
pub(super) fn text_of(file: &Path) -> Result<String, Problems> {
    use std::io::Read;

    let refuse = |message: String| Problems::of_file(file, message, None);
    let open = std::fs::File::open(file).map_err(|error| refuse(format!("cannot be read: {error}")))?;
    let mut bytes = Vec::new();
    let limit = FILE_BYTES_MAX as u64 + 1;
    open.take(limit).read_to_end(&mut bytes).map_err(|error| refuse(format!("cannot be read: {error}")))?;
    if bytes.len() > FILE_BYTES_MAX {
        return Err(refuse(format!("is larger than {} MiB: not a configuration file", FILE_BYTES_MAX >> 20)));
    }
    String::from_utf8(bytes).map_err(|error| refuse(format!("is not UTF-8 text: {error}")))
}

/// Parses `text`, lets `compile` read it, and returns what that made, unless anything was reported on the way.
///
/// `compile` goes on after a problem with any stand-in value, so that all problems are told at once. If the text is no
/// TOML at all only that is told: a tree full of holes would give problems that are not there.
pub(super) fn read<T>(
    file: &Path,
    text: &str,
    compile: impl FnOnce(&mut Section<'_>) -> T,
) -> Result<T, Problems> {
    let sink = Sink { file, text, problems: RefCell::default() };
    let (tree, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        sink.report(error.span().unwrap_or(0..0), "", format!("is not TOML: {}", error.message()), None);
    }
    if !errors.is_empty() {
        return Err(sink.into_problems());
    }
    let compiled = {
        let mut root = Section::root(&sink, tree.get_ref());
        let compiled = compile(&mut root);
        root.finish();
        compiled
    };
    if sink.count() == 0 { Ok(compiled) } else { Err(sink.into_problems()) }
}

/// Collects problems.
pub(super) struct Sink<'d> {
    file: &'d Path,
    text: &'d str,
    problems: RefCell<Vec<Problem>>,
}

impl Sink<'_> {
    /// `span` is in bytes of the text.
    pub(super) fn report(&self, span: Range<usize>, key: &str, message: String, hint: Option<String>) {
        let (line, column) = position(self.text, span.start);
        let problem =
            Problem { file: self.file.to_owned(), line, column, key: key.to_owned(), message, hint };
        self.problems.borrow_mut().push(problem);
    }

    pub(super) fn count(&self) -> usize {
        self.problems.borrow().len()
    }

    fn into_problems(self) -> Problems {
        let mut problems = self.problems.into_inner();
        problems.sort_by_key(|problem| (problem.line, problem.column));
        Problems(problems)
    }
}

/// Line and column, in characters, from 1.
fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset.min(text.len())).unwrap_or(text);
    let start_of_line = before.rfind('\n').map_or(0, |newline| newline + 1);
    (before.matches('\n').count() + 1, before[start_of_line..].chars().count() + 1)
}
