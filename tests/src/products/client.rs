//! A person's device.

use std::path::PathBuf;

use anyhow::{Context, Result};

use super::Programs;
use crate::lab::{Cmd, Host, Proc, eventually};

/// A device: its host, and the client's service while it runs.
pub struct Client {
    service: Option<Proc>,
    host: Host,
    program: PathBuf,
}

impl Client {
    /// A device whose service is not running.
    pub fn new(host: Host, programs: &Programs) -> Self {
        Self { service: None, host, program: programs.client.clone() }
    }

    /// Starts the service and waits until it answers.
    pub fn start(&mut self) -> Result<()> {
        self.service = Some(self.cli(["service", "run"]).spawn("client")?);
        let ready = eventually("the client's service answers", || {
            self.cli(["status"]).run().is_ok_and(|output| output.success()).then_some(())
        });
        ready.with_context(|| self.log())
    }

    /// Enrols the device with a personal key.
    pub fn add_key(&self, key: &str) -> Result<String> {
        self.cli(["key", "add"]).stdin(format!("{key}\n")).ok()
    }

    /// Connects to a server.
    pub fn connect(&self, server: &str) -> Result<String> {
        self.cli(["connect", server]).ok().with_context(|| self.log())
    }

    /// Disconnects.
    pub fn disconnect(&self) -> Result<String> {
        self.cli(["disconnect"]).ok()
    }

    /// What `status` says, as JSON.
    pub fn status(&self) -> Result<serde_json::Value> {
        Ok(serde_json::from_str(&self.cli(["status", "-o", "json"]).ok()?)?)
    }

    /// One of its commands.
    pub fn cli<const N: usize>(&self, args: [&str; N]) -> Cmd<'_> {
        self.host.cmd(&self.program, args)
    }

    /// The host it is.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The service's process, while it runs.
    pub fn service(&mut self) -> Result<&mut Proc> {
        self.service.as_mut().context("the client's service is not running")
    }

    /// The end of what the service has logged.
    pub fn log(&self) -> String {
        self.service.as_ref().map(Proc::tail).unwrap_or_default()
    }
}
