//! The printer columns of a kind, found in a resource by the JSON paths the schema declares. The table is thereby the one
//! that `kubectl get` shows.

use horizon_crds::Timestamp;
use serde_json::Value;

/// The text of what `path` leads to in `object`; empty when there is nothing. Understands what the schema uses: member names
/// and `[?(@.member=="text")]`, as in `.status.conditions[?(@.type=="Online")].status`.
pub(super) fn find(object: &Value, path: &str) -> String {
    steps(path).and_then(|steps| walk(object, &steps)).map(text).unwrap_or_default()
}

#[derive(Debug, PartialEq)]
enum Step<'a> {
    Member(&'a str),
    Where(&'a str, &'a str),
}

fn steps(mut path: &str) -> Option<Vec<Step<'_>>> {
    let mut steps = Vec::new();
    while !path.is_empty() {
        if let Some(rest) = path.strip_prefix("[?(@.") {
            let (condition, rest) = rest.split_once(")]")?;
            let (member, value) = condition.split_once("==")?;
            steps.push(Step::Where(member.trim(), value.trim().trim_matches('"')));
            path = rest;
        } else {
            let rest = path.strip_prefix('.')?;
            let end = rest.find(['.', '[']).unwrap_or(rest.len());
            steps.push(Step::Member(&rest[..end]));
            path = &rest[end..];
        }
    }
    Some(steps)
}

fn walk<'v>(object: &'v Value, steps: &[Step<'_>]) -> Option<&'v Value> {
    steps.iter().try_fold(object, |value, step| match step {
        Step::Member(name) => value.get(name),
        Step::Where(member, wanted) => {
            value.as_array()?.iter().find(|item| item.get(member).and_then(Value::as_str) == Some(wanted))
        }
    })
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(text).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

/// How long ago a moment was, as `45s`, `12m`, `3h`, `9d`; empty for what is no moment.
pub(super) fn age(moment: &str, now: jiff::Timestamp) -> String {
    let Ok(moment) = moment.parse::<Timestamp>() else { return String::new() };
    let seconds = now.as_second().saturating_sub(moment.get().as_second()).max(0);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn paths_lead_to_cells() {
        let object = json!({
            "spec": { "groups": ["family", "admins"], "suspended": false },
            "status": { "conditions": [{ "type": "Ready", "status": "False" }, { "type": "Online", "status": "True" }] },
        });
        for (path, cell) in [
            (".spec.groups", "family,admins"),
            (".spec.suspended", "false"),
            (r#".status.conditions[?(@.type=="Online")].status"#, "True"),
            (r#".status.conditions[?(@.type=="Verified")].status"#, ""),
            (".status.phase", ""),
            ("nonsense", ""),
            (".status.conditions[0]", ""),
        ] {
            assert_eq!(find(&object, path), cell, "{path}");
        }
    }

    #[test]
    fn ages_are_short() {
        let now: jiff::Timestamp = "2026-01-03T00:00:00Z".parse().unwrap();
        for (moment, age_of) in [
            ("2026-01-02T23:59:15Z", "45s"),
            ("2026-01-02T23:48:00Z", "12m"),
            ("2026-01-02T20:00:00Z", "4h"),
            ("2025-12-25T00:00:00Z", "9d"),
            ("2026-02-01T00:00:00Z", "0s"),
            ("yesterday", ""),
        ] {
            assert_eq!(age(moment, now), age_of, "{moment}");
        }
    }
}
