//! The entry point: everything is in [`lifeboat::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    lifeboat::cli::main(std::env::args_os())
}
