//! A controller on a host of its own.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::Programs;
use crate::lab::{Cmd, Host, Proc, eventually};
use crate::services::http;

/// Where a controller serves metrics and readiness unless told otherwise.
const METRICS_PORT: u16 = 7441;

/// A controller: its folder, its host, and its process while it runs.
pub struct Controller {
    process: Option<Proc>,
    host: Host,
    program: PathBuf,
    folder: PathBuf,
}

impl Controller {
    /// `init`s a folder on a host and puts the files of `resources` in place of the starters.
    pub fn init(host: Host, programs: &Programs, resources: &Path) -> Result<Self> {
        let folder = host.dir().join("horizon");
        let controller = Self { process: None, host, program: programs.controller.clone(), folder };
        controller.host.cmd(&controller.program, ["init".as_ref(), controller.folder.as_os_str()]).ok()?;
        for starter in std::fs::read_dir(controller.resources())? {
            std::fs::remove_file(starter?.path())?;
        }
        for entry in std::fs::read_dir(resources)? {
            let entry = entry?;
            if entry.path().extension().is_some_and(|extension| extension == "toml") {
                std::fs::copy(entry.path(), controller.resources().join(entry.file_name()))?;
            }
        }
        Ok(controller)
    }

    /// Starts it.
    pub fn spawn(&mut self) -> Result<()> {
        let config = self.config();
        let args = ["run".as_ref(), "--config".as_ref(), config.as_os_str()];
        self.process = Some(self.host.cmd(&self.program, args).spawn("controller")?);
        Ok(())
    }

    /// Starts it and waits until it is ready.
    pub fn start(&mut self) -> Result<()> {
        self.spawn()?;
        let ready = eventually("the controller is ready", || {
            let running = self.process.as_mut().is_some_and(Proc::running);
            (self.is_ready() || !running).then_some(running)
        });
        match ready {
            Ok(true) => Ok(()),
            Ok(false) => bail!("the controller ended:\n{}", self.log()),
            Err(error) => Err(error.context(self.log())),
        }
    }

    /// Whether it says that it can serve.
    pub fn is_ready(&self) -> bool {
        let metrics = SocketAddr::from((Ipv4Addr::LOCALHOST, METRICS_PORT));
        http(&self.host, metrics, "/readyz").is_ok_and(|(status, _)| status == 200)
    }

    /// One of its commands, which reads the same configuration.
    pub fn cli<const N: usize>(&self, args: [&str; N]) -> Cmd<'_> {
        let config = self.config();
        let args =
            args.iter().map(|a| a.to_string().into()).chain(["--config".into(), config.into_os_string()]);
        self.host.cmd(&self.program, args)
    }

    /// What `get KIND NAME -o json` answers.
    pub fn get(&self, kind: &str, name: &str) -> Result<serde_json::Value> {
        Ok(serde_json::from_str(&self.cli(["get", kind, name, "-o", "json"]).ok()?)?)
    }

    /// A registration token for a server.
    pub fn token(&self, server: &str) -> Result<String> {
        word(&self.cli(["token", server]).ok()?, "hzn-reg-")
    }

    /// A personal key for a user.
    pub fn invite(&self, user: &str) -> Result<String> {
        word(&self.cli(["invite", user]).ok()?, "hzn-key-")
    }

    /// Replaces or adds a resource file, as an editor does: a new file, renamed over the old one.
    pub fn put(&self, file: &str, text: &str) -> Result<()> {
        let new = self.resources().join(format!(".{file}.new"));
        std::fs::write(&new, text)?;
        std::fs::rename(new, self.resources().join(file)).context("cannot replace the file")
    }

    /// A resource file's text.
    pub fn file(&self, file: &str) -> Result<String> {
        std::fs::read_to_string(self.resources().join(file)).with_context(|| format!("cannot read {file}"))
    }

    /// Changes a resource file: `from` must occur in it.
    pub fn edit(&self, file: &str, from: &str, to: &str) -> Result<()> {
        let text = self.file(file)?;
        if !text.contains(from) {
            bail!("{file} does not contain `{from}`");
        }
        self.put(file, &text.replace(from, to))
    }

    /// The folder of resource files.
    pub fn resources(&self) -> PathBuf {
        self.folder.join("resources")
    }

    /// The file of settings.
    pub fn config(&self) -> PathBuf {
        self.folder.join("config.toml")
    }

    /// The host it runs on.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Its program.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Its process, while it runs.
    pub fn process(&mut self) -> Result<&mut Proc> {
        self.process.as_mut().context("the controller is not running")
    }

    /// The end of what it has logged.
    pub fn log(&self) -> String {
        self.process.as_ref().map(Proc::tail).unwrap_or_default()
    }
}

/// The word of a program's output that starts with `prefix`.
fn word(output: &str, prefix: &str) -> Result<String> {
    let found = output.split_whitespace().find(|word| word.starts_with(prefix));
    found.map(str::to_owned).with_context(|| format!("no {prefix}… in:\n{output}"))
}
