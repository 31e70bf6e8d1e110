//! `make demo-kubernetes`: the same organisation in production: kubectl for every step of an administrator, Postgres and
//! Redis behind two replicas of the controller, one of them killed in the middle.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use horizon_tests::journey::{Journey, PROMPTLY, READ_LIMIT};
use horizon_tests::lab::{Lab, within};
use horizon_tests::production::{Cluster, ClusterOptions, NAMESPACE, Pod};
use horizon_tests::products::{Appliance, Client, Programs, repository};
use horizon_tests::services::WebServer;
use horizon_tests::story::{Steps, proven, seconds, tell, timed};
use serde_json::json;

/// Within which time another replica leads when the leader is killed.
const NEW_LEADER: Duration = Duration::from_secs(5);

/// How long peers may take to find the other replica.
const RETURN: Duration = Duration::from_secs(75);

fn main() -> ExitCode {
    tell(
        "    laptop ── home router (NAT) ──────┐\n\
         \x20   API server, Postgres, Redis ──────┼── internet ── web server (says whom it sees)\n\
         \x20   two controller replicas, appliance┘\n",
        |steps, lab| story(steps, lab, &Programs::beside_this()?),
    )
}

fn story(steps: &mut Steps, lab: &mut Lab, programs: &Programs) -> Result<()> {
    let web_host = lab.public_host("web")?;
    let web = WebServer::start(&web_host)?;
    let cluster_host = lab.public_host("cluster")?;
    let (first_host, second_host) = (lab.public_host("horizon-0")?, lab.public_host("horizon-1")?);
    let appliance_host = lab.public_host("appliance")?;
    let mut home = lab.home("home")?;
    let laptop = home.host("laptop")?;
    let egress = [appliance_host.v4(), appliance_host.v6()];
    let journey = Journey { web, web_host, router: home.router().v4(), egress };

    let cluster = steps.step("start an API server, Postgres and Redis", || {
        proven(
            "all three answer, each with TLS of its own",
            Cluster::start(cluster_host, ClusterOptions::default())?,
        )
    })?;
    steps.step("kubectl apply -k manifests/overlays/production", || {
        let advertise = format!("HORIZON_ADVERTISE={},{}", first_host.v4(), second_host.v4());
        cluster.install(&[advertise])?;
        proven("CRDs, roles, Secrets and the Deployment, strictly validated", ())
    })?;
    let mut pods = steps.step("start two replicas as the Deployment says", || {
        let mut pods = Vec::new();
        for host in [first_host, second_host] {
            let mut pod = Pod::place(&cluster, host, programs)?;
            pod.start()?;
            pods.push(pod);
        }
        pods.iter_mut().try_for_each(Pod::wait_until_ready)?;
        let leader = cluster.leader().context("nobody leads")?;
        proven(format!("tables made, both ready; {leader} leads"), pods)
    })?;
    steps.step("kubectl apply the quickstart", || {
        cluster.declare(&repository().join("examples/quickstart"))?;
        cluster.wait("jsonpath={.status.observedGeneration}=1", "accesspolicy/friends")?;
        proven("Server, User and AccessPolicy observed", ())
    })?;
    let mut appliance = Appliance::new(appliance_host, programs);
    let untouched = appliance.host().network_picture()?;
    steps.step("kubectl apply a RegistrationKey, enrol an appliance", || {
        appliance.enroll(&cluster.registration_token("gateway")?)?;
        appliance.start()?;
        appliance.wait_until_applied()?;
        cluster.wait("condition=Online", "server/gateway")?;
        cluster.wait("jsonpath={.status.phase}=active", "server/gateway")?;
        proven("token from the owned Secret; kubectl wait --for=condition=Online server/gateway", ())
    })?;
    journey.without_a_connection(steps, &laptop)?;
    let mut client = Client::new(laptop, programs);
    steps.step("kubectl apply a PersonalKey, connect Ada's laptop", || {
        client.start()?;
        client.add_key(&cluster.personal_key("ada")?)?;
        client.connect("gateway")?;
        proven("session granted, ticket signed, QUIC between laptop and appliance", ())
    })?;
    journey.through_the_tunnel(steps, &client)?;
    steps.step("kubectl patch the policy: forbid the destination", || {
        let took = forbid(&cluster, &client, &journey)?;
        proven(format!("dropped at the appliance after {}; the session lives on", seconds(took)), ())
    })?;
    steps.step("kubectl patch it back", || {
        allow(&cluster, &client, &journey)?;
        proven("the same session reaches the web server again", ())
    })?;
    steps.step("kill the leading replica", || {
        let leader = cluster.leader().context("nobody leads")?;
        let killed = pods.iter().position(|pod| pod.is(&leader)).context("a stranger leads")?;
        let mut killed = pods.remove(killed);
        killed.process()?.kill()?;
        let took = timed(|| {
            within(NEW_LEADER, "the other replica leads", || {
                cluster.leader().filter(|leader| pods[0].is(leader)).map(drop)
            })
        })?;
        journey.ensure_tunnelled(&client).context("the session did not survive")?;
        ensure!(client.status()?["phase"] == "connected", "the session did not survive");
        proven(format!("the other leads after {}; session and traffic go on", seconds(took)), ())
    })?;
    steps.step("kubectl patch the policy, with one replica left", || {
        cluster.wait("condition=Online", "server/gateway")?;
        let took = forbid_within(RETURN, &cluster, &client, &journey)?;
        allow(&cluster, &client, &journey)?;
        let took = seconds(took);
        proven(
            format!(
                "in force after {took}, when the appliance had missed the dead replica, in the same session"
            ),
            (),
        )
    })?;
    steps.step("kubectl patch user/ada: she leaves the group", || {
        cluster.patch("user", "ada", &json!({"spec": {"groups": []}}))?;
        let ended = || (client.status().ok()?["phase"] != "connected").then_some(());
        let took = timed(|| within(PROMPTLY, "the session ends", ended))?;
        let refusal = client.cli(["connect", "gateway"]).refused()?;
        ensure!(refusal.contains("AccessPolicy"), "the refusal names no policy: {refusal}");
        proven(
            format!("session ended after {}; connecting is refused and names the policy", seconds(took)),
            (),
        )
    })?;
    steps.step("kubectl patch her back, connect again", || {
        cluster.patch("user", "ada", &json!({"spec": {"groups": ["friends"]}}))?;
        within(PROMPTLY, "connecting works again", || client.connect("gateway").ok())?;
        journey.ensure_tunnelled(&client)?;
        proven("a new session, through the tunnel", ())
    })?;
    steps.step("stop Redis, then the last replica", || {
        cluster.redis.kill(0)?;
        forbid(&cluster, &client, &journey)?;
        allow(&cluster, &client, &journey)?;
        pods[0].process()?.kill()?;
        journey.ensure_tunnelled(&client).context("the session did not survive")?;
        proven("without Redis a change is still in force; without a controller the session goes on", ())
    })?;
    journey.back_home(steps, &client, &mut appliance, &untouched)?;
    steps.step("kubectl delete namespace", || {
        cluster.kube.kubectl(["delete", "namespace", NAMESPACE, "--timeout=60s"])?;
        proven("ended, with no controller there to hold it", ())
    })
}

fn forbid(cluster: &Cluster, client: &Client, journey: &Journey) -> Result<Duration> {
    forbid_within(PROMPTLY, cluster, client, journey)
}

/// Takes the web server out of the policy, and returns how long it took until packets to it were dropped.
fn forbid_within(limit: Duration, cluster: &Cluster, client: &Client, journey: &Journey) -> Result<Duration> {
    let elsewhere = json!({"spec": {"destinations": [{"cidr": "192.0.2.0/24"}, {"cidr": "::/0"}]}});
    cluster.patch("accesspolicy", "friends", &elsewhere)?;
    let forbidden = || journey.fetch(client.host()).is_err().then_some(());
    let took = timed(|| within(limit + READ_LIMIT, "packets to the web server are dropped", forbidden))?;
    ensure!(client.status()?["phase"] == "connected", "the session should live on");
    Ok(took)
}

/// Puts it back.
fn allow(cluster: &Cluster, client: &Client, journey: &Journey) -> Result<()> {
    let everywhere = json!({"spec": {"destinations": [{"cidr": "0.0.0.0/0"}, {"cidr": "::/0"}]}});
    cluster.patch("accesspolicy", "friends", &everywhere)?;
    within(PROMPTLY + READ_LIMIT, "the web server answers again", || journey.ensure_tunnelled(client).ok())
}
