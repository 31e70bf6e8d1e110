//! The API server's audit log.

use serde_json::Value;

/// One answered request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Audited {
    /// Who asked, e.g. `system:serviceaccount:horizon:horizon-controller`.
    pub user: String,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`.
    pub verb: String,
    /// The API group; empty for the core group.
    pub group: String,
    /// The resource in plural, e.g. `servers`; empty for a path such as `/healthz`.
    pub resource: String,
    /// E.g. `status`; often empty.
    pub subresource: String,
    /// The object's namespace; often empty.
    pub namespace: String,
    /// The object's name; empty for lists.
    pub name: String,
    /// The path and query.
    pub uri: String,
    /// What the client calls itself.
    pub agent: String,
    /// The address that asked.
    pub source: String,
    /// The HTTP status of the answer.
    pub status: u64,
}

impl Audited {
    /// `verb group/resource/subresource`, without what is empty: `patch horizon.dev/servers/status`, `get secrets`.
    pub fn permission(&self) -> String {
        let parts: Vec<_> = [&self.group, &self.resource, &self.subresource]
            .into_iter()
            .filter(|part| !part.is_empty())
            .map(String::as_str)
            .collect();
        match parts.is_empty() {
            true => format!("{} {}", self.verb, self.uri),
            false => format!("{} {}", self.verb, parts.join("/")),
        }
    }
}

/// The finished lines of a log; a request that is still being written is left out.
pub(super) fn parse(log: &str) -> Vec<Audited> {
    log.lines().filter_map(|line| serde_json::from_str(line).ok()).map(|event: Value| read(&event)).collect()
}

fn read(event: &Value) -> Audited {
    let text = |pointer: &str| event.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    Audited {
        user: text("/user/username"),
        verb: text("/verb"),
        group: text("/objectRef/apiGroup"),
        resource: text("/objectRef/resource"),
        subresource: text("/objectRef/subresource"),
        namespace: text("/objectRef/namespace"),
        name: text("/objectRef/name"),
        uri: text("/requestURI"),
        agent: text("/userAgent"),
        source: text("/sourceIPs/0"),
        status: event.pointer("/responseStatus/code").and_then(Value::as_u64).unwrap_or_default(),
    }
}
