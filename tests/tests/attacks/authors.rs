//! Documents that are written to do harm.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;

use horizon_tests::lab::within;
use horizon_tests::products::World;
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::mkfifo;

use super::{SOON, assert_served};

/// The most memory that a controller may hold with such a folder, in KiB.
const MOST_MEMORY: u64 = 512 << 10;

fn memory(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Ten entities, each of ten of the one before.
fn billion_laughs() -> String {
    let mut text = "a0: &a0 [lol, lol]\n".to_owned();
    for n in 1..12 {
        let before = format!("*a{}", n - 1);
        text.push_str(&format!("a{n}: &a{n} [{}]\n", vec![before; 10].join(", ")));
    }
    text
}

#[test]
fn documents_that_are_written_to_do_harm_stop_nothing() {
    let mut world = World::for_test().unwrap();
    let folder = world.controller.resources();
    let head = "apiVersion = \"horizon.dev/v1alpha1\"\nkind = \"User\"\n";
    let files = [
        ("deep.toml", format!("{head}metadata.name = \"deep\"\nspec = {}", "[".repeat(200_000))),
        ("deeper.toml", format!("{head}{} = 1\n", vec!["a"; 100_000].join("."))),
        ("tables.toml", "[a.b.c.d]\n".repeat(100_000)),
        ("laughs.yaml", billion_laughs()),
        ("flow.yaml", "{a: ".repeat(50_000)),
        ("many.toml", format!("[[resource]]\n{head}metadata.name = \"m\"\n").repeat(50_000)),
        ("name.toml", format!("{head}metadata.name = \"x'); DROP TABLE users; --\"\n[spec]\n")),
        ("escape.toml", format!("{head}metadata.name = \"a\\u001b[31m\\nFATAL forged line\"\n[spec]\n")),
        (
            "id.toml",
            format!(
                "{head}metadata.name = \"id\"\nmetadata.annotations.\"horizon.dev/id\" = \"../../x\"\n[spec]\n"
            ),
        ),
    ];
    for (file, text) in &files {
        fs::write(folder.join(file), text).unwrap();
    }
    fs::write(folder.join("bytes.toml"), [0xff, 0xfe, 0x00]).unwrap();
    symlink("/proc/self/mem", folder.join("memory.toml")).unwrap();
    symlink("/dev/zero", folder.join("zero.toml")).unwrap();
    symlink("/etc/passwd", folder.join("passwd.toml")).unwrap();

    // What is no file at all, what has no end, and ways that lead in circles.
    mkfifo(&folder.join("pipe.toml"), Mode::S_IRWXU).unwrap();
    mknod(&folder.join("device.toml"), SFlag::S_IFCHR, Mode::S_IRWXU, makedev(1, 5)).unwrap();
    let _listener = UnixListener::bind(folder.join("socket.toml")).unwrap();
    fs::create_dir(folder.join("folder.toml")).unwrap();
    symlink(".", folder.join("circle")).unwrap();
    symlink("itself.toml", folder.join("itself.toml")).unwrap();
    fs::File::create(folder.join("sparse.toml")).unwrap().set_len(1 << 40).unwrap();

    // What is right and came with it is in force.
    let fine = format!("{head}metadata.name = \"fine\"\n[spec]\n");
    world.controller.put("fine.toml", &fine).unwrap();
    within(SOON, "a right document is in force", || world.controller.get("user", "fine").ok()).unwrap();
    let told = world.controller.cli(["status"]).ok().unwrap();
    for file in
        ["deep.toml", "deeper.toml", "name.toml", "bytes.toml", "pipe.toml", "device.toml", "sparse.toml"]
    {
        assert!(told.contains(file), "{file} is told of:\n{told}");
    }
    let log = world.controller.process().unwrap().log();
    for said in [&told, &log] {
        assert!(!said.contains("\u{1b}[31m") && !said.contains("\nFATAL forged line"), "{said}");
        assert!(!said.contains("root:x:0:0"), "nothing of files that are not documents is told");
    }
    let pid = world.controller.process().unwrap().pid();
    assert!(memory(pid) < MOST_MEMORY, "{} KiB", memory(pid));
    assert_served(&mut world, "laptop");
}
