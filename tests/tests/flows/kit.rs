//! What flows are walked through with: named steps, and looks from outside.

use std::io::Write;
use std::time::Duration;

use horizon_tests::fleet::Database;
use horizon_tests::lab::within;
use horizon_tests::products::{Appliance, Client, Controller};
use serde_json::Value;

/// Within which time what a step promises has to be seen. Generous: tests share the machine.
pub(crate) const SOON: Duration = Duration::from_secs(60);

/// How long peers may take to find their controller again.
pub(crate) const RETURN: Duration = Duration::from_secs(90);

/// Takes a step of a flow; when it fails, its name is the last that is said.
pub(crate) fn step<T>(name: &str, act: impl FnOnce() -> T) -> T {
    struct Failed<'n>(&'n str);
    impl Drop for Failed<'_> {
        fn drop(&mut self) {
            if std::thread::panicking() {
                let _ = writeln!(std::io::stderr(), "failed in the step: {}", self.0);
            }
        }
    }
    let _failed = Failed(name);
    act()
}

/// Waits until `check` holds.
#[track_caller]
pub(crate) fn soon(what: &str, mut check: impl FnMut() -> bool) {
    within(SOON, what, || check().then_some(())).unwrap();
}

/// What is looked for.
pub(crate) trait Seen {
    /// The first column of the first row of a query, as text; numbers and truth are to be cast.
    fn row(&self, sql: &str) -> Option<String>;
    /// How many security events of a type there are.
    fn events(&self, kind: &str) -> usize;
    /// Whether the audit trail has such an action on a target.
    fn audited(&self, action: &str, target: &str) -> bool;
    /// A part of a resource's status.
    fn status(&self, kind: &str, name: &str, pointer: &str) -> Value;
    /// Whether a condition of a resource holds; `None` when nothing is said of it.
    fn condition(&self, kind: &str, name: &str, condition: &str) -> Option<bool>;
}

impl Seen for Controller {
    fn row(&self, sql: &str) -> Option<String> {
        let database = Database::Sqlite(self.config().parent().unwrap().join("data/horizon.db"));
        let rows = database.rows(sql).unwrap_or_else(|error| panic!("{sql}: {error:#}"));
        rows.into_iter().next().and_then(|row| row.into_iter().next())
    }

    fn events(&self, kind: &str) -> usize {
        items(self, "events").iter().filter(|event| event["type"] == kind).count()
    }

    fn audited(&self, action: &str, target: &str) -> bool {
        let is_it = |entry: &Value| {
            let named = entry["target"].as_str().unwrap_or_default();
            entry["action"] == action && named.rsplit('/').next() == Some(target)
        };
        items(self, "audit").iter().any(is_it)
    }

    fn status(&self, kind: &str, name: &str, pointer: &str) -> Value {
        let object = self.get(kind, name).unwrap();
        object["status"].pointer(pointer).cloned().unwrap_or(Value::Null)
    }

    fn condition(&self, kind: &str, name: &str, condition: &str) -> Option<bool> {
        let conditions = self.status(kind, name, "/conditions");
        let found = conditions.as_array()?.iter().find(|found| found["type"] == condition)?.clone();
        Some(found["status"] == "True")
    }
}

/// The entries of a list of the command line.
pub(crate) fn items(controller: &Controller, what: &str) -> Vec<Value> {
    let list = controller.cli(["get", what, "-o", "json", "--limit", "1000"]).ok().unwrap();
    let list: Value = serde_json::from_str(&list).unwrap();
    list.as_array().or_else(|| list["items"].as_array()).cloned().unwrap_or_default()
}

/// Whether a device says that it is connected.
pub(crate) fn connected(client: &Client) -> bool {
    client.status().is_ok_and(|status| status["phase"] == "connected")
}

/// What an appliance says of itself.
pub(crate) fn told(appliance: &Appliance) -> Value {
    serde_json::from_str(&appliance.cli(["status", "-o", "json"]).ok().unwrap()).unwrap()
}
