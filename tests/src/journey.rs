//! What every demonstration shows of a person's traffic: whom a web server far away sees, with and without a connection.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::lab::{Host, difference};
use crate::products::{Appliance, Client};
use crate::services::{WebServer, http_get};
use crate::story::{Steps, proven};

/// What a change may take until it is in force.
pub const PROMPTLY: Duration = Duration::from_secs(2);

/// What a fetch waits for an answer at most.
pub const READ_LIMIT: Duration = Duration::from_secs(5);

/// The places between which packets go.
pub struct Journey {
    /// The web server.
    pub web: WebServer,
    /// Its host.
    pub web_host: Host,
    /// Whom it sees of a home that is not connected.
    pub router: IpAddr,
    /// Whom it sees of those who are connected, over both families.
    pub egress: [IpAddr; 2],
}

impl Journey {
    /// Whom the web server sees when a device asks.
    pub fn fetch(&self, from: &Host) -> Result<IpAddr> {
        Ok(http_get(from, self.web_host.v4())?.parse()?)
    }

    /// Fails unless a device's traffic goes through the tunnel.
    pub fn ensure_tunnelled(&self, client: &Client) -> Result<()> {
        let seen = self.fetch(client.host())?;
        ensure!(seen == self.egress[0], "the web server saw {seen}, not the appliance's {}", self.egress[0]);
        Ok(())
    }

    /// The step before the first connection.
    pub fn without_a_connection(&self, steps: &mut Steps, laptop: &Host) -> Result<()> {
        steps.step("without a connection", || {
            let (seen, router) = (self.fetch(laptop)?, self.router);
            ensure!(seen == router, "the web server saw {seen}, not the home's {router}");
            proven(format!("the web server sees the home's address {seen}"), ())
        })
    }

    /// The step after it.
    pub fn through_the_tunnel(&self, steps: &mut Steps, client: &Client) -> Result<()> {
        steps.step("traffic through the tunnel", || {
            let visits = self.web.visitors().len();
            self.ensure_tunnelled(client)?;
            let v6: IpAddr = http_get(client.host(), self.web_host.v6())?.parse()?;
            let [seen, expected] = self.egress;
            ensure!(v6 == expected, "over IPv6 the web server saw {v6}");
            let visitors = &self.web.visitors()[visits..];
            let leaked = visitors.contains(&self.router) || visitors.contains(&client.host().v6());
            ensure!(!leaked, "the laptop leaked");
            proven(format!("the web server sees the appliance, {seen} and {v6}, and not the laptop"), ())
        })
    }

    /// The step that ends it: everything is as it was found. `untouched` is the picture of the appliance's host before.
    pub fn back_home(
        &self,
        steps: &mut Steps,
        client: &Client,
        appliance: &mut Appliance,
        untouched: &str,
    ) -> Result<()> {
        steps.step("disconnect, stop the appliance", || {
            client.disconnect()?;
            let seen = self.fetch(client.host())?;
            ensure!(seen == self.router, "after disconnecting the web server saw {seen}");
            appliance.process()?.stop()?;
            let left = appliance.host().network_picture()?;
            let changed = || difference(untouched, &left);
            ensure!(left == untouched, "the appliance left its host changed:\n{}", changed());
            proven("laptop back on its own way, the appliance's host as it was found", ())
        })
    }
}
