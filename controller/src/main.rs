//! The program `horizon-controller`.

use std::process::ExitCode;

fn main() -> ExitCode {
    horizon_controller::cli::main()
}
