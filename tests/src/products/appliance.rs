//! An appliance on a host of its own.

use std::path::PathBuf;

use anyhow::{Context, Result};

use super::Programs;
use crate::lab::{Cmd, Host, Proc, eventually};

/// An appliance: its host, and its process while it runs.
pub struct Appliance {
    process: Option<Proc>,
    host: Host,
    program: PathBuf,
}

impl Appliance {
    /// An appliance that is not enrolled.
    pub fn new(host: Host, programs: &Programs) -> Self {
        Self { process: None, host, program: programs.appliance.clone() }
    }

    /// Registers it.
    pub fn enroll(&self, token: &str) -> Result<String> {
        self.cli(["enroll", token]).ok()
    }

    /// Starts it.
    pub fn start(&mut self) -> Result<()> {
        self.process = Some(self.cli(["run"]).spawn("appliance")?);
        Ok(())
    }

    /// Waits until it has a TUN device, which means that it has applied a state.
    pub fn wait_until_applied(&mut self) -> Result<()> {
        let applied = eventually("the appliance applies its state", || {
            self.host
                .ip_show("-o link show type tun")
                .is_ok_and(|links| !links.trim().is_empty())
                .then_some(())
        });
        applied.with_context(|| self.log())
    }

    /// One of its commands.
    pub fn cli<const N: usize>(&self, args: [&str; N]) -> Cmd<'_> {
        self.host.cmd(&self.program, args)
    }

    /// The name of its TUN device.
    pub fn device(&self) -> Result<String> {
        let links = self.host.ip_show("-o link show type tun")?;
        let name = links.split(':').nth(1).context("the appliance has no TUN device")?;
        Ok(name.trim().to_owned())
    }

    /// The host it runs on.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Its process, while it runs.
    pub fn process(&mut self) -> Result<&mut Proc> {
        self.process.as_mut().context("the appliance is not running")
    }

    /// The end of what it has logged.
    pub fn log(&self) -> String {
        self.process.as_ref().map(Proc::tail).unwrap_or_default()
    }
}
