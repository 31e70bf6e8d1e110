//! The program `horizon-appliance`.

use std::process::ExitCode;

use clap::Parser;
use horizon_appliance::Arguments;

fn main() -> ExitCode {
    horizon_appliance::start(Arguments::parse())
}
