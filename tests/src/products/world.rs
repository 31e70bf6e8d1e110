//! A small organisation: controller, appliance, a device at home, and a web server far away.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::programs::repository;
use super::{Appliance, Client, Controller, Programs};
use crate::lab::{Home, Host, Lab, eventually};
use crate::services::WebServer;

/// What a [`World`] begins with.
#[derive(Clone, Debug)]
pub struct WorldOptions {
    /// The folder of resources; `examples/quickstart` unless said.
    pub resources: PathBuf,
    /// The server that the appliance becomes.
    pub server: String,
    /// More lines for the controller's file of settings.
    pub settings: String,
}

impl Default for WorldOptions {
    fn default() -> Self {
        Self {
            resources: repository().join("examples/quickstart"),
            server: "gateway".to_owned(),
            settings: String::new(),
        }
    }
}

/// Controller and appliance on public hosts, a home, and a web server that says whom it sees.
pub struct World {
    /// The controller, running.
    pub controller: Controller,
    /// The appliance, enrolled and running.
    pub appliance: Appliance,
    /// The web server.
    pub web: WebServer,
    /// Its host.
    pub web_host: Host,
    /// Where devices live.
    pub home: Home,
    /// The programs.
    pub programs: Programs,
    /// The lab all this is in.
    pub lab: Lab,
}

impl World {
    /// The quickstart, with the programs of a test run.
    pub fn for_test() -> Result<Self> {
        Self::start(Lab::new()?, Programs::for_tests()?.clone(), &WorldOptions::default())
    }

    /// As [`World::for_test`] with other options.
    pub fn with(options: &WorldOptions) -> Result<Self> {
        Self::start(Lab::new()?, Programs::for_tests()?.clone(), options)
    }

    /// Starts all of it, up to an appliance that has applied its first state.
    pub fn start(mut lab: Lab, programs: Programs, options: &WorldOptions) -> Result<Self> {
        let web_host = lab.public_host("web")?;
        let web = WebServer::start(&web_host)?;
        let mut controller = Controller::init(lab.public_host("controller")?, &programs, &options.resources)?;
        append(&controller.config(), &options.settings)?;
        controller.start()?;
        let mut appliance = Appliance::new(lab.public_host("appliance")?, &programs);
        appliance.enroll(&controller.token(&options.server)?)?;
        appliance.start()?;
        appliance.wait_until_applied().with_context(|| controller.log())?;
        let home = lab.home("home")?;
        let world = Self { controller, appliance, web, web_host, home, programs, lab };
        world.wait_until_available(&options.server)?;
        Ok(world)
    }

    /// Waits until the controller says that a server takes sessions.
    pub fn wait_until_available(&self, server: &str) -> Result<()> {
        let available = eventually("the server is available", || {
            let server = self.controller.get("server", server).ok()?;
            (server["status"]["phase"] == "active").then_some(())
        });
        available.with_context(|| self.controller.log())
    }

    /// A device at home whose user was invited and has pasted the key.
    pub fn device(&mut self, name: &str, user: &str) -> Result<Client> {
        let mut client = Client::new(self.home.host(name)?, &self.programs);
        client.start()?;
        client.add_key(&self.controller.invite(user)?)?;
        Ok(client)
    }
}

fn append(file: &Path, lines: &str) -> Result<()> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    std::fs::write(file, text + lines).with_context(|| format!("cannot write {}", file.display()))
}
