//! Resource files: whatever the bytes are, the answer lists what could be read and what could not, and what was read can be
//! written in both languages and read again.
#![no_main]

use horizon_crds::document::{Format, parse_as, to_toml, to_yaml};
use horizon_crds::{Resource, check_set};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    for format in [Format::Toml, Format::Yaml] {
        let parsed = parse_as("file", format, data);
        let set: Vec<_> = parsed.resources.iter().map(|(resource, origin)| (resource, origin)).collect();
        let _ = check_set(&set);
        let resources: Vec<Resource> = parsed.resources.into_iter().map(|(resource, _)| resource).collect();
        if resources.is_empty() {
            continue;
        }
        let again = |format, text: &str| -> Vec<Resource> {
            parse_as("again", format, text.as_bytes()).resources.into_iter().map(|(resource, _)| resource).collect()
        };
        assert_eq!(again(Format::Toml, &to_toml(&resources)), resources, "TOML loses nothing");
        let yaml = to_yaml(&resources).expect("resources can be written");
        assert_eq!(again(Format::Yaml, &yaml), resources, "YAML loses nothing");
    }
});
