//! docs/high-availability.md, word by word: replicas on plain machines, with a Postgres and a Redis, of which one after the
//! other is lost.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::time::Duration;

use horizon_services::{Postgres, PostgresOptions, Redis, RedisOptions, Site};
use horizon_tests::lab::{Host, Lab, within};
use horizon_tests::products::{Appliance, Client, Controller, Programs, repository};
use horizon_tests::services::{WebServer, http_get};
use serde_json::Value;

use crate::moving::add_user;
use crate::page::Page;
use crate::terminal::Terminal;

/// How long peers may take to notice that their replica is gone, and to find another.
const RETURN: Duration = Duration::from_secs(90);

/// The file `.env` of docs/high-availability.md.
const PASSWORDS: [(&str, &str); 3] = [
    ("HORIZON_RUN_PASSWORD", "a-password-to-run"),
    ("HORIZON_MIGRATE_PASSWORD", "a-password-to-migrate"),
    ("REDIS_PASSWORD", "a-password-of-redis"),
];

/// Two machines with a replica each, and what they share.
struct Office {
    replicas: [Controller; 2],
    postgres: Postgres,
    redis: Redis,
    /// The host of both.
    _databases: Host,
    page: Page,
    programs: Programs,
    lab: Lab,
}

impl Office {
    /// Follows the page up to two replicas that run.
    fn set_up() -> Self {
        let page = Page::read("high-availability.md");
        let programs = Programs::for_tests().unwrap().clone();
        let mut lab = Lab::new().unwrap();
        let shared = lab.public_host("databases").unwrap();
        let (postgres, redis) = databases(&shared);
        let hosts = ["one", "two"].map(|name| lab.public_host(name).unwrap());
        let addresses = hosts.each_ref().map(Host::v4);
        let section = ["Without Kubernetes"];
        let [containers, files, settings] = &page.blocks(&section)[..] else { panic!("other steps") };
        let at = |text: &str| {
            let redis = redis.addresses().unwrap()[0];
            text.replace("@localhost/horizon", &format!("@{}/horizon", postgres.address()))
                .replace("@localhost?ca", &format!("@{redis}?ca"))
        };
        let replicas = hosts.map(|host| {
            add_user(&host);
            let folder = host.dir().join("horizon");
            host.run(move || symlink(folder, "/var/lib/horizon")).unwrap();
            let controller =
                Controller::init(host, &programs, &repository().join("examples/quickstart")).unwrap();
            let folder = controller.config().with_file_name("");
            let passwords: String = PASSWORDS.iter().map(|(name, text)| format!("{name}={text}\n")).collect();
            fs::write(folder.join(".env"), passwords).unwrap();
            let terminal = Terminal::new(controller.host(), &programs, &folder);
            // Containers are not run here: what they serve is there, and this is what they would give out.
            let made = containers.lines().find(|line| line.starts_with("mkdir")).unwrap();
            terminal.types(made);
            let authorities =
                [postgres.authority(), redis.authority()].map(|path| fs::read(path.unwrap()).unwrap());
            let authorities = authorities.concat();
            controller.host().run(move || fs::write("/etc/horizon/ca.crt", authorities)).unwrap();
            terminal.types(&at(files));
            let written = fs::read_to_string(controller.config()).unwrap();
            let written: String = written
                .lines()
                .filter(|line| !line.starts_with("advertise"))
                .map(|l| format!("{l}\n"))
                .collect();
            let advertised = format!("advertise = [\"{}\", \"{}\"]\n", addresses[0], addresses[1]);
            fs::write(controller.config(), written + &advertised + settings).unwrap();
            controller
        });
        let mut site = Self { replicas, postgres, redis, _databases: shared, page, programs, lab };
        site.migrate(0);
        // The other machine has a copy of the keys.
        let [first, second] = site.replicas.each_ref().map(|replica| replica.config().with_file_name("data"));
        fs::remove_dir_all(second.join("keys")).unwrap();
        let [from, to] = [first.join("keys"), second].map(|path| path.display().to_string());
        site.replicas[1].host().cmd("cp", ["-a", &from, &to]).ok().unwrap();
        for replica in &mut site.replicas {
            replica.start().unwrap();
        }
        site
    }

    /// What the page says brings the database to the version of the program.
    fn migrate(&self, replica: usize) {
        let typed = self.page.span(&["Without Kubernetes"], "horizon-controller migrate");
        Terminal::new(self.replicas[replica].host(), &self.programs, self.lab.dir()).types(&typed);
    }

    /// Which replica leads, by the database; none while the one that did is past its time.
    fn leader(&self) -> Option<usize> {
        let holds = "select replica_name from leadership where held_until > extract(epoch from now()) * 1000";
        let name = self.postgres.psql_in("horizon", holds).ok()?;
        self.replicas.iter().position(|replica| name.trim().starts_with(replica.host().name()))
    }

    fn wait_for_leader(&self, among: &[usize]) -> usize {
        within(RETURN, "a replica leads", || self.leader().filter(|leader| among.contains(leader)))
            .unwrap_or_else(|error| panic!("{error}\n{}", self.logs()))
    }

    /// Declares a user in both copies of the folder, and waits until a replica tells of it.
    fn declare(&self, user: &str, told_by: usize) {
        let document = format!(
            "apiVersion = \"horizon.dev/v1alpha1\"\nkind = \"User\"\nmetadata.name = \"{user}\"\n[spec]\n"
        );
        for replica in &self.replicas {
            replica.put(&format!("{user}.toml"), &document).unwrap();
        }
        within(RETURN, "what is declared is known", || self.replicas[told_by].get("user", user).ok())
            .unwrap_or_else(|error| panic!("{error}\n{}", self.logs()));
    }

    fn logs(&self) -> String {
        self.replicas.each_ref().map(Controller::log).join("\n---\n")
    }
}

/// The databases of the page's containers.
fn databases(host: &Host) -> (Postgres, Redis) {
    let site = Site::in_network(host.netns(), host.v4(), host.dir());
    let postgres =
        Postgres::start(&PostgresOptions { site: site.clone(), tls: true, ..PostgresOptions::default() })
            .unwrap();
    postgres.script(&repository().join("manifests/compose/roles.sh"), &PASSWORDS[..2]).unwrap();
    let (_, password) = PASSWORDS[2];
    let redis = RedisOptions { site, tls: true, password: Some(password.into()), ..RedisOptions::default() };
    let redis = Redis::start(&redis).unwrap();
    redis.cli(["ACL", "SETUSER", "horizon", "on", &format!(">{password}"), "~*", "&*", "+@all"]).unwrap();
    (postgres, redis)
}

#[test]
fn replicas_on_plain_machines_lose_one_after_the_other() {
    let mut site = Office::set_up();
    // The addresses have passwords in them.
    for file in ["database-url", "redis-url", "migration-url"] {
        let path = format!("/etc/horizon/{file}");
        let mode = site.replicas[0].host().run(move || fs::metadata(path).unwrap().permissions().mode());
        assert_eq!(mode & 0o077, 0, "{file}");
    }
    let web_host = site.lab.public_host("web").unwrap();
    let _web = WebServer::start(&web_host).unwrap();
    let mut appliance = Appliance::new(site.lab.public_host("appliance").unwrap(), &site.programs);
    let leader = site.wait_for_leader(&[0, 1]);
    // Any replica gives tokens and keys out.
    appliance.enroll(&site.replicas[1 - leader].token("gateway").unwrap()).unwrap();
    appliance.start().unwrap();
    appliance.wait_until_applied().unwrap();
    let mut home = site.lab.home("home").unwrap();
    let mut laptop = Client::new(home.host("laptop").unwrap(), &site.programs);
    laptop.start().unwrap();
    laptop.add_key(&site.replicas[leader].invite("ada").unwrap()).unwrap();
    let connect = |laptop: &Client, site: &Office| {
        within(RETURN, "a session is granted", || laptop.connect("gateway").ok())
            .unwrap_or_else(|error| panic!("{error}\n{}\n{}", laptop.log(), site.logs()));
    };
    connect(&laptop, &site);
    let egress = appliance.host().v4().to_string();
    let session = |laptop: &Client| -> Value { laptop.status().unwrap()["session"]["id"].clone() };
    let served = |laptop: &Client| {
        within(RETURN, "traffic flows", || {
            (http_get(laptop.host(), web_host.v4()).ok()? == egress).then_some(())
        })
        .unwrap_or_else(|error| panic!("{error}\n{}", laptop.log()));
    };

    // "the leader (kill -9) | go on | connections as before, changes wait | another leads"
    let first = session(&laptop);
    let killed = site.wait_for_leader(&[0, 1]);
    site.replicas[killed].process().unwrap().kill().unwrap();
    site.wait_for_leader(&[1 - killed]);
    site.declare("grace", 1 - killed);
    served(&laptop);
    assert_eq!(session(&laptop), first, "the session went on");
    laptop.disconnect().unwrap();
    connect(&laptop, &site);
    served(&laptop);

    // A rolling update: the database first, then one replica after the other.
    site.migrate(killed);
    site.replicas[killed].start().unwrap();
    let second = session(&laptop);
    for n in [1 - killed, killed] {
        site.replicas[n].process().unwrap().stop().unwrap();
        site.wait_for_leader(&[1 - n]);
        served(&laptop);
        site.replicas[n].start().unwrap();
    }
    site.declare("joan", killed);
    assert_eq!(session(&laptop), second, "the session went on");

    // "Redis | go on | go on, through the database"
    site.redis.kill(0).unwrap();
    laptop.disconnect().unwrap();
    connect(&laptop, &site);
    served(&laptop);
    site.declare("kate", 1 - killed);
    site.redis.revive(0).unwrap();

    // "everything | go on: appliances act on the last state they hold"
    let third = session(&laptop);
    for replica in &mut site.replicas {
        replica.process().unwrap().kill().unwrap();
    }
    served(&laptop);
    assert_eq!(session(&laptop), third, "the session went on");
}
