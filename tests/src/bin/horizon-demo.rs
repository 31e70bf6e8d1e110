//! `make demo`: an organisation of one server and one person, in a lab on this machine, with real traffic.

use std::net::IpAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use horizon_tests::lab::{Lab, difference, within};
use horizon_tests::products::{Appliance, Client, Controller, Programs, repository};
use horizon_tests::services::{WebServer, http_get};
use horizon_tests::story::{Steps, proven, seconds, tell, timed};

/// What a change to a file may take until it is in force.
const PROMPTLY: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    tell(
        "    laptop ── home router (NAT) ──┐\n\
         \x20                                 ├── internet ── web server (says whom it sees)\n\
         \x20   controller, appliance ────────┘\n",
        |steps, lab| story(steps, lab, &Programs::beside_this()?),
    )
}

fn story(steps: &mut Steps, lab: &mut Lab, programs: &Programs) -> Result<()> {
    let web_host = lab.public_host("web")?;
    let web = WebServer::start(&web_host)?;
    let (controller_host, appliance_host) = (lab.public_host("controller")?, lab.public_host("appliance")?);
    let mut home = lab.home("home")?;
    let laptop = home.host("laptop")?;
    let egress = appliance_host.v4();
    let router = home.router().v4();

    let mut controller = steps.step("start a controller on examples/quickstart", || {
        let mut controller =
            Controller::init(controller_host, programs, &repository().join("examples/quickstart"))?;
        controller.start()?;
        proven("three TOML files read, API and control channel up", controller)
    })?;
    let mut appliance = Appliance::new(appliance_host, programs);
    let untouched = appliance.host().network_picture()?;
    steps.step("enrol an appliance with one token", || {
        appliance.enroll(&controller.token("gateway")?)?;
        appliance.start()?;
        appliance.wait_until_applied()?;
        let active =
            || (controller.get("server", "gateway").ok()?["status"]["phase"] == "active").then_some(());
        within(Duration::from_secs(20), "the server is active", active)?;
        proven("registered, verified, its signed state applied: TUN, routes, nftables", ())
    })?;
    steps.step("without a connection", || {
        let seen: IpAddr = http_get(&laptop, web_host.v4())?.parse()?;
        ensure!(seen == router, "the web server saw {seen}, not the home's {router}");
        proven(format!("the web server sees the home's address {seen}"), ())
    })?;
    let mut client = Client::new(laptop, programs);
    steps.step("enrol Ada's laptop with one key, connect", || {
        client.start()?;
        client.add_key(&controller.invite("ada")?)?;
        client.connect("gateway")?;
        proven("session granted, ticket signed, QUIC between laptop and appliance", ())
    })?;
    let fetch = |client: &Client| -> Result<IpAddr> { Ok(http_get(client.host(), web_host.v4())?.parse()?) };
    steps.step("traffic through the tunnel", || {
        let visits = web.visitors().len();
        let seen = fetch(&client)?;
        ensure!(seen == egress, "the web server saw {seen}, not the appliance's {egress}");
        let v6: IpAddr = http_get(client.host(), web_host.v6())?.parse()?;
        ensure!(v6 == appliance.host().v6(), "over IPv6 the web server saw {v6}");
        let visitors = &web.visitors()[visits..];
        ensure!(!visitors.contains(&router) && !visitors.contains(&client.host().v6()), "the laptop leaked");
        proven(format!("the web server sees the appliance, {seen} and {v6}, and not the laptop"), ())
    })?;
    steps.step("edit policy.toml: forbid the destination", || {
        controller.edit("policy.toml", "0.0.0.0/0", "192.0.2.0/24")?;
        let forbidden = || fetch(&client).is_err().then_some(());
        let took =
            timed(|| within(PROMPTLY + READ_LIMIT, "packets to the web server are dropped", forbidden))?;
        ensure!(client.status()?["phase"] == "connected", "the session should live on");
        proven(format!("dropped at the appliance after {}; the session lives on", seconds(took)), ())
    })?;
    steps.step("edit it back", || {
        controller.edit("policy.toml", "192.0.2.0/24", "0.0.0.0/0")?;
        within(PROMPTLY + READ_LIMIT, "the web server answers again", || {
            (fetch(&client).ok()? == egress).then_some(())
        })?;
        proven("the same session reaches the web server again", ())
    })?;
    steps.step("edit user.toml: Ada leaves the group", || {
        controller.edit("user.toml", "groups = [\"friends\"]", "groups = []")?;
        let ended = || (client.status().ok()?["phase"] != "connected").then_some(());
        let took = timed(|| within(PROMPTLY, "the session ends", ended))?;
        let refusal = client.cli(["connect", "gateway"]).refused()?;
        ensure!(refusal.contains("AccessPolicy"), "the refusal names no policy: {refusal}");
        proven(
            format!(
                "session ended after {}; connecting is refused and names the missing policy",
                seconds(took)
            ),
            (),
        )
    })?;
    steps.step("edit it back, connect again", || {
        controller.edit("user.toml", "groups = []", "groups = [\"friends\"]")?;
        within(PROMPTLY, "connecting works again", || client.connect("gateway").ok())?;
        ensure!(fetch(&client)? == egress, "not through the tunnel");
        proven("a new session, through the tunnel", ())
    })?;
    steps.step("delete the appliance's nftables table by hand", || {
        let tables = appliance.host().cmd("nft", ["list", "tables"]).ok()?;
        let table = tables.lines().next().context("the appliance has no table")?.to_owned();
        appliance.host().cmd("nft", format!("delete {table}").split_whitespace()).ok()?;
        let took = timed(|| {
            within(PROMPTLY, "the table is back", || {
                (appliance.host().cmd("nft", ["list", "tables"]).ok().ok()? == tables).then_some(())
            })
        })?;
        ensure!(fetch(&client)? == egress, "traffic does not flow");
        proven(format!("back unasked after {}, traffic flows", seconds(took)), ())
    })?;
    steps.step("kill the controller", || {
        controller.process()?.kill()?;
        ensure!(fetch(&client)? == egress, "the session did not survive");
        proven("the session and its traffic go on", ())
    })?;
    steps.step("disconnect, stop the appliance", || {
        client.disconnect()?;
        let seen: IpAddr = fetch(&client)?;
        ensure!(seen == router, "after disconnecting the web server saw {seen}");
        appliance.process()?.stop()?;
        let left = appliance.host().network_picture()?;
        if left != untouched {
            bail!("the appliance left its host changed:\n{}", difference(&untouched, &left));
        }
        proven("laptop back on its own way, the appliance's host as it was found", ())
    })
}

/// What a fetch waits for an answer at most.
const READ_LIMIT: Duration = Duration::from_secs(5);
