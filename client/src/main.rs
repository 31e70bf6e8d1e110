//! `horizon`: the command line, and the service behind `horizon service run`.

use std::process::ExitCode;

fn main() -> ExitCode {
    horizon_client::cli::main()
}
