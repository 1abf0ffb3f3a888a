//! What is wrong with a configuration file: every problem, each with its place and a way out.

use std::fmt;
use std::path::{Path, PathBuf};

/// One problem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub file: PathBuf,
    /// From 1; 0 if the file as a whole is meant (it cannot be read, say).
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
    /// Such as `route[1].timeout` (lists count from 0); empty if the file as a whole is meant.
    pub key: String,
    /// What is wrong.
    pub message: String,
    /// What to write instead.
    pub hint: Option<String>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Problem { file, line, column, key, message, hint } = self;
        write!(f, "{}", file.display())?;
        if *line > 0 {
            write!(f, ":{line}:{column}")?;
        }
        f.write_str(": ")?;
        if !key.is_empty() {
            write!(f, "{key}: ")?;
        }
        f.write_str(message)?;
        match hint {
            Some(hint) => write!(f, "; {hint}"),
            None => Ok(()),
        }
    }
}

/// Every problem of one file, in the order of its lines; never empty. Displays as one line each.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Problems(pub Vec<Problem>);

impl Problems {
    /// The whole file is the problem.
    pub(super) fn of_file(file: &Path, message: impl Into<String>, hint: Option<&str>) -> Problems {
        Problems(vec![Problem {
            file: file.to_owned(),
            line: 0,
            column: 0,
            key: String::new(),
            message: message.into(),
            hint: hint.map(str::to_owned),
        }])
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}
