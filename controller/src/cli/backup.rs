//! `backup` and `restore`.

use std::{
    fs::OpenOptions,
    io::Write,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, bail, ensure};
use clap::{Args, Subcommand};
use jiff::Timestamp;
use serde_json::json;
use zeroize::Zeroizing;

use super::{args::Output, prompt, write_value};
use crate::{
    backup::{
        self, Contents, Identity, Lock, MIN_PASSPHRASE, Opener, Order, Recipient, Restoration, Restored,
    },
    config::{Config, DEFAULT_FILE, Settings},
    keys::Placed,
    store::random,
};

/// The variable of the environment with the passphrase.
const PASSPHRASE: &str = "HORIZON_BACKUP_PASSPHRASE";

/// What `backup` is told.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct BackupArgs {
    /// Something else than making a backup.
    #[command(subcommand)]
    pub command: Option<BackupCommand>,
    /// Making one.
    #[command(flatten)]
    pub make: MakeArgs,
}

/// How a backup is made.
#[derive(Debug, Args)]
pub struct MakeArgs {
    /// The file to be made. It must not be there yet; `-` is standard output.
    #[arg(long, value_name = "FILE", required = true)]
    pub to: Option<PathBuf>,
    /// The public half of a key made by `backup key`: whoever has the private half opens the backup. Several may be given. Unset:
    /// a passphrase, which is asked for.
    #[arg(
        long,
        value_name = "KEY",
        value_delimiter = ',',
        env = "HORIZON_BACKUP_RECIPIENT",
        hide_env_values = true
    )]
    pub recipient: Vec<Recipient>,
    /// A file with the passphrase; `-` is standard input.
    #[arg(long, value_name = "FILE", conflicts_with = "recipient")]
    pub passphrase_file: Option<PathBuf>,
    /// Replace a file that is there.
    #[arg(long)]
    pub force: bool,
    /// The settings.
    #[command(flatten)]
    pub settings: Settings,
}

/// What else is done about backups.
#[derive(Debug, Subcommand)]
pub enum BackupCommand {
    /// Read a backup to its end: is it whole, can it be opened, and what is in it?
    Verify {
        /// The backup.
        #[command(flatten)]
        open: OpenArgs,
        /// The form of the answer.
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Make a key for backups: the private half goes to a file, which belongs where backups are restored and nowhere else; the
    /// public half is printed, and is all that making backups needs.
    Key {
        /// The file for the private half. It must not be there yet.
        #[arg(long, value_name = "FILE")]
        to: PathBuf,
    },
}

/// A backup, and what opens it.
#[derive(Debug, Args)]
pub struct OpenArgs {
    /// The backup.
    #[arg(long, value_name = "FILE")]
    pub from: PathBuf,
    /// The file with the private half of a key that it was made for. Unset: its passphrase, which is asked for.
    #[arg(long, value_name = "FILE")]
    pub key_file: Option<PathBuf>,
    /// A file with the passphrase; `-` is standard input.
    #[arg(long, value_name = "FILE", conflicts_with = "key_file")]
    pub passphrase_file: Option<PathBuf>,
}

/// What `restore` is told.
#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// The backup.
    #[command(flatten)]
    pub open: OpenArgs,
    /// The organisation's root, as `init`, `status` and `backup` print it: a backup of any other is refused. Whoever knows the
    /// public half of your key can make a file that opens; nobody without your keys can make one with this root.
    #[arg(long, value_name = "ROOT")]
    pub root: Option<String>,
    /// Leave the file of settings of the backup out: all settings are given here.
    #[arg(long)]
    pub without_settings: bool,
    /// Leave registration tokens and hand-overs of personal keys in force that were not used when the backup was made. Unset: they
    /// are ended, as somebody may have used them since.
    #[arg(long)]
    pub keep_tokens: bool,
    /// The settings of the empty system, where they are not those of the backup.
    #[command(flatten)]
    pub settings: Settings,
}

/// `backup`, and what belongs to it.
pub(super) async fn backup(
    file: Option<&Path>,
    args: BackupArgs,
    now: Timestamp,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> anyhow::Result<ExitCode> {
    match args.command {
        None => make(file, args.make, now, out, err).await?,
        Some(BackupCommand::Verify { open, output }) => {
            let opener = opener(&open)?;
            let contents = backup::verify(&open.from, &opener, now)?;
            tell(&contents, output, out)?;
        }
        Some(BackupCommand::Key { to }) => {
            let identity = Identity::new(Zeroizing::new(random()));
            let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&to);
            let mut made = made.with_context(|| format!("cannot make {}", to.display()))?;
            writeln!(made, "{}", *identity.text())?;
            made.sync_all()?;
            writeln!(out, "{}", identity.recipient())?;
            writeln!(err, "The private half is in {}. Keep it away from the controller.", to.display())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn make(
    file: Option<&Path>,
    args: MakeArgs,
    now: Timestamp,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> anyhow::Result<()> {
    let to = args.to.context("name the file to be made with --to")?;
    let settings_file = file.map(Path::to_owned).or_else(|| {
        let default = PathBuf::from(DEFAULT_FILE);
        default.is_file().then_some(default)
    });
    let config = Config::load(file, args.settings)?;
    let lock = match args.recipient.is_empty() {
        false => Lock::Recipients(args.recipient),
        true => Lock::Passphrase(passphrase(args.passphrase_file.as_deref(), true)?),
    };
    let order = Order { config: &config, settings: settings_file.as_deref(), lock: &lock };
    let mut told = Ok(());
    let mut tell = |rows| {
        if told.is_ok() {
            told = writeln!(err, "{rows} rows …");
        }
    };
    let to_output = to == Path::new("-");
    let made = match to_output {
        true => backup::create(order, (&mut *out, Path::new("the backup")), now, &mut tell).await?,
        false => backup::create_file(order, (&to, args.force), now, &mut tell).await?,
    };
    told?;
    let totals = made.totals;
    let what = if to_output { "This".to_owned() } else { to.display().to_string() };
    // Where the backup itself goes to the output, nothing else does.
    let about: &mut dyn Write = if to_output { &mut *err } else { &mut *out };
    writeln!(
        about,
        "{what} is a backup of {now:.0}: {} rows of {} tables, {} files, {} bytes",
        totals.rows, totals.tables, totals.files, made.size
    )?;
    writeln!(err, "The organisation's root is {}", made.manifest.root)?;
    Ok(())
}

/// `restore`.
pub(super) async fn restore(
    file: Option<&Path>,
    args: RestoreArgs,
    now: Timestamp,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> anyhow::Result<()> {
    let opener = opener(&args.open)?;
    writeln!(err, "reading {} …", args.open.from.display())?;
    let order = Restoration {
        from: &args.open.from,
        opener: &opener,
        settings_file: (!args.without_settings).then(|| file.unwrap_or(Path::new(DEFAULT_FILE))),
        settings: args.settings,
        root: args.root,
        keep_tokens: args.keep_tokens,
    };
    let Restored { contents, config, settings_written, keys, renewed } = backup::restore(order, now).await?;
    let made = contents.manifest.made;
    let totals = contents.totals;
    writeln!(
        out,
        "The backup of {made:.0} is restored: {} rows of {} tables. The organisation's root is {}",
        totals.rows, totals.tables, contents.manifest.root
    )?;
    if settings_written {
        writeln!(out, "The settings are those of the backup; the data is in {}", config.data.display())?;
    }
    if let Placed::Kept(version) = keys {
        writeln!(out, "The keys were there already, with KeySet {version}, and stay")?;
    }
    writeln!(
        out,
        "Appliances take the restored state from epoch {} on, and {} of them get a new verification secret",
        renewed.epoch, renewed.servers
    )?;
    writeln!(
        out,
        "Ended, since they may have been used since: {} registration tokens, {} hand-overs, {} sign-ins of administrators",
        renewed.tokens, renewed.handovers, renewed.sign_ins
    )?;
    writeln!(
        out,
        "What was decided after {made:.0} is not known here. Decide again what was revoked, blocked or approved since; what was \
         enrolled since enrols anew"
    )?;
    Ok(())
}

/// What opens a backup, from the arguments, the environment or a person.
pub(super) fn opener(args: &OpenArgs) -> anyhow::Result<Opener> {
    match &args.key_file {
        Some(path) => {
            let text =
                prompt::secret_file(path).with_context(|| format!("cannot read {}", path.display()))?;
            Ok(Opener::Identity(Identity::parse(&text)?))
        }
        None => Ok(Opener::Passphrase(passphrase(args.passphrase_file.as_deref(), false)?)),
    }
}

fn passphrase(file: Option<&Path>, fresh: bool) -> anyhow::Result<Zeroizing<String>> {
    let found = match file {
        Some(path) => prompt::secret_file(path).with_context(|| format!("cannot read {}", path.display()))?,
        None => match std::env::var(PASSPHRASE) {
            Ok(text) => Zeroizing::new(text),
            Err(_) => match prompt::passphrase("Passphrase of the backup (not shown)", fresh)? {
                Some(text) => text,
                None if fresh => bail!(
                    "nobody is here to be asked for a passphrase: give --recipient KEY (`horizon-controller backup key` makes \
                     one), --passphrase-file FILE, or {PASSPHRASE}"
                ),
                None => bail!(
                    "nobody is here to be asked for the passphrase: give --key-file FILE, --passphrase-file FILE, or {PASSPHRASE}"
                ),
            },
        },
    };
    ensure!(
        !fresh || found.len() >= MIN_PASSPHRASE,
        "the passphrase is too short: everything the organisation has depends on it, so give at least {MIN_PASSPHRASE} characters"
    );
    Ok(found)
}

fn tell(contents: &Contents, output: Output, out: &mut dyn Write) -> anyhow::Result<()> {
    let Contents { manifest, resources, keys, tables, totals, settings } = contents;
    if !matches!(output, Output::Table | Output::Wide) {
        let names: Vec<_> = keys.keys().collect();
        let value = json!({
            "manifest": manifest, "totals": totals, "tables": tables, "keys": names, "resources": resources,
            "settings": settings.is_some(),
        });
        return write_value(out, &value, output);
    }
    writeln!(
        out,
        "The backup is whole. It was made at {:.0} by horizon-controller {}",
        manifest.made, manifest.program
    )?;
    writeln!(out, "Root:       {}", manifest.root)?;
    writeln!(out, "Keys:       {} files, KeySet {}", keys.len(), manifest.keyset)?;
    writeln!(
        out,
        "Settings:   {}",
        if settings.is_some() { "config.toml" } else { "none: they were given otherwise" }
    )?;
    match manifest.source.as_str() {
        "files" => writeln!(out, "Resources:  {} files", resources.len())?,
        other => writeln!(out, "Resources:  declared in {other}, not in the backup")?,
    }
    writeln!(
        out,
        "Database:   {} rows of {} tables, from {}, schema version {}",
        totals.rows, totals.tables, manifest.engine, manifest.schema
    )?;
    if matches!(output, Output::Wide) {
        for table in tables {
            writeln!(out, "  {:<28} {:>10}", table.table, table.rows)?;
        }
    }
    Ok(())
}
