//! nftables tables through the `nft` program: one atomic script in, one canonical listing out.

use std::{io, path::PathBuf, process::Stdio, time::Duration};

use serde_json::Value;
use thiserror::Error;
use tokio::{io::AsyncWriteExt, process::Command, time::timeout};

/// The largest script.
pub const MAX_SCRIPT_BYTES: usize = 4 * 1024 * 1024;
const MAX_MESSAGE_CHARS: usize = 500;
/// How long the program may take; the largest script takes a small part of it.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why `nft` could not do what it was asked.
#[derive(Debug, Error)]
pub enum NftError {
    /// The program is not installed.
    #[error("the program '{0}' is not installed; install it with: apt-get install nftables")]
    Missing(String),
    /// It could not be run.
    #[error("cannot run '{program}': {cause}")]
    Run {
        /// Which program.
        program: String,
        /// Why.
        cause: io::Error,
    },
    /// It needs privileges.
    #[error("nftables refused to {0}: not permitted; run it as root, or give it CAP_NET_ADMIN")]
    Permission(String),
    /// It refused the script.
    #[error("nftables refused to {action}: {message}")]
    Refused {
        /// What it was asked.
        action: String,
        /// What it said.
        message: String,
    },
    /// It did not end.
    #[error("nftables did not {action} within {} seconds and was stopped; does another program hold it?", PATIENCE.as_secs())]
    Slow {
        /// What it was asked.
        action: String,
    },
    /// Its answer cannot be read.
    #[error("the listing of {0} by nft cannot be read; is it nftables 0.9.3 or newer?")]
    Unreadable(String),
}

/// What a table holds, in a form that is equal when the rules are: without handles and counters, in the kernel's order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableListing(String);

impl TableListing {
    /// The listing as text, for a digest.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A chain that the kernel sends packets to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseChain {
    /// The family of its table.
    pub family: String,
    /// Its table.
    pub table: String,
    /// Its name.
    pub name: String,
    /// Where it stands: `input`, `forward`, `output`, `prerouting`, `postrouting`.
    pub hook: String,
    /// Whether packets that no rule accepts are dropped.
    pub drops: bool,
}

/// The `nft` program.
#[derive(Clone, Debug)]
pub struct Nft {
    program: PathBuf,
    patience: Duration,
}

impl Default for Nft {
    /// The program that is in the path, or in `/usr/sbin`, which the path of a service may lack.
    fn default() -> Self {
        let system = PathBuf::from("/usr/sbin/nft");
        Self::program(if system.exists() { system } else { "nft".into() })
    }
}

impl Nft {
    /// Another program.
    pub fn program(program: impl Into<PathBuf>) -> Self {
        Self { program: program.into(), patience: PATIENCE }
    }

    /// Carries out a script as one transaction: all of it or nothing.
    pub async fn apply(&self, script: &str) -> Result<(), NftError> {
        self.run(&["-f", "-"], script, "apply a rule set").await.map(drop)
    }

    /// The version that `nft` tells of itself.
    pub async fn version(&self) -> Result<String, NftError> {
        let said = self.run(&["--version"], "", "tell its version").await?;
        Ok(said.trim().chars().take(MAX_MESSAGE_CHARS).collect())
    }

    /// Deletes a table. That there is none is no error.
    pub async fn delete_table(&self, family: &str, name: &str) -> Result<(), NftError> {
        // Adding first makes the deletion succeed either way, also with versions that lack `destroy`.
        self.apply(&format!("add table {family} {name}\ndelete table {family} {name}\n")).await
    }

    /// What a table holds, `None` when there is no such table.
    pub async fn table(&self, family: &str, name: &str) -> Result<Option<TableListing>, NftError> {
        let object = format!("table {family} {name}");
        let action = format!("list {object}");
        match self.run(&["--json", "--numeric", "list", "table", family, name], "", &action).await {
            Ok(text) => canonical(&text).map(Some).ok_or(NftError::Unreadable(object)),
            Err(NftError::Refused { message, .. }) if message.contains("No such file or directory") => {
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }

    /// The base chains of all tables, whoever made them.
    pub async fn base_chains(&self) -> Result<Vec<BaseChain>, NftError> {
        let text = self.run(&["--json", "list", "chains"], "", "list the chains").await?;
        base_chains(&text).ok_or_else(|| NftError::Unreadable("the chains".into()))
    }

    async fn run(&self, arguments: &[&str], input: &str, action: &str) -> Result<String, NftError> {
        let program = self.program.display().to_string();
        let failed = |cause: io::Error| match cause.kind() {
            io::ErrorKind::NotFound => NftError::Missing(program.clone()),
            _ => NftError::Run { program: program.clone(), cause },
        };
        if input.len() > MAX_SCRIPT_BYTES {
            let message = format!("the rule set is larger than {MAX_SCRIPT_BYTES} bytes");
            return Err(NftError::Refused { action: action.to_owned(), message });
        }
        let mut child = Command::new(&self.program)
            .args(arguments)
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        let mut stdin = child.stdin.take();
        let feed = async {
            if let Some(mut stdin) = stdin.take() {
                // A program that stopped reading says why on its error output.
                let _ = stdin.write_all(input.as_bytes()).await;
            }
        };
        // A program that is given up is dropped, and killed by that.
        let answer = timeout(self.patience, async { tokio::join!(feed, child.wait_with_output()) }).await;
        let Ok((_, output)) = answer else {
            return Err(NftError::Slow { action: action.to_owned() });
        };
        let output = output.map_err(failed)?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        if said.contains("Operation not permitted") {
            return Err(NftError::Permission(action.to_owned()));
        }
        let message: String = said.trim().chars().take(MAX_MESSAGE_CHARS).collect();
        Err(NftError::Refused { action: action.to_owned(), message })
    }
}

fn base_chains(text: &str) -> Option<Vec<BaseChain>> {
    let value: Value = serde_json::from_str(text).ok()?;
    let chain = |item: &Value| {
        let chain = item.get("chain")?;
        let field = |name: &str| chain.get(name)?.as_str().map(str::to_owned);
        Some(BaseChain {
            family: field("family")?,
            table: field("table")?,
            name: field("name")?,
            hook: field("hook")?,
            drops: field("policy").as_deref() == Some("drop"),
        })
    };
    Some(value.get("nftables")?.as_array()?.iter().filter_map(chain).collect())
}

/// Drops what changes without anybody changing a rule.
fn canonical(text: &str) -> Option<TableListing> {
    let mut value: Value = serde_json::from_str(text).ok()?;
    let items = value.get_mut("nftables")?.as_array_mut()?;
    items.retain(|item| item.get("metainfo").is_none());
    for item in items.iter_mut() {
        strip(item);
    }
    Some(TableListing(value.to_string()))
}

fn strip(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.remove("handle");
            if let Some(counter) = map.get_mut("counter").filter(|c| c.is_object()) {
                *counter = Value::Null;
            }
            map.values_mut().for_each(strip);
        }
        Value::Array(items) => items.iter_mut().for_each(strip),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handles_counters_and_versions_do_not_count() {
        let listing = |version: &str, handle: u32, packets: u32, verdict: &str| {
            let text = format!(
                r#"{{"nftables":[{{"metainfo":{{"version":"{version}"}}}},{{"table":{{"name":"t","handle":{handle}}}}},
                {{"rule":{{"handle":{handle},"expr":[{{"counter":{{"packets":{packets},"bytes":0}}}},{{"{verdict}":null}}]}}}}]}}"#
            );
            canonical(&text).unwrap()
        };
        assert_eq!(listing("1", 3, 0, "accept"), listing("2", 9, 7, "accept"));
        assert_ne!(listing("1", 3, 0, "accept"), listing("1", 3, 0, "drop"));
        assert!(canonical("[]").is_none());
        assert!(canonical("").is_none());
    }

    #[tokio::test]
    async fn a_missing_program_names_the_package() {
        let error = Nft::program("/nonexistent/nft").apply("").await.unwrap_err();
        assert!(error.to_string().contains("apt-get install nftables"), "{error}");
    }

    #[tokio::test]
    async fn a_program_that_hangs_is_given_up() {
        let hanging = Nft { program: "/bin/sleep".into(), patience: Duration::from_millis(20) };
        let error = hanging.run(&["600"], "", "apply a rule set").await.unwrap_err();
        assert!(matches!(error, NftError::Slow { .. }), "{error}");
    }
}
