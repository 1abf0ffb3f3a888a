//! Starts forefront: parses the command line, runs the command, turns its outcome into an exit code.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    forefront::cli::main()
}
