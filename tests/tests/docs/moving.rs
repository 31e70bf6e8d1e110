//! docs/moving.md, word by word: an organisation in files moves into a cluster and back, and nobody's session ends.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::time::Duration;

use horizon_tests::lab::{Host, Lab, within};
use horizon_tests::production::{Cluster, ClusterOptions, Pod};
use horizon_tests::products::{Appliance, Client, Controller, Programs, repository};
use horizon_tests::services::{WebServer, http_get};

use crate::page::Page;
use crate::terminal::{Terminal, parts};

/// How long peers may take to find the controller at another place.
const RETURN: Duration = Duration::from_secs(90);

/// What the tokens say; where it leads is in each host's `/etc/hosts`.
const NAME: &str = "controller.example.org";

/// Lets the controller's name lead somewhere else, on a host.
fn point(host: &Host, to: &[&Host]) {
    let lines: String = to.iter().map(|to| format!("{} {NAME}\n", to.v4())).collect();
    host.run(move || {
        // What is there leads to the machine's own file.
        let _ = fs::remove_file("/etc/hosts");
        fs::write("/etc/hosts", format!("127.0.0.1 localhost\n{lines}"))
    })
    .unwrap();
}

/// The user that docs/install.md makes.
pub(crate) fn add_user(host: &Host) {
    for (file, line) in
        [("/etc/passwd", "horizon:x:0:0::/var/lib/horizon:/bin/sh\n"), ("/etc/group", "horizon:x:0:\n")]
    {
        host.run(move || {
            let text = fs::read_to_string(file)?;
            fs::remove_file(file)?;
            fs::write(file, text + line)
        })
        .unwrap();
    }
}

#[test]
fn an_organisation_moves_into_kubernetes_and_back() {
    let page = Page::read("moving.md");
    let programs = Programs::for_tests().unwrap().clone();
    let mut lab = Lab::new().unwrap();
    let web_host = lab.public_host("web").unwrap();
    let _web = WebServer::start(&web_host).unwrap();
    let cluster = Cluster::start(lab.public_host("cluster").unwrap(), ClusterOptions::default()).unwrap();
    cluster.prepare().unwrap();
    let pod_hosts = [lab.public_host("horizon-0").unwrap(), lab.public_host("horizon-1").unwrap()];

    // A controller that reads files, on the same Postgres, and what depends on it.
    let office = lab.public_host("office").unwrap();
    add_user(&office);
    let mut controller =
        Controller::init(office, &programs, &repository().join("examples/quickstart")).unwrap();
    let folder = controller.config().parent().unwrap().to_owned();
    let link = folder.clone();
    controller.host().run(move || symlink(link, "/var/lib/horizon")).unwrap();
    for (file, url) in ["database-url", "migration-url"].iter().zip(cluster.database_urls()) {
        let path = folder.join(file);
        fs::write(&path, url).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o400)).unwrap();
    }
    let settings = fs::read_to_string(controller.config()).unwrap();
    let settings: String =
        settings.lines().filter(|line| !line.starts_with("advertise")).map(|l| format!("{l}\n")).collect();
    let ours = format!("advertise = [\"{NAME}\"]\ndatabase_url_file = \"database-url\"\n");
    fs::write(controller.config(), settings + &ours).unwrap();
    let owner = folder.join("migration-url").display().to_string();
    controller.cli(["migrate", "--migration-url-file", &owner]).ok().unwrap();
    controller.start().unwrap();
    let mut appliance = Appliance::new(lab.public_host("appliance").unwrap(), &programs);
    let mut home = lab.home("home").unwrap();
    let mut laptop = Client::new(home.host("laptop").unwrap(), &programs);
    let peers_find = |to: &[&Host], peers: [&Host; 2]| peers.iter().for_each(|host| point(host, to));
    peers_find(&[controller.host()], [appliance.host(), laptop.host()]);
    appliance.enroll(&controller.token("gateway").unwrap()).unwrap();
    appliance.start().unwrap();
    appliance.wait_until_applied().unwrap();
    laptop.start().unwrap();
    laptop.add_key(&controller.invite("ada").unwrap()).unwrap();
    laptop.connect("gateway").unwrap();
    let egress = appliance.host().v4().to_string();
    let served = |laptop: &Client| http_get(laptop.host(), web_host.v4()).ok().filter(|seen| *seen == egress);
    let device = || laptop.status().unwrap();
    let session = device()["session"]["id"].clone();

    // Export.
    let own = Terminal::new(controller.host(), &programs, &folder);
    own.types(&page.blocks(&["Export"])[0]);
    assert!(folder.join("backup/default/servers/gateway.toml").exists());
    assert!(fs::read_to_string(folder.join("objects.yaml")).unwrap().contains("horizon.dev/id"));

    // Into the cluster. The sources' top folder is a copy, in which a person writes.
    let sources = lab.dir().join("sources");
    fs::create_dir(&sources).unwrap();
    for part in ["manifests", "crds"] {
        let (from, to) = (repository().join(part), sources.display());
        controller.host().cmd("cp", ["-r", &from.display().to_string(), &to.to_string()]).ok().unwrap();
    }
    // Another terminal each time, since the controller is stopped and started in between.
    let admin =
        |host: &Host, typed: &str| Terminal::of_admin(host, &cluster, &programs, &sources).types(typed);
    let steps = page.blocks(&["From files to Kubernetes"]);
    let [keys, overlay, copy, stop, start] = &steps[..] else { panic!("other steps: {steps:?}") };
    admin(controller.host(), keys);
    let written = &Page::read("kubernetes.md").blocks(&["An overlay of your own"])[0];
    admin(
        controller.host(),
        &written.replace("overlays/embedded", "overlays/production").replace("horizon.example.org", NAME),
    );
    admin(controller.host(), overlay);
    admin(controller.host(), copy);
    assert!(stop.starts_with("systemctl disable --now horizon-controller"), "{stop}");
    controller.process().unwrap().stop().unwrap();
    admin(controller.host(), start);
    let wanted = cluster.kube.get(["deployment", "horizon-controller", "-n", "horizon-system"]).unwrap();
    assert_eq!(wanted["spec"]["replicas"], 3);
    let mut pods = Vec::new();
    for host in pod_hosts {
        let mut pod = Pod::place(&cluster, host, &programs).unwrap();
        pod.start().unwrap();
        pod.wait_until_ready().unwrap();
        pods.push(pod);
    }
    peers_find(&[pods[0].host(), pods[1].host()], [appliance.host(), laptop.host()]);
    assert!(served(&laptop).is_some(), "{}", laptop.log());
    let wait = ["wait", "-n", "default", "--timeout=90s", "--for=condition=Online", "server/gateway"];
    cluster
        .kube
        .kubectl(wait)
        .unwrap_or_else(|error| panic!("{error:#}\n{}\n{}", pods[0].log(), appliance.log()));
    let shown = admin(controller.host(), &page.span(&["From files to Kubernetes"], "kubectl get horizon"));
    assert!(shown.contains("gateway") && shown.contains("ada"), "{shown}");
    assert_eq!(device()["session"]["id"], session);
    assert_eq!(device()["phase"], "connected");

    // And back.
    let back = page.blocks(&["Back"]);
    let [out, place, start] = &back[..] else { panic!("other steps: {back:?}") };
    let beside = Terminal::beside(&pods[0], &cluster, &programs, &sources);
    for part in parts(out, "kubectl scale") {
        beside.types(&part);
    }
    for pod in &mut pods {
        pod.process().unwrap().stop().unwrap();
    }
    fs::remove_dir_all(folder.join("data/keys")).unwrap();
    admin(controller.host(), place);
    assert!(start.starts_with("systemctl enable --now horizon-controller"), "{start}");
    controller.start().unwrap();
    peers_find(&[controller.host()], [appliance.host(), laptop.host()]);
    within(RETURN, "the appliance is back", || {
        (controller.get("server", "gateway").ok()?["status"]["phase"] == "active").then_some(())
    })
    .unwrap_or_else(|error| panic!("{error:#}\n{}\n{}", controller.log(), appliance.log()));
    assert!(served(&laptop).is_some(), "{}", laptop.log());
    assert_eq!(device()["session"]["id"], session);
    assert_eq!(device()["phase"], "connected");
}
