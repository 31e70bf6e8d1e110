//! The documents: what they say exists, and whether what they tell a person to type does what they say.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod backup;
mod care;
mod high_availability;
mod moving;
mod page;
mod said;
mod terminal;
mod upgrade;

use serde_json::{Value, json};

/// A user to declare.
fn user(name: &str) -> Value {
    json!({"apiVersion": "horizon.dev/v1alpha1", "kind": "User", "metadata": {"name": name}, "spec": {}})
}
