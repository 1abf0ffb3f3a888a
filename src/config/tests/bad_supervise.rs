//! Keeper files that are refused.

use super::*;

const BASE: &str = "[[process]]
name = 'a'
command = ['true']
";

/// Appended to `BASE`, so the first line is line 4 and belongs to the process.
const APPENDED: &[Bad] = &[
    ("instances = 0", &[(4, "process[0].instances", "from 1 to 64")]),
    ("instance = 2", &[(4, "process[0].instance", "did you mean \"instances\"?")]),
    ("memory_max = '1'", &[(4, "process[0].memory_max", "is not a size")]),
    ("address = 'localhost'", &[(4, "process[0].address", "is not an address")]),
    ("environment = { A = 1 }", &[(4, "process[0].environment.A", "1 is not a text")]),
    ("environment = { 'A=B' = 'x' }", &[(4, "process[0].environment", "holds '='")]),
    ("sockets = ['http=80']", &[(4, "process[0].sockets[0]", "is not a socket")]),
    ("health = { path = '/ping' }", &[(4, "process[0].health", "needs an address")]),
    (
        "health = { path = 'ping', every = '1s' }",
        &[
            (4, "process[0].health.path", "is not a path"),
            (4, "process[0].health.every", "is not a known key"),
        ],
    ),
    ("backoff = { min = '2s', max = '1s' }", &[(4, "process[0].backoff", "max not below min")]),
    ("recycle_after = '10s'", &[(4, "process[0].recycle_after", "longer than start_grace")]),
    ("log = { bytes_max = '1 KiB' }", &[(4, "process[0].log.bytes_max", "is out of bounds")]),
    ("stop_timeout = '0s'", &[(4, "process[0].stop_timeout", "longer than zero")]),
    (
        "[[process]]\nname = 'a'\ncommand = ['x']",
        &[(5, "process[1].name", "is already an instance of process \"a\"")],
    ),
    (
        "[[process]]\ncommand = 'x y'",
        &[(4, "process[1].name", "is missing"), (5, "process[1].command", "is not a list")],
    ),
    ("[[process]]\nname = 'b'\ncommand = ['']", &[(6, "process[1].command", "needs a program")]),
    ("[admin]\nlisten = 9103", &[(5, "admin.listen", "or \"off\"")]),
    ("[node]\nthreads = 1", &[(5, "node.threads", "is not a known key")]),
];

#[test]
fn every_problem_has_its_line_and_key() {
    for (appended, expected) in APPENDED {
        let text = format!("{BASE}{appended}\n");
        let problems = keeper(&text).err().map(|problems| problems.0).unwrap_or_default();
        assert_problems(&text, &problems, expected);
    }
}

#[test]
fn a_file_without_processes() {
    let problems = keeper("[node]\nname = 'a'").unwrap_err();
    assert!(problems.to_string().contains("process: there is no process; add [[process]]"), "{problems}");
}
