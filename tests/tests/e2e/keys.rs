//! Personal keys that must not work.

use horizon_tests::products::{Client, World};

use super::tokens::names;
use super::wait_until_ended;

/// A device with a running service and no key.
fn stranger(world: &mut World) -> Client {
    let mut client = Client::new(world.home.host("stranger").unwrap(), &world.programs);
    client.start().unwrap();
    client
}

fn refused(client: &Client, key: &str) -> String {
    client.cli(["key", "add"]).stdin(format!("{key}\n")).refused().unwrap()
}

#[test]
fn wrong_revoked_and_expired_keys_are_refused_in_words() {
    let mut world = World::for_test().unwrap();
    let client = stranger(&mut world);
    let refusal = client.cli(["connect", "gateway"]).refused().unwrap();
    assert!(refusal.contains("key add"), "what to do first: {refusal}");

    let key = world.controller.invite("ada").unwrap();
    let half = &key[..key.len() / 2];
    for wrong in [half, "hzn-reg-aaaa", "nonsense", ""] {
        refused(&client, wrong);
    }
    let name =
        names(&world.controller.cli(["get", "personalkeys", "-o", "json"]).ok().unwrap()).pop().unwrap();
    world.controller.cli(["revoke", "personalkey", &name, "--reason", "test"]).ok().unwrap();
    let refusal = refused(&client, &key);
    assert!(refusal.contains("deactivated") && refusal.contains("administrator"), "{refusal}");
}

#[test]
fn revoking_a_device_ends_its_session_for_good() {
    let mut world = World::for_test().unwrap();
    let laptop = world.device("laptop", "ada").unwrap();
    laptop.connect("gateway").unwrap();
    let devices = world.controller.cli(["get", "devices", "-o", "json"]).ok().unwrap();
    let devices: serde_json::Value = serde_json::from_str(&devices).unwrap();
    let device = devices.as_array().or_else(|| devices["items"].as_array()).unwrap()[0]["id"]
        .as_str()
        .unwrap()
        .to_owned();
    world.controller.cli(["revoke", "device", &device, "--reason", "stolen", "--compromised"]).ok().unwrap();
    wait_until_ended(&laptop);
    let refusal = laptop.cli(["connect", "gateway"]).refused().unwrap();
    assert!(refusal.contains("revoked"), "{refusal}");
}
