//! The command line.

mod args;
mod commands;
mod connection;
mod keys;
mod prompt;
mod settings;

use std::{
    io::{IsTerminal, Write},
    process::ExitCode,
};

use clap::Parser;
use horizon_client_core::failure::Failure;
use tracing_subscriber::EnvFilter;

use crate::service;
use args::{Args, Command, KeyCommand, ServiceCommand};

/// Runs the command that the arguments name. Exit codes: 0 done, 1 failure, 2 usage, 3 refused, 4 no controller, 5 conflict.
pub fn main() -> ExitCode {
    // Arguments that make no sense end the program with 2 here.
    let args = Args::parse();
    let collects =
        matches!(args.command, Command::Servers { .. } | Command::Connect(_) | Command::Status { .. });
    let done = match args.command {
        Command::Service { command } => return serve(&args.socket, command),
        Command::Key { command: KeyCommand::Add(add) } => keys::add(&args.socket, add),
        Command::Key { command: KeyCommand::Show(place) } => keys::show(place),
        Command::Key { command: KeyCommand::Remove(remove) } => keys::remove(remove),
        Command::ExportKey(export) => keys::export(export),
        Command::Servers { output } => commands::servers(&args.socket, output),
        Command::Settings { command } => settings::settings(&args.socket, command),
        Command::Connect(connect) => commands::connect(&args.socket, &connect),
        Command::Confirm => commands::confirm(&args.socket),
        Command::Status { output } => commands::status(&args.socket, output),
        Command::Disconnect => commands::disconnect(&args.socket),
    };
    if collects {
        keys::collect(&args.socket);
    }
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            complain(&failure);
            ExitCode::from(failure.kind.exit_code())
        }
    }
}

fn serve(socket: &std::path::Path, command: ServiceCommand) -> ExitCode {
    let filter = EnvFilter::try_from_env("HORIZON_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
    let result = match command {
        ServiceCommand::Run(run) => service::supervise(&run.settings(socket)),
        ServiceCommand::Repair(places) => service::repair(&places.settings(socket)).map(|repaired| {
            say(if repaired { "the host was put back" } else { "there was nothing to put back" });
            ExitCode::SUCCESS
        }),
    };
    result.unwrap_or_else(|error| {
        complain(&Failure::failed(format!("{error:#}"), ""));
        ExitCode::FAILURE
    })
}

/// Prints a line for the user.
fn say(text: &str) {
    // Whoever closed the pipe does not want to hear more.
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// Prints how far a command is, for a person who waits.
fn note(text: &str) {
    if std::io::stderr().is_terminal() {
        let _ = writeln!(std::io::stderr(), "{text}");
    }
}

fn complain(failure: &Failure) {
    let _ = writeln!(std::io::stderr(), "error: {failure}");
}
