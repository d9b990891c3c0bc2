//! The entry point: everything is in [`lifeboat::cli`].

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    lifeboat::cli::main(std::env::args_os())
}
