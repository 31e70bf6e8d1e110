use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn rules(edit: impl FnOnce(&mut PayloadRules)) -> Rules {
    let mut rules = PayloadRules::default();
    edit(&mut rules);
    Rules::from(&rules)
}

fn patterns(list: &[&str]) -> Rules {
    rules(|r| r.patterns = list.iter().map(|p| p.parse().unwrap()).collect())
}

#[test]
fn what_is_not_taken_and_what_is() {
    let held = rules(|_| ());
    for fine in [
        "home",
        "José's laptop, 2nd floor",
        "a reason\nof two lines\twith a tab",
        "'; DROP TABLE audit_logs; --",
        "100 % <b>",
        "../sibling",
        "مرحبا",
    ] {
        assert_eq!(held.text(fine), Ok(()), "{fine:?}");
    }
    for (text, hit) in [
        ("a\u{0}b", "control_characters"),
        ("\u{1b}[2J", "control_characters"),
        ("c1\u{9b}", "control_characters"),
        ("nothing \u{202e}here", "control_characters"),
        ("<SCRIPT>alert(1)</script>", "pattern"),
        ("x ${JNDI:ldap://a}", "pattern"),
        ("../../etc/passwd", "pattern"),
    ] {
        assert_eq!(held.text(text).unwrap_err().as_str(), hit, "{text:?}");
    }
    assert_eq!(held.text(&"é".repeat(8192)), Ok(()), "characters count, not bytes");
    assert_eq!(held.text(&"é".repeat(8193)), Err(Hit::TooLong(8192)));
    assert_eq!(rules(|r| r.refuse_control_characters = false).text("a\u{7}"), Ok(()));
}

#[test]
fn bodies_are_looked_at_everywhere() {
    let held = rules(|_| ());
    let hit = |value: &Value| held.json(value.to_string().as_bytes()).err().map(|hit| hit.as_str());
    assert_eq!(hit(&json!({ "a": ["b", 1, null, true, 1.5, { "c": "d" }] })), None);
    assert_eq!(hit(&json!({ "a": [{ "b": "\u{0}" }] })), Some("control_characters"), "escaped or not");
    assert_eq!(hit(&json!({ "<script>": 1 })), Some("pattern"), "names of fields too");
    let deep = |n: usize| format!("{}1{}", "[".repeat(n), "]".repeat(n));
    assert_eq!(held.json(deep(16).as_bytes()), Ok(()));
    assert_eq!(held.json(deep(17).as_bytes()), Err(Hit::TooDeep(16)));
    assert_eq!(held.json(deep(100_000).as_bytes()), Err(Hit::TooDeep(16)), "and no stack is used up");
    assert_eq!(held.json(format!("[{}1]", "1,".repeat(5000)).as_bytes()), Err(Hit::TooMany(4096)));
    assert_eq!(held.json(b"{\"a\": "), Ok(()), "what is no JSON is for its parser");
    let named = held.text("<script>").unwrap_err();
    assert_eq!(named.pattern(), Some("<script"));
    assert!(!named.to_string().contains("script"), "who sends it is not told which");
}

/// The same question, the slow way: parts may stand anywhere, one after the other.
fn slowly(parts: &[&str], text: &str) -> bool {
    let Some((first, rest)) = parts.split_first() else { return true };
    text.match_indices(first).any(|(at, found)| slowly(rest, &text[at + found.len()..]))
}

fn walk(rules: &Rules, value: &Value, depth: u8, values: &mut u32) -> bool {
    *values += 1;
    match value {
        Value::String(text) => rules.text(text).is_err(),
        Value::Array(items) => {
            depth >= rules.depth || items.iter().any(|item| walk(rules, item, depth + 1, values))
        }
        Value::Object(map) => {
            depth >= rules.depth
                || map.iter().any(|(name, value)| {
                    *values += 1;
                    rules.text(name).is_err() || walk(rules, value, depth + 1, values)
                })
        }
        _ => false,
    }
}

fn tree() -> impl Strategy<Value = Value> {
    let text = prop_oneof!["[a-c]{0,4}", "\\PC{0,6}", "[\\x00-\\x20]{0,2}"];
    let leaf = prop_oneof![Just(Value::Null), any::<i64>().prop_map(Value::from), text.prop_map(Value::from)];
    leaf.prop_recursive(6, 40, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec(("[a-c]{1,3}", inner), 0..4)
                .prop_map(|list| Value::Object(list.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn a_pattern_matches_as_it_reads(pattern in "[ab*]{3,8}", text in "[abAB]{0,24}") {
        let parts: Vec<&str> = pattern.split('*').filter(|part| !part.is_empty()).collect();
        // Of nothing but `*` nothing is made: such patterns are not valid.
        let expected = !parts.is_empty() && slowly(&parts, &text.to_ascii_lowercase());
        prop_assert_eq!(patterns(&[&pattern]).text(&text).is_err(), expected);
    }

    #[test]
    fn a_body_is_refused_if_anything_in_it_is(value in tree(), depth in 2_u8..6, most in 64_u32..70) {
        let held = rules(|r| {
            (r.max_depth, r.max_values) = (depth, most);
            r.patterns = vec!["abc".parse().unwrap()];
        });
        let mut values = 0;
        let expected = walk(&held, &value, 0, &mut values) || values > most;
        prop_assert_eq!(held.json(value.to_string().as_bytes()).is_err(), expected);
    }

    #[test]
    fn anything_can_be_looked_at(bytes in prop::collection::vec(any::<u8>(), 0..400), text in "\\PC{0,200}") {
        let held = rules(|_| ());
        let _ = held.json(&bytes);
        let _ = held.text(&text);
    }
}
