//! `forefront check`: validates configuration files.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::config::{self, Kind, Problems};

/// The exit code for a configuration that cannot be used, as for bad usage.
const BAD_CONFIGURATION: u8 = 2;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Configuration files; the role of each is told by its content
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Print the settings in effect, defaults included, as a file that loads to the same but for passwords, which are not shown
    #[arg(long)]
    pub show: bool,
}

/// Checks every file: `F: ok` or the settings on standard output, problems on standard error. Exit code 0, or 2 if any
/// file is bad.
pub fn run(args: &Args) -> ExitCode {
    match check(args, &mut io::stdout().lock(), &mut io::stderr().lock()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(BAD_CONFIGURATION),
        // Whoever read the output has gone away.
        Err(_) => ExitCode::FAILURE,
    }
}

fn check(args: &Args, out: &mut impl Write, err: &mut impl Write) -> io::Result<bool> {
    let mut all_good = true;
    for file in &args.files {
        match effective(file) {
            // A comment, so that the output is itself a file that loads.
            Ok(settings) if args.show => {
                writeln!(out, "# {}: the settings in effect\n{settings}", file.display())?
            }
            Ok(_) => writeln!(out, "{}: ok", file.display())?,
            Err(problems) => {
                all_good = false;
                writeln!(err, "{problems}")?;
            }
        }
    }
    Ok(all_good)
}

fn effective(file: &Path) -> Result<String, Problems> {
    match config::kind(file)? {
        Kind::Proxy => config::proxy::load(file).map(|settings| config::show::to_toml(&settings)),
        Kind::Supervise => {
            config::supervise::load(file).map(|config| config::show::supervise_to_toml(&config))
        }
        Kind::Billing => config::billing::load(file).map(|settings| config::show::billing_to_toml(&settings)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(texts: &[&str], show: bool) -> (bool, String, String) {
        let directory = tempfile::tempdir().unwrap();
        let mut files = Vec::new();
        for (index, text) in texts.iter().enumerate() {
            let file = directory.path().join(format!("{index}.toml"));
            std::fs::write(&file, text).unwrap();
            files.push(file);
        }
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let good = check(&Args { files, show }, &mut out, &mut err).unwrap();
        let text = |bytes: Vec<u8>| {
            let text = String::from_utf8(bytes).unwrap();
            text.replace(&format!("{}/", directory.path().display()), "")
        };
        (good, text(out), text(err))
    }

    const PROXY: &str = include_str!("../../config/proxy.toml");
    const BILLING: &str = include_str!("../../config/billing.toml");
    const SUPERVISE: &str = "[[process]]\nname = 'a'\ncommand = ['true']\n";

    #[test]
    fn tells_good_from_bad() {
        let (good, out, err) = checked(&[PROXY, SUPERVISE, BILLING], false);
        assert_eq!((good, out.as_str(), err.as_str()), (true, "0.toml: ok\n1.toml: ok\n2.toml: ok\n", ""));

        let (good, out, err) = checked(&["[[route]]\nnme = 'x'", SUPERVISE, "x"], false);
        assert!(!good);
        assert_eq!(out, "1.toml: ok\n");
        assert!(
            err.contains("0.toml:2:1: route[0].nme: is not a known key; did you mean \"name\"?"),
            "{err}"
        );
        assert!(err.contains("2.toml: is no configuration"), "{err}");
    }

    #[test]
    fn what_is_shown_can_be_checked() {
        for text in [PROXY, SUPERVISE, BILLING] {
            let (good, shown, _) = checked(&[text], true);
            assert!(good);
            let (good, shown_again, err) = checked(&[&shown], true);
            assert!(good, "{err}");
            assert_eq!(shown, shown_again);
        }
    }

    #[test]
    fn a_file_that_cannot_be_read() {
        let args = Args { files: vec!["/nonexistent/proxy.toml".into()], show: false };
        let (mut out, mut err) = (Vec::new(), Vec::new());
        assert!(!check(&args, &mut out, &mut err).unwrap());
        assert!(String::from_utf8(err).unwrap().contains("/nonexistent/proxy.toml: cannot be read"));
    }
}
