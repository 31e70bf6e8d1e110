//! From the command line to the work.

use std::{
    io::{self, Write},
    path::Path,
    process::ExitCode,
};

use anyhow::Context;
use clap::Parser;
use horizon_crds::{TargetKind, Timestamp};
use horizon_hardening::{Program, harden};

use super::{
    admin,
    args::{AuditCommand, Cli, Command, ConfigCommand, Connection, Described},
    audit, backup, describe, device, diff, envelope, get, rotate, security, status, validate,
};
use crate::{
    api::{
        client::Client,
        model::{
            ApprovalRequest, Done, InvitationRequest, Issued, Recorded, RevocationRequest, TokenRequest,
        },
    },
    app,
    config::Config,
    export, init,
    store::MigrationReport,
};

/// Threads of a running controller. Its work is waiting; planning and cryptography take short turns.
const WORKERS: usize = 2;

/// The whole program: reads the arguments, does the work, and answers with 0, with 1 when something was wrong, or with 2
/// when the arguments were.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    if matches!(cli.command, Command::Run(_)) {
        // What the system does not allow is left as it was; a service manager does the same and more.
        harden(Program::Controller);
    }
    let runtime = match &cli.command {
        Command::Run(_) => {
            tokio::runtime::Builder::new_multi_thread().worker_threads(WORKERS).enable_all().build()
        }
        _ => tokio::runtime::Builder::new_current_thread().enable_all().build(),
    };
    let (mut out, mut err) = (io::stdout().lock(), io::stderr());
    let result = runtime
        .context("the system gives no threads or descriptors")
        .and_then(|runtime| runtime.block_on(execute(cli, &mut out, &mut err)));
    match result {
        Ok(code) => code,
        // Whoever reads our output has seen enough.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // When nobody can be told there is nothing left to do.
            let _ = writeln!(err, "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

/// Carries out a command. What is asked for goes to `out`, hints go to `err`.
///
/// # Errors
/// Whatever kept the command from its end, as a text for people.
pub async fn execute(cli: Cli, out: &mut dyn Write, err: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let file = cli.config.as_deref();
    let now = jiff::Timestamp::now();
    match cli.command {
        Command::Init(args) => {
            init::init(&args.directory, &args.advertise, args.with_appliance, out)?;
            init::first_admin(&args.directory, out).await?;
        }
        Command::Run(settings) => app::run(Config::load(file, *settings)?).await?,
        Command::Migrate(settings) => {
            writeln!(err, "migrating the database …")?;
            let report = app::migrate(&Config::load(file, *settings)?).await?;
            tell_migration(&report, out, err)?;
        }
        Command::Backup(args) => return backup::backup(file, *args, now, out, err).await,
        Command::Envelope { command } => return envelope::envelope(file, command, out).await,
        Command::Restore(args) => backup::restore(file, *args, now, out, err).await?,
        Command::Config { command: ConfigCommand::Print(settings) } => {
            write!(out, "{}", Config::load(file, *settings)?.to_toml())?;
        }
        Command::Validate { directory } => return validate::validate(&directory, out),
        Command::Diff { directory, output, connection } => {
            return diff::diff(&client(file, connection)?, &directory, output, out).await;
        }
        Command::Token { server, namespace, lifetime, connection } => {
            let request = TokenRequest { namespace, server, lifetime };
            let issued: Issued = client(file, connection)?.post("/v1/tokens", &request).await?;
            writeln!(out, "{}", issued.secret)?;
            writeln!(
                err,
                "This token makes one machine the server '{}'{}. On that machine:",
                request.server,
                until(&issued)
            )?;
            writeln!(err, "  horizon-appliance enroll TOKEN")?;
            writeln!(
                err,
                "It is shown once. To withdraw it: horizon-controller revoke registrationkey {} --reason …",
                issued.name
            )?;
        }
        Command::Invite { user, namespace, lifetime, connection } => {
            let request = InvitationRequest { namespace, user, lifetime };
            let issued: Issued = client(file, connection)?.post("/v1/invitations", &request).await?;
            writeln!(out, "{}", issued.secret)?;
            writeln!(err, "This key is for '{}'{}. On each of their devices:", request.user, until(&issued))?;
            writeln!(err, "  horizon key add")?;
            writeln!(
                err,
                "It is shown once. To withdraw it: horizon-controller revoke personalkey {} --reason …",
                issued.name
            )?;
        }
        Command::Get { what, name, namespace, output, limit, connection } => {
            let question = get::Question {
                what,
                name: name.as_deref(),
                namespace: namespace.as_ref(),
                output,
                limit,
                now,
            };
            get::get(&client(file, connection)?, &question, out).await?;
        }
        Command::Describe { kind, name, namespace, connection } => {
            let client = client(file, connection)?;
            match kind {
                Described::Kind(kind) => {
                    describe::describe(&client, kind, &namespace, &name, now, out).await?
                }
                Described::Session => describe::session(&client, &name, now, out).await?,
                Described::Device => describe::device(&client, &name, now, out).await?,
            }
        }
        Command::Approve { server, digest, reason, namespace, connection } => {
            let request = ApprovalRequest { namespace, server, digest, reason };
            let recorded: Recorded = client(file, connection)?.post("/v1/approvals", &request).await?;
            writeln!(out, "{}", recorded.message)?;
        }
        Command::Revoke { kind, name, reason, compromised, namespace, connection } => {
            let request = RevocationRequest { namespace, kind: kind.0, name, reason, compromised };
            let recorded: Recorded = client(file, connection)?.post("/v1/revocations", &request).await?;
            writeln!(out, "{}", recorded.message)?;
            if request.kind == TargetKind::Server {
                writeln!(
                    err,
                    "To use the machine again, declare a server under another name and enrol it anew."
                )?;
            }
        }
        Command::Handover(args) => {
            rotate::hand_over(args, |connection| client(file, connection), out, err).await?;
        }
        Command::Audit { command: AuditCommand::Verify(args) } => {
            return audit::verify(file, *args, out).await;
        }
        Command::Rotate { command } => {
            rotate::rotate(command, |connection| client(file, connection), out).await?;
        }
        Command::Device { command } => {
            device::decide(command, |connection| client(file, connection), out).await?;
        }
        Command::Export { format, output, connection } => {
            export::export(&client(file, connection)?, format, &output, out, err).await?;
        }
        Command::ConfirmPrune { connection } => {
            let done: Done =
                client(file, connection)?.post("/v1/prune-confirmations", &serde_json::json!({})).await?;
            writeln!(out, "{}", done.message)?;
        }
        Command::Block(args) => security::block(file, args, out).await?,
        Command::Unblock { range, connection } => security::unblock(file, &range, connection, out).await?,
        Command::Events { command } => security::events(file, command, out).await?,
        Command::Anomalies { command } => security::anomalies(file, command, out).await?,
        Command::Notifications { command } => security::notifications(file, command, out).await?,
        Command::Flag(args) => security::flag(file, args, false, out).await?,
        Command::Unflag(args) => security::flag(file, args, true, out).await?,
        Command::Admin { mut command } => {
            let client = client(file, command.take_connection())?;
            admin::admin(&client, command, out, err).await?;
        }
        Command::Status { output, connection } => {
            status::status(&client(file, connection)?, output, now, out).await?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn tell_migration(report: &MigrationReport, out: &mut dyn Write, err: &mut dyn Write) -> io::Result<()> {
    let applied: Vec<String> = report.applied.iter().map(ToString::to_string).collect();
    let version = report.version;
    match applied.as_slice() {
        [] => writeln!(out, "the schema is up to date, version {version}")?,
        [one] => writeln!(out, "the schema is version {version} now: {one} was applied")?,
        many => writeln!(out, "the schema is version {version} now: {} were applied", many.join(", "))?,
    }
    for role in &report.missing_roles {
        writeln!(
            err,
            "There is no role '{role}', so nobody has its rights. To have it: CREATE ROLE {role};"
        )?;
    }
    Ok(())
}

fn client(file: Option<&Path>, connection: Connection) -> anyhow::Result<Client> {
    Ok(Client::new(Config::socket(file, connection.socket)?))
}

fn until(issued: &Issued) -> String {
    let whole = |moment: Timestamp| moment.get().round(jiff::Unit::Second).unwrap_or(moment.get());
    issued.expires_at.map(|moment| format!(", until {}", whole(moment))).unwrap_or_default()
}
