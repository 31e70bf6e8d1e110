//! Making the folder of a new organisation.

mod admin;
mod detect;
mod starter;

pub use admin::first_admin;
pub use detect::host_addresses;

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use thiserror::Error;

use crate::{
    config::Advertised,
    keys::{Keys, KeysError},
    store::AdminError,
};

/// The port that is advertised unless another is named; the one controllers listen at.
const PORT: u16 = 7440;

/// Why no folder was made, or not all of it.
#[derive(Debug, Error)]
pub enum InitError {
    /// There is an organisation already.
    #[error("{0} exists already: nothing was changed. Choose another folder, or remove it if you are sure")]
    Exists(PathBuf),
    /// The system refused.
    #[error("cannot make {path}: {error}")]
    System {
        /// What was to be made.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// The keys could not be made.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// The first account could not be made.
    #[error("the first administrator could not be made: {0}")]
    Admin(#[from] AdminError),
    /// Nobody reads what is said.
    #[error("cannot write the answer: {0}")]
    Output(#[source] io::Error),
}

/// Makes the folder, and tells what to do next. `advertise` is how others reach this machine; empty detects it.
///
/// # Errors
/// When one of the things to be made exists (then nothing is changed), or the system refuses.
pub fn init(
    directory: &Path,
    advertise: &[Advertised],
    with_appliance: bool,
    out: &mut dyn Write,
) -> Result<(), InitError> {
    let (config, resources, data) =
        (directory.join("config.toml"), directory.join("resources"), directory.join("data"));
    for path in [&config, &resources, &data] {
        if fs::symlink_metadata(path).is_ok() {
            return Err(InitError::Exists(path.clone()));
        }
    }
    let mut addresses: Vec<String> = advertise.iter().map(|address| address.with_port(PORT)).collect();
    let detected = addresses.is_empty();
    if detected {
        addresses = host_addresses()
            .into_iter()
            .map(|ip| (ip, PORT).into())
            .map(|a: std::net::SocketAddr| a.to_string())
            .collect();
    }
    if addresses.is_empty() {
        addresses.push(format!("127.0.0.1:{PORT}"));
    }

    make_directory(directory, 0o755)?;
    make_directory(&resources, 0o755)?;
    make_directory(&data, 0o700)?;
    for (name, text) in starter::DOCUMENTS {
        write_new(&resources.join(name), text, 0o644)?;
    }
    let keys = Keys::create(&data.join("keys"), jiff::Timestamp::now())?;
    let gitignore = directory.join(".gitignore");
    if fs::symlink_metadata(&gitignore).is_err() {
        write_new(&gitignore, starter::GITIGNORE, 0o644)?;
    }
    // Last, so that its presence means that everything else is there.
    write_new(&config, &starter::settings(&addresses), 0o644)?;

    let told =
        Told { directory, addresses: &addresses, detected, root: keys.root_id().to_string(), with_appliance };
    told.tell(out).map_err(InitError::Output)
}

fn make_directory(path: &Path, mode: u32) -> Result<(), InitError> {
    let made = DirBuilder::new().recursive(true).mode(mode).create(path);
    made.map_err(|error| InitError::System { path: path.to_owned(), error })
}

fn write_new(path: &Path, text: &str, mode: u32) -> Result<(), InitError> {
    let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    let written = file.and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()));
    written.map_err(|error| InitError::System { path: path.to_owned(), error })
}

/// What is said at the end.
struct Told<'a> {
    directory: &'a Path,
    addresses: &'a [String],
    detected: bool,
    root: String,
    with_appliance: bool,
}

impl Told<'_> {
    fn tell(&self, out: &mut dyn Write) -> io::Result<()> {
        let dir = self.directory.display();
        let (server, user) = (starter::SERVER, starter::USER);
        writeln!(out, "{dir} is ready. In it are:")?;
        writeln!(out, "  config.toml   the settings")?;
        writeln!(
            out,
            "  resources/    what you declare: server '{server}', user '{user}', and a policy for both"
        )?;
        writeln!(out, "  data/         the database and the keys; keep a copy of data/keys in a safe place")?;
        writeln!(out, "The organisation's root is {}", self.root)?;
        let how = if self.detected { "the addresses of this machine" } else { "as you said" };
        writeln!(out, "Others will reach this controller at {} ({how}).", self.addresses.join(", "))?;
        if self.detected {
            writeln!(out, "Is that wrong, for instance behind a router? Change 'advertise' in config.toml.")?;
        }
        writeln!(out, "\nNext:")?;
        let run = format!("horizon-controller run --config {dir}/config.toml");
        let with = format!("horizon-controller --config {dir}/config.toml");
        if self.with_appliance {
            writeln!(out, "  {run} &")?;
            writeln!(
                out,
                "  sudo horizon-appliance enroll \"$({with} token {server})\"   # this machine becomes '{server}'"
            )?;
            writeln!(out, "  sudo horizon-appliance run &")?;
        } else {
            writeln!(out, "  {run}")?;
            writeln!(
                out,
                "  {with} token {server}     # one string; on the machine that becomes '{server}':"
            )?;
            writeln!(
                out,
                "                              #   horizon-appliance enroll STRING && horizon-appliance run"
            )?;
        }
        writeln!(out, "  {with} invite {user}     # one string; '{user}' pastes it after: horizon key add")?;
        writeln!(out, "  {with} get all")
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::config::Config;

    fn run(dir: &Path, advertise: &[&str], with_appliance: bool) -> Result<String, InitError> {
        let advertise: Vec<Advertised> = advertise.iter().map(|a| a.parse().unwrap()).collect();
        let mut out = Vec::new();
        init(dir, &advertise, with_appliance, &mut out)?;
        Ok(String::from_utf8(out).unwrap())
    }

    #[test]
    fn a_folder_is_made_and_works() {
        let dir = tempfile::tempdir().unwrap();
        let org = dir.path().join("my/org");
        let said = run(&org, &["192.0.2.1", "host.example:99"], false).unwrap();
        assert!(said.contains("token home") && said.contains("192.0.2.1:7440, host.example:99"), "{said}");
        let config = Config::load(Some(&org.join("config.toml")), Default::default()).unwrap();
        assert_eq!(config.advertise, ["192.0.2.1:7440", "host.example:99"]);
        assert_eq!(config.resources, org.join("resources"));
        assert_eq!(config.data, org.join("data"));
        let mode = |path: &str| fs::metadata(org.join(path)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode("data"), mode("data/keys")), (0o700, 0o700));
        assert_eq!(fs::read_dir(org.join("resources")).unwrap().count(), 3);
    }

    #[test]
    fn nothing_is_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("resources")).unwrap();
        let error = run(dir.path(), &["a"], false).unwrap_err().to_string();
        assert!(error.contains("exists already: nothing was changed"), "{error}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn one_box_steps_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let said = run(&dir.path().join("o"), &[], true).unwrap();
        assert!(said.contains("horizon-appliance enroll \"$(horizon-controller"), "{said}");
        assert!(said.contains("the addresses of this machine"), "{said}");
    }
}
