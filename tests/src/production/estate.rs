//! An organisation in production: a cluster, two replicas, an appliance that is active, a home, and a web server far away.

use anyhow::{Context, Result};

use super::{Cluster, ClusterOptions, Pod};
use crate::lab::{Home, Host, Lab};
use crate::products::{Appliance, Client, Programs, repository};
use crate::services::WebServer;

/// All of it, running. `examples/quickstart` is declared: the server `gateway`, the user `ada`.
pub struct Estate {
    /// The replicas, `horizon-0` and `horizon-1`.
    pub pods: Vec<Pod>,
    /// The appliance that is `gateway`.
    pub appliance: Appliance,
    /// The web server, which says whom it sees.
    pub web: WebServer,
    /// Its host.
    pub web_host: Host,
    /// Where devices live.
    pub home: Home,
    /// The services and the manifests.
    pub cluster: Cluster,
    /// The programs.
    pub programs: Programs,
    /// The lab all this is in.
    pub lab: Lab,
}

impl Estate {
    /// Starts it with the programs of a test run.
    pub fn for_test(options: ClusterOptions) -> Result<Self> {
        let programs = Programs::for_tests()?.clone();
        let mut lab = Lab::new()?;
        let web_host = lab.public_host("web")?;
        let web = WebServer::start(&web_host)?;
        let mut settings = options.settings.clone();
        let cluster = Cluster::start(lab.public_host("cluster")?, options)?;
        let hosts = [lab.public_host("horizon-0")?, lab.public_host("horizon-1")?];
        settings.push(format!("HORIZON_ADVERTISE={},{}", hosts[0].v4(), hosts[1].v4()));
        cluster.install(&settings)?;
        let mut pods = Vec::new();
        for host in hosts {
            let mut pod = Pod::place(&cluster, host, &programs)?;
            pod.start()?;
            pods.push(pod);
        }
        pods.iter_mut().try_for_each(Pod::wait_until_ready)?;
        cluster.declare(&repository().join("examples/quickstart"))?;
        let mut appliance = Appliance::new(lab.public_host("appliance")?, &programs);
        appliance.enroll(&cluster.registration_token("gateway")?)?;
        appliance.start()?;
        appliance.wait_until_applied()?;
        let home = lab.home("home")?;
        let estate = Self { pods, appliance, web, web_host, home, cluster, programs, lab };
        estate.cluster.wait("condition=Online", "server/gateway").with_context(|| estate.logs())?;
        estate
            .cluster
            .wait("jsonpath={.status.phase}=active", "server/gateway")
            .with_context(|| estate.logs())?;
        Ok(estate)
    }

    /// A device of Ada's at home, connected.
    pub fn connected_device(&mut self) -> Result<Client> {
        let mut client = Client::new(self.home.host("laptop")?, &self.programs);
        client.start()?;
        client.add_key(&self.cluster.personal_key("ada")?)?;
        client.connect("gateway").with_context(|| self.logs())?;
        Ok(client)
    }

    /// Which pod leads, and which does not.
    pub fn leader_and_follower(&self) -> Result<(usize, usize)> {
        let holder = self.cluster.leader().context("nobody leads")?;
        let leader = self.pods.iter().position(|pod| pod.is(&holder)).context("a stranger leads")?;
        Ok((leader, 1 - leader))
    }

    /// The ends of the replicas' logs.
    pub fn logs(&self) -> String {
        self.pods.iter().map(|pod| format!("{}:\n{}\n", pod.name(), pod.log())).collect()
    }
}
