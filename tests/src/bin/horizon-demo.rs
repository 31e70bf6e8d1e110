//! `make demo`: an organisation of one server and one person, in a lab on this machine, with real traffic.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use horizon_tests::journey::{Journey, PROMPTLY, READ_LIMIT};
use horizon_tests::lab::{Lab, within};
use horizon_tests::products::{Appliance, Client, Controller, Programs, repository};
use horizon_tests::services::WebServer;
use horizon_tests::story::{Steps, proven, seconds, tell, timed};

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
    let egress = [appliance_host.v4(), appliance_host.v6()];
    let journey = Journey { web, web_host, router: home.router().v4(), egress };

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
    journey.without_a_connection(steps, &laptop)?;
    let mut client = Client::new(laptop, programs);
    steps.step("enrol Ada's laptop with one key, connect", || {
        client.start()?;
        client.add_key(&controller.invite("ada")?)?;
        client.connect("gateway")?;
        proven("session granted, ticket signed, QUIC between laptop and appliance", ())
    })?;
    journey.through_the_tunnel(steps, &client)?;
    steps.step("edit policy.toml: forbid the destination", || {
        controller.edit("policy.toml", "0.0.0.0/0", "192.0.2.0/24")?;
        let forbidden = || journey.fetch(client.host()).is_err().then_some(());
        let took =
            timed(|| within(PROMPTLY + READ_LIMIT, "packets to the web server are dropped", forbidden))?;
        ensure!(client.status()?["phase"] == "connected", "the session should live on");
        proven(format!("dropped at the appliance after {}; the session lives on", seconds(took)), ())
    })?;
    steps.step("edit it back", || {
        controller.edit("policy.toml", "192.0.2.0/24", "0.0.0.0/0")?;
        within(PROMPTLY + READ_LIMIT, "the web server answers again", || {
            journey.ensure_tunnelled(&client).ok()
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
        journey.ensure_tunnelled(&client)?;
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
        journey.ensure_tunnelled(&client).context("traffic does not flow")?;
        proven(format!("back unasked after {}, traffic flows", seconds(took)), ())
    })?;
    steps.step("kill the controller", || {
        controller.process()?.kill()?;
        journey.ensure_tunnelled(&client).context("the session did not survive")?;
        proven("the session and its traffic go on", ())
    })?;
    journey.back_home(steps, &client, &mut appliance, &untouched)
}
