//! Folders that no reasonable person would write, and the examples that we did.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Output};

use horizon_tests::lab::eventually;
use horizon_tests::products::{Programs, World, repository};

use super::{connected, seen_by};

fn validate(folder: &Path) -> Output {
    Command::new(&Programs::for_tests().unwrap().controller).arg("validate").arg(folder).output().unwrap()
}

fn complaint(folder: &Path) -> String {
    let output = validate(folder);
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(!text.contains("panicked"), "{text}");
    text
}

const USER: &str =
    "apiVersion = \"horizon.dev/v1alpha1\"\nkind = \"User\"\nmetadata.name = \"ada\"\n[spec]\n";

#[test]
fn the_examples_are_valid() {
    for example in ["quickstart", "homelab", "game-night"] {
        let output = validate(&repository().join("examples").join(example));
        assert!(output.status.success(), "{example}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn mistakes_are_named_with_file_line_field_and_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("people.toml");
    let cases = [
        ("spec = [", "people.toml:1"),
        (&USER.replace("User", "Usr"), "did you mean"),
        (&USER.replace("v1alpha1", "v9"), "horizon.dev/v1alpha1"),
        (&format!("{USER}grups = []\n"), "groups"),
        (&format!("{USER}deviceLimit = 0\n"), "deviceLimit"),
    ];
    for (text, expected) in cases {
        fs::write(&file, text).unwrap();
        let complaint = complaint(folder.path());
        assert!(complaint.contains("people.toml") && complaint.contains(expected), "{expected}: {complaint}");
    }
    fs::write(&file, USER).unwrap();
    fs::write(folder.path().join("more.toml"), USER).unwrap();
    let complaint = complaint(folder.path());
    assert!(complaint.contains("people.toml") && complaint.contains("more.toml"), "duplicates: {complaint}");
}

#[test]
fn a_file_of_fifty_megabytes_is_refused_by_its_size() {
    let folder = tempfile::tempdir().unwrap();
    let mut file = fs::File::create(folder.path().join("large.toml")).unwrap();
    file.write_all(USER.as_bytes()).unwrap();
    file.set_len(50 << 20).unwrap();
    assert!(complaint(folder.path()).contains("large.toml"));
}

#[test]
fn a_symlink_loop_and_an_unreadable_folder_end_in_words() {
    let folder = tempfile::tempdir().unwrap();
    let inner = folder.path().join("inner");
    fs::create_dir(&inner).unwrap();
    symlink(folder.path(), inner.join("loop")).unwrap();
    symlink("self.toml", folder.path().join("self.toml")).unwrap();
    fs::write(folder.path().join("user.toml"), USER).unwrap();
    let output = validate(folder.path());
    assert!(output.status.code().is_some_and(|code| code <= 1), "{output:?}");

    let missing = folder.path().join("missing");
    let output = validate(&missing);
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("missing"), "{output:?}");

    fs::set_permissions(&inner, fs::Permissions::from_mode(0o000)).unwrap();
    let output = validate(folder.path());
    fs::set_permissions(&inner, fs::Permissions::from_mode(0o755)).unwrap();
    assert!(output.status.code().is_some_and(|code| code <= 1), "{output:?}");
}

#[test]
fn a_broken_file_keeps_its_last_good_state_and_a_vanished_folder_deletes_nothing() {
    let mut world = World::for_test().unwrap();
    let laptop = world.device("laptop", "ada").unwrap();
    laptop.connect("gateway").unwrap();
    let egress = Some(world.appliance.host().v4());
    let policy = world.controller.file("policy.toml").unwrap();

    world.controller.put("policy.toml", &policy.replace("destinations", "destnations")).unwrap();
    eventually("the mistake is told", || {
        world.controller.process().ok()?.log().contains("policy.toml").then_some(())
    })
    .unwrap();
    assert_eq!(seen_by(&laptop, world.web_host.v4()), egress);
    world.controller.put("policy.toml", &policy).unwrap();

    let resources = world.controller.resources();
    let aside = resources.with_extension("aside");
    fs::rename(&resources, &aside).unwrap();
    let status = world.controller.cli(["status"]).run().unwrap();
    assert!(status.success(), "{}", status.text());
    assert!(connected(&laptop));
    fs::rename(&aside, &resources).unwrap();

    for file in ["policy.toml", "user.toml", "server.toml"] {
        fs::remove_file(resources.join(file)).unwrap();
    }
    eventually("the emptied folder is told", || {
        world.controller.cli(["status"]).ok().ok()?.contains("confirm-prune").then_some(())
    })
    .unwrap();
    assert!(connected(&laptop));
    assert_eq!(seen_by(&laptop, world.web_host.v4()), egress);
}
