//! What an administrator types from one year to the next, word by word: rotate, replace, hand over, approve, block, revoke.

use std::fs;
use std::path::Path;

use horizon_services::until;
use horizon_tests::lab::Host;
use horizon_tests::products::{Client, World};
use serde_json::Value;

use crate::page::Page;
use crate::terminal::Terminal;

/// A world with the user of the documents, and an administrator who types on the controller's host.
struct Desk {
    world: World,
    config: String,
}

impl Desk {
    fn new() -> Self {
        let world = World::for_test().unwrap();
        let ana = "apiVersion = \"horizon.dev/v1alpha1\"\nkind = \"User\"\nmetadata.name = \"ana\"\n\
                   spec.groups = [\"friends\"]\n";
        world.controller.put("ana.toml", ana).unwrap();
        let config = world.controller.config().display().to_string();
        let desk = Self { world, config };
        desk.soon("ana is known", || desk.world.controller.get("user", "ana").is_ok());
        desk
    }

    #[track_caller]
    fn types(&self, commands: &str) -> String {
        let mut terminal =
            Terminal::new(self.world.controller.host(), &self.world.programs, self.world.lab.dir());
        terminal.set("HORIZON_CONFIG", &self.config);
        terminal.types(commands)
    }

    #[track_caller]
    fn soon(&self, what: &str, mut check: impl FnMut() -> bool) {
        until(what, || check().then_some(()))
            .unwrap_or_else(|error| panic!("{error:#}\n{}", self.world.controller.log()));
    }

    fn status(&self, kind: &str, name: &str) -> Value {
        self.world.controller.get(kind, name).map(|object| object["status"].clone()).unwrap_or_default()
    }

    fn holds(&self, kind: &str, name: &str, condition: &str) -> bool {
        let status = self.status(kind, name);
        let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
        conditions.iter().any(|found| found["type"] == condition && found["status"] == "True")
    }

    fn events(&self, kind: &str) -> bool {
        let said = self.world.controller.cli(["get", "events", "-o", "json"]).ok().unwrap();
        said.contains(&format!("\"{kind}\""))
    }

    fn device(&mut self, name: &str) -> Client {
        let mut client = Client::new(self.world.home.host(name).unwrap(), &self.world.programs);
        client.start().unwrap();
        client
    }
}

/// The string in a command's output that begins so.
#[track_caller]
fn word(said: &str, prefix: &str) -> String {
    let found = said.split_whitespace().find(|word| word.starts_with(prefix));
    found.unwrap_or_else(|| panic!("no {prefix}… in:\n{said}")).to_owned()
}

fn is_connected(client: &Client) -> bool {
    client.status().is_ok_and(|status| status["phase"] == "connected")
}

#[test]
fn a_personal_key_is_rotated_replaced_and_handed_over() {
    let page = Page::read("rotation.md");
    let mut desk = Desk::new();
    let schedule = page.blocks(&["Rotate on schedule"]);
    let [declared, now] = &schedule[..] else { panic!("other blocks: {schedule:?}") };
    desk.world.controller.put("rotation.toml", declared).unwrap();
    desk.soon("the key's string is written", || {
        desk.status("personalkey", "ana-1")["secretFile"].is_string()
    });
    let file = desk.status("personalkey", "ana-1")["secretFile"].as_str().unwrap().to_owned();
    let folder = Path::new(&desk.config).parent().unwrap().to_owned();
    let key = fs::read_to_string(folder.join(file)).unwrap();
    let laptop = desk.device("laptop");
    laptop.add_key(key.trim()).unwrap();
    laptop.connect("gateway").unwrap();
    let session = laptop.status().unwrap()["session"]["id"].clone();

    let said = desk.types(now);
    assert!(said.contains("ana-1"), "{said}");
    desk.soon("it is rotated", || desk.events("key_rotated"));
    assert_eq!(laptop.status().unwrap()["session"]["id"], session, "no session is touched");

    desk.types(&page.blocks(&["Replace at once"])[0]);
    desk.soon("the session ends", || !is_connected(&laptop));
    desk.soon("a new key is to be entered", || desk.holds("personalkey", "ana-1", "ManualRotationRequired"));
    desk.soon("the device says so", || {
        laptop.cli(["status"]).run().is_ok_and(|said| said.text().contains("manual rotation is required"))
    });
}

#[test]
fn a_key_is_handed_over_as_the_page_says() {
    let page = Page::read("rotation.md");
    let mut desk = Desk::new();
    let key = "apiVersion = \"horizon.dev/v1alpha1\"\nkind = \"PersonalKey\"\nmetadata.name = \"ana-1\"\n\
               spec.userRef = \"ana\"\n";
    desk.world.controller.put("key.toml", key).unwrap();
    desk.soon("the key is known", || desk.world.controller.get("personalkey", "ana-1").is_ok());
    let said = desk.types(&page.blocks(&["Hand a key to a person"])[0]);
    let string = word(&said, "hzn-hand-");
    let code = said.lines().skip_while(|line| *line != string).nth(1).unwrap().to_owned();
    let phone = desk.device("phone");
    phone.cli(["key", "add"]).stdin(format!("{string}\n{code}\n")).ok().unwrap();
    phone.connect("gateway").unwrap();
    for event in ["handover_created", "handover_claimed"] {
        desk.soon(event, || desk.events(event));
    }
}

#[test]
fn keys_of_the_organisation_rotate_as_the_page_says() {
    let page = Page::read("rotation.md");
    let mut desk = Desk::new();
    let laptop = desk.device("laptop");
    laptop.add_key(&desk.world.controller.invite("ana").unwrap()).unwrap();
    laptop.connect("gateway").unwrap();
    let session = laptop.status().unwrap()["session"]["id"].clone();
    let section = ["Keys of the organisation and of appliances"];
    desk.world.controller.put("yearly.toml", &page.blocks(&section)[0]).unwrap();
    desk.types(&page.span(&section, "horizon-controller rotate keys"));
    desk.soon("a key is published", || desk.events("controller_key_published"));
    desk.soon("a key is used", || desk.events("controller_key_used"));
    let status = desk.types(&page.span(&section, "horizon-controller status"));
    assert!(status.contains("KeySet") || status.contains("keyset"), "{status}");
    let secrets = page.span(&section, "horizon-controller rotate secrets");
    desk.types(&secrets.replace("[SERVER...]", "gateway").replace("...", "yearly"));
    let secret = "SELECT hex(verification_secret) FROM servers";
    let database = Path::new(&desk.config).with_file_name("data").join("horizon.db");
    let database = horizon_tests::fleet::Database::Sqlite(database);
    let before = database.rows(secret).unwrap();
    desk.soon("the appliance has another secret", || database.rows(secret).is_ok_and(|now| now != before));
    let sealing = "SELECT CAST(key_number AS TEXT) FROM data_keys WHERE purpose = 'seal'";
    let before = database.rows(sealing).unwrap();
    desk.types(&page.span(&["What seals the database"], "horizon-controller rotate keys"));
    desk.soon("what sealed before is gone", || {
        database.rows(sealing).is_ok_and(|now| now != before && now.len() == 1)
    });
    desk.soon("the appliance is back", || desk.holds("server", "gateway", "Online"));
    assert_eq!(laptop.status().unwrap()["session"]["id"], session, "no session is touched");
}

#[test]
fn devices_are_looked_after_as_the_page_says() {
    let page = Page::read("devices.md");
    let mut desk = Desk::new();
    let [laptop, tablet] = ["laptop", "tablet"].map(|name| {
        let device = desk.device(name);
        device.add_key(&desk.world.controller.invite("ana").unwrap()).unwrap();
        device
    });
    laptop.connect("gateway").unwrap();
    let [id, given_away] = [&laptop, &tablet]
        .map(|device| device.status().unwrap()["device"]["id"].as_str().unwrap().to_owned());
    for line in page.blocks(&["For administrators"])[0].lines() {
        let of = if line.contains("device forget") { &given_away } else { &id };
        let said = desk.types(&line.replace(" ID", &format!(" {of}")));
        match line.split_whitespace().take(3).skip(1).collect::<Vec<_>>()[..] {
            ["get", _] => assert!(said.contains("laptop"), "{said}"),
            ["describe", _] => {
                assert!(said.contains("Connections") || said.contains("connections"), "{said}")
            }
            ["device", "block"] => {
                desk.soon("its session ends", || !is_connected(&laptop));
                laptop.cli(["connect", "gateway"]).refused().unwrap();
            }
            ["device", "allow"] => {
                desk.soon("it may connect again", || laptop.cli(["connect", "gateway"]).ok().is_ok());
            }
            ["device", "forget"] => {
                desk.soon("it is not enrolled", || tablet.cli(["connect", "gateway"]).refused().is_ok());
            }
            ["device", "suspect"] => desk.soon("it is suspicious", || desk.events("device_suspicious")),
            ["device", "rename"] => {
                desk.soon("it has the name", || {
                    desk.types("horizon-controller get devices").contains("Ana, office")
                });
            }
            ["revoke", "device"] => {
                desk.soon("its session ends", || !is_connected(&laptop));
                laptop.cli(["connect", "gateway"]).refused().unwrap();
            }
            _ => {}
        }
    }
}

/// Makes a host another machine, as far as an appliance on it sees.
fn become_machine(host: &Host, name: &str) {
    let files = [
        ("sys/class/dmi/id/board_serial", format!("board of {name}\n")),
        ("sys/class/dmi/id/product_uuid", format!("uuid of {name}\n")),
        ("sys/class/dmi/id/product_name", format!("model of {name}\n")),
        ("proc/cpuinfo", format!("processor : 0\nmodel name : cpu of {name}\n")),
        ("etc/os-release", "ID=horizon\n".to_owned()),
    ];
    for (file, text) in files {
        let path = host.dir().join("host").join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
}

#[test]
fn another_machine_is_looked_at_approved_and_revoked_as_the_page_says() {
    let page = Page::read("identity.md");
    let section = ["When a server waits for an approval"];
    let mut desk = Desk::new();
    let root = desk.world.appliance.host().dir().join("host");
    become_machine(desk.world.appliance.host(), "one");
    desk.world.appliance.process().unwrap().stop().unwrap();
    let run = |desk: &Desk| {
        desk.world.appliance.cli(["run"]).env("HORIZON_APPLIANCE_HOST_ROOT", &root).spawn("machine").unwrap()
    };
    let named =
        |start: &str| page.span(&section, start).replace("NAME", "gateway").replace("...", "'not ours'");
    let waits = |desk: &Desk| desk.status("server", "gateway")["identity"]["pendingDigest"].is_string();
    let mut running = run(&desk);
    for machine in ["one", "two"] {
        become_machine(desk.world.appliance.host(), machine);
        running.stop().unwrap();
        running = run(&desk);
        desk.soon("it waits for an approval", || waits(&desk));
        let described = desk.types(&named("horizon-controller describe server"));
        assert!(
            described.contains("Identity") && described.contains(&format!("cpu of {machine}")),
            "{described}"
        );
        desk.types(&named("horizon-controller approve"));
        desk.soon("it takes sessions again", || desk.holds("server", "gateway", "Available"));
    }
    desk.types(&named("horizon-controller revoke server"));
    desk.soon("it takes none", || !desk.holds("server", "gateway", "Available"));
    drop(running);
}

#[test]
fn the_audit_trail_is_verified_as_the_page_says() {
    let page = Page::read("audit.md");
    let desk = Desk::new();
    let verify = page.blocks(&["Is it as it was written?"])[0].replace("my-org/config.toml", &desk.config);
    desk.soon("rows are sealed", || desk.types(&verify).contains("links"));
    let witnesses = page.blocks(&["Witnesses"]).remove(0);
    let mut lines = witnesses.lines();
    let (told, checked) = (lines.next().unwrap(), lines.next().unwrap());
    assert!(told.starts_with("horizon-appliance witnesses > witnesses.txt"), "{told}");
    desk.soon("the appliance was told", || {
        desk.world.appliance.cli(["witnesses"]).ok().is_ok_and(|said| !said.trim().is_empty())
    });
    let said = desk.world.appliance.cli(["witnesses"]).ok().unwrap();
    fs::write(desk.world.lab.dir().join("witnesses.txt"), said).unwrap();
    desk.types(&checked.replace("my-org/config.toml", &desk.config));
}
