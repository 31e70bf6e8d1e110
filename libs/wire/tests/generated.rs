//! The generated messages are committed, so that a build needs no protobuf compiler. This test makes them again and
//! fails on a difference; `HORIZON_REGENERATE=1` writes them instead (`make generate`).

use std::{fs, path::Path};

#[test]
fn messages_are_current() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let out = tempfile::tempdir().unwrap();
    let descriptors = protox::compile(["horizon/v1/control.proto"], [root.join("proto")]).unwrap();
    // Messages that hold secrets get a `Debug` by hand, which shows none (src/redact.rs).
    let secret = [
        "Envelope",
        "RawEntry",
        "Register",
        "Registered",
        "Session",
        "EnrolDevice",
        "Ticket",
        "RegistrationToken",
        "PersonalKey",
        "ClaimHandover",
        "Handover",
        "KeyTaken",
    ];
    prost_build::Config::new()
        .skip_debug(secret.map(|name| format!(".horizon.v1.{name}")))
        .out_dir(out.path())
        .compile_fds(descriptors)
        .unwrap();
    let made = fs::read_to_string(out.path().join("horizon.v1.rs")).unwrap();
    let committed = root.join("src/generated/horizon.v1.rs");
    if std::env::var_os("HORIZON_REGENERATE").is_some() {
        fs::create_dir_all(committed.parent().unwrap()).unwrap();
        fs::write(&committed, made).unwrap();
        return;
    }
    assert!(
        fs::read_to_string(&committed).unwrap_or_default() == made,
        "{} is not what proto/ makes: run `make generate` and commit the result",
        committed.display()
    );
}
