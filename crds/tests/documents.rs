//! Documents survive every way they can go, and nothing that is not one does harm.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use horizon_crds::{
    KindName, Parsed, Resource, check_set,
    document::{
        Format, MAX_FILE_BYTES, MAX_PROBLEMS_PER_FILE, MAX_RESOURCES_PER_FILE, from_json, parse_as, to_toml,
        to_yaml,
    },
    example, generated_files, parse,
};
use proptest::{collection, prelude::*};

fn resources(parsed: Parsed) -> Vec<Resource> {
    assert_eq!(parsed.problems, [], "valid resources have no problems");
    assert!(parsed.is_complete());
    parsed.resources.into_iter().map(|(resource, _)| resource).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn toml_and_yaml_convert_without_loss(written in collection::vec(common::resource(), 0..4)) {
        let toml = to_toml(&written);
        prop_assert_eq!(&resources(parse_as("a.toml", Format::Toml, toml.as_bytes())), &written, "{}", toml);
        let yaml = to_yaml(&written).unwrap();
        let read = resources(parse_as("a.yaml", Format::Yaml, yaml.as_bytes()));
        prop_assert_eq!(&read, &written, "{}", yaml);
        prop_assert_eq!(to_toml(&read), toml);
    }

    #[test]
    fn json_is_the_same_document(written in common::resource()) {
        let read = from_json(&written.to_json()).unwrap();
        prop_assert_eq!(read.canonical_spec(), written.canonical_spec());
        prop_assert_eq!(read, written);
    }

    #[test]
    fn valid_resources_pass_every_check(resource in common::resource()) {
        prop_assert_eq!(resource.check(), []);
        prop_assert_eq!(resource.check_update(&resource), []);
    }

    #[test]
    fn arbitrary_bytes_do_no_harm(bytes in collection::vec(any::<u8>(), 0..512)) {
        parse("a.toml", &bytes);
        parse("a.yaml", &bytes);
    }

    #[test]
    fn perturbed_documents_do_no_harm(
        written in collection::vec(common::resource(), 1..3),
        edits in collection::vec((any::<prop::sample::Index>(), "[\\[\\]{}\"'=:#.,\n\t a-z0-9&*-]{0,3}", 0_usize..8), 1..8),
    ) {
        for (file, mut text) in [("a.toml", to_toml(&written)), ("a.yaml", to_yaml(&written).unwrap())] {
            for (place, inserted, removed) in &edits {
                let mut characters: Vec<char> = text.chars().collect();
                let start = place.index(characters.len() + 1);
                let end = (start + removed).min(characters.len());
                characters.splice(start..end, inserted.chars());
                text = characters.into_iter().collect();
            }
            let lines = u32::try_from(text.lines().count()).unwrap() + 1;
            let parsed = parse(file, text.as_bytes());
            for problem in &parsed.problems {
                prop_assert!(problem.position.is_none_or(|p| (1..=lines).contains(&p.line)), "{} in\n{}", problem, text);
                prop_assert!(!problem.message.is_empty() && !problem.remedy.is_empty());
            }
            for (resource, _) in &parsed.resources {
                prop_assert_eq!(resource.check(), []);
                prop_assert_eq!(from_json(&resource.to_json()), Ok(resource.clone()));
            }
        }
    }
}

#[test]
fn examples_are_a_valid_set() {
    let files: Vec<_> =
        KindName::ALL.map(|kind| (kind, parse(kind.plural(), example(kind).as_bytes()))).into();
    for (kind, file) in &files {
        assert_eq!(file.problems, []);
        assert_eq!(file.resources.iter().map(|(r, _)| r.kind()).collect::<Vec<_>>(), [*kind]);
    }
    let set: Vec<_> = files.iter().flat_map(|(_, file)| file.resources.iter().map(|(r, o)| (r, o))).collect();
    assert_eq!(check_set(&set), []);
}

#[test]
fn defaults_are_filled_in() {
    let text = "apiVersion = \"horizon.dev/v1alpha1\"\nkind = \"Server\"\nmetadata.name = \"a\"\n[spec]\n";
    let Resource::Server(server) = resources(parse("a.toml", text.as_bytes())).remove(0) else {
        panic!("no server")
    };
    assert_eq!(server.metadata.namespace.as_str(), "default");
    assert_eq!((server.spec.tunnel.port, server.spec.tunnel.mtu), (7443, 1420));
    let ranges: Vec<String> = server.spec.egress.address_ranges.iter().map(ToString::to_string).collect();
    assert_eq!(ranges, ["100.96.0.0/16", "fd68:6f72:697a:6f6e::/64"]);
    assert!(server.spec.egress.masquerade);
}

#[test]
fn oversized_files_are_refused() {
    let parsed = parse("big.toml", &vec![b' '; MAX_FILE_BYTES + 1]);
    assert!(parsed.resources.is_empty() && !parsed.is_complete());
    assert_eq!(
        parsed.problems[0].to_string(),
        "big.toml: the file has 1048577 bytes, more than the 1048576 that are read: split it into several files"
    );
}

#[test]
fn too_many_resources_are_refused() {
    for (file, one) in [("a.toml", "[[resource]]\n"), ("a.yaml", "---\na: 1\n")] {
        let parsed = parse(file, one.repeat(MAX_RESOURCES_PER_FILE + 1).as_bytes());
        assert!(parsed.resources.is_empty() && !parsed.is_complete());
        assert_eq!(parsed.problems.len(), 1);
        assert!(parsed.problems[0].message.contains("more than 4096"), "{}", parsed.problems[0]);
    }
}

#[test]
fn problems_are_bounded() {
    let parsed = parse("a.toml", "[[resource]]\n".repeat(MAX_RESOURCES_PER_FILE).as_bytes());
    assert_eq!(parsed.problems.len(), MAX_PROBLEMS_PER_FILE);
    assert!(parsed.problems.last().unwrap().message.ends_with("more problems are not shown"));
}

#[test]
fn deep_nesting_is_refused() {
    let depth = MAX_FILE_BYTES / 8;
    for (file, text) in [
        ("a.toml", format!("a = {}", "[".repeat(depth))),
        ("a.toml", format!("a = {}{}", "[".repeat(70), "]".repeat(70))),
        ("a.toml", format!("a{} = 1", ".a".repeat(depth))),
        ("a.toml", format!("[a{}]", ".a".repeat(depth))),
        ("a.toml", "[[a]]\n[a.a]\n".repeat(depth / 8)),
        ("a.yaml", "[".repeat(depth)),
        ("a.yaml", "- ".repeat(depth)),
        ("a.yaml", (0..1000).map(|i| format!("{}a:\n", " ".repeat(i))).collect()),
        ("a.yaml", format!("{}b", "? ".repeat(depth))),
    ] {
        let parsed = parse(file, text.as_bytes());
        assert!(parsed.resources.is_empty() && !parsed.problems.is_empty(), "{}", &text[..20]);
    }
}

#[test]
fn one_long_line_takes_no_longer_than_many() {
    // Quadratic work over this line would take minutes.
    let text = format!("a = [{}]", "{a=1},".repeat(40_000));
    assert_eq!(parse("a.toml", text.as_bytes()).problems.len(), 5);
}

#[test]
fn text_in_another_encoding_is_refused() {
    let parsed = parse("a.toml", b"# fine\nkind = \"\xff\"");
    assert_eq!(parsed.problems[0].to_string(), "a.toml:2:9: the file is not UTF-8 text: save it as UTF-8");
}

#[test]
fn a_broken_document_is_known_by_its_name() {
    let text = "apiVersion = \"horizon.dev/v1alpha1\"\nkind = \"User\"\nmetadata.name = \"ana\"\nspec.deviceLimit = 0\n";
    let parsed = parse("a.toml", text.as_bytes());
    assert!(parsed.is_complete());
    assert_eq!(parsed.broken().map(ToString::to_string).collect::<Vec<_>>(), ["User default/ana"]);
    assert!(!parse("a.toml", text.replace("ana", "Ana").as_bytes()).is_complete());
}

#[test]
fn an_origin_knows_the_line_of_each_field() {
    let text = example(KindName::Server);
    let (_, origin) = &parse("server.toml", text.as_bytes()).resources[0];
    let line = |field: &str| origin.locate(field).line;
    let wanted =
        |start: &str| u32::try_from(text.lines().position(|l| l.starts_with(start)).unwrap()).unwrap() + 1;
    assert_eq!(line("spec.egress.dns[1]"), wanted("dns"));
    assert_eq!(line("spec.tunnel.port"), wanted("port"));
    assert_eq!(line("spec.lifecycle.reason"), wanted("[spec.lifecycle]"));
    assert_eq!(line("metadata.name"), wanted("name"));
}

#[test]
fn what_is_final_stays_final() {
    let read = |kind: &str, spec: &str| {
        let text =
            format!("apiVersion: horizon.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: x}}\nspec: {spec}\n");
        resources(parse("a.yaml", text.as_bytes())).remove(0)
    };
    let digest = |byte: &str| format!("{{serverRef: a, identityDigest: 'sha256:{}'}}", byte.repeat(32));
    for (kind, old, new, field) in [
        ("Server", "{lifecycle: {state: decommissioned, reason: sold}}", "{}", "spec.lifecycle.state"),
        ("RegistrationKey", "{serverRef: a}", "{serverRef: b}", "spec.serverRef"),
        ("RegistrationKey", "{serverRef: a}", "{serverRef: a, lifetime: 2h}", "spec.lifetime"),
        ("RegistrationKey", "{serverRef: a, revocation: {reason: x}}", "{serverRef: a}", "spec.revocation"),
        ("PersonalKey", "{userRef: a}", "{userRef: b}", "spec.userRef"),
        ("PersonalKey", "{userRef: a, revocation: {reason: x}}", "{userRef: a}", "spec.revocation"),
        ("Approval", &digest("ab"), &digest("cd"), "spec.identityDigest"),
        (
            "KeyRotation",
            "{target: personalKeys, names: [a], type: manual, reason: x}",
            "{target: personalKeys, names: [b], type: manual, reason: x}",
            "spec.target",
        ),
        (
            "Revocation",
            "{target: {kind: Server, name: a}, reason: x}",
            "{target: {kind: Server, name: b}, reason: x}",
            "spec.target",
        ),
    ] {
        let (old, new) = (read(kind, old), read(kind, new));
        let issues = new.check_update(&old);
        assert_eq!(issues.iter().map(|issue| issue.field.as_str()).collect::<Vec<_>>(), [field], "{kind}");
        assert_eq!(old.check_update(&old), []);
    }
}

#[test]
fn generated_files_are_current() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for (path, text) in generated_files().unwrap() {
        let current = std::fs::read_to_string(root.join(&path)).unwrap_or_default();
        assert!(current == text, "{path} is not current: run `cargo run -p horizon-crds --bin crdgen`");
    }
}
