//! The program `horizon-controller`.

use std::process::ExitCode;

/// Every connection makes and drops many small buffers.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    horizon_controller::cli::main()
}
