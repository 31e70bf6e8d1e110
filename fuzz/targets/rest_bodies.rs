//! What strangers send to the REST API: bodies, cursors, and passwords.
#![no_main]

use horizon_controller_core::account::check_password;
use horizon_controller_core::payload::Rules;
use horizon_controller_core::rest::{read_cursor, write_cursor};
use horizon_crds::PayloadRules;
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

fn real(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(real).max().unwrap_or(0),
        Value::Object(map) => 1 + map.values().map(real).max().unwrap_or(0),
        _ => 0,
    }
}

fuzz_target!(|data: &[u8]| {
    let rules = PayloadRules::default();
    let taken = Rules::from(&rules).json(data);
    if let Ok(value) = serde_json::from_slice::<Value>(data) {
        // Of a key that comes twice the parser keeps one.
        assert!(
            taken.is_err() || real(&value) <= usize::from(rules.max_depth),
            "what is taken is not too deep"
        );
    }
    let Ok(text) = std::str::from_utf8(data) else { return };
    let _ = Rules::from(&rules).text(text);
    for list in ["events", "kind Server"] {
        if let Some(key) = read_cursor(list, text) {
            assert_eq!(write_cursor(list, &key), text, "a place has one cursor");
        }
    }
    let (password, name) = text.split_once(' ').unwrap_or((text, "ann"));
    if check_password(password, name).is_ok() {
        assert!(password.chars().count() >= 12);
    }
});
