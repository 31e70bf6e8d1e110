//! The audit trail: who changed what. Rows are inserted in the transaction of their change and never altered.

use std::{net::IpAddr, sync::Arc};

use horizon_model::{DeviceId, ServerId};
use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    Caller, Store, StoreError,
    dialect::{Builder, Connection, MAX_BINDS, Row, query},
    row::{Columns as _, millis},
};

/// Who makes a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Actor {
    /// A person at the controller's own interface, by the name of the account.
    Admin(String),
    /// The same over the network, with where they are.
    Account(Arc<RemoteAdmin>),
    /// Whoever writes the files of the desired state; the text names the file or the directory.
    File(String),
    /// A user of Kubernetes, who changed an object there.
    Kubernetes(String),
    /// An appliance.
    Appliance(ServerId),
    /// A device.
    Device(DeviceId),
    /// The controller itself; the text names the part.
    System(&'static str),
}

/// An administrator who is signed in over the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteAdmin {
    /// The name of the account.
    pub name: String,
    /// From where.
    pub address: IpAddr,
    /// With what program.
    pub agent: String,
}

impl Actor {
    /// An administrator who is signed in over the network.
    pub fn account(name: &str, caller: &Caller) -> Self {
        let (address, agent) = (caller.address, caller.agent.clone());
        Self::Account(Arc::new(RemoteAdmin { name: name.to_owned(), address, agent }))
    }

    fn remote(&self) -> Option<&RemoteAdmin> {
        match self {
            Self::Account(remote) => Some(remote),
            _ => None,
        }
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::Admin(_) | Self::Account(_) => "admin",
            Self::File(_) => "file",
            Self::Kubernetes(_) => "kubernetes",
            Self::Appliance(_) => "appliance",
            Self::Device(_) => "device",
            Self::System(_) => "system",
        }
    }

    pub(crate) fn name(&self) -> String {
        match self {
            Self::Account(remote) => remote.name.clone(),
            Self::Admin(name) | Self::File(name) | Self::Kubernetes(name) => name.clone(),
            Self::Appliance(id) => id.to_string(),
            Self::Device(id) => id.to_string(),
            Self::System(part) => (*part).to_owned(),
        }
    }
}

/// One row of the audit trail.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AuditEntry {
    /// Its number; later rows have higher ones.
    pub id: i64,
    /// When.
    #[schema(value_type = String)]
    pub time: Timestamp,
    /// `admin`, `file`, `kubernetes`, `appliance`, `device` or `system`.
    pub actor_type: String,
    /// Who.
    pub actor: String,
    /// What was done: `create`, `update`, `delete`, `register`, `revoke`, …
    pub action: String,
    /// The kind of what was changed.
    pub target_type: String,
    /// Its identifier, where it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_id: Option<String>,
    /// Its name.
    pub target: String,
    /// From where, if it came over the network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// With what program, if it came over the network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    /// More, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub notes: Option<String>,
    /// The document before, as JSON.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub previous: Option<serde_json::Value>,
    /// The document after, as JSON.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub new: Option<serde_json::Value>,
}

/// A row to be written.
#[derive(Clone, Debug, Default)]
pub(super) struct Record {
    pub(super) action: &'static str,
    pub(super) target_type: String,
    pub(super) target_id: Option<String>,
    pub(super) target: String,
    pub(super) previous: Option<String>,
    pub(super) new: Option<String>,
    pub(super) notes: Option<String>,
    /// Who, where it is not the transaction's actor.
    pub(super) actor: Option<Actor>,
}

impl Record {
    pub(super) fn new(
        action: &'static str,
        target_type: &str,
        id: impl std::fmt::Display,
        target: impl std::fmt::Display,
    ) -> Self {
        Self {
            action,
            target_type: target_type.to_owned(),
            target_id: Some(id.to_string()),
            target: target.to_string(),
            ..Self::default()
        }
    }

    pub(super) fn notes(mut self, notes: impl Into<String>) -> Self {
        self.notes = Some(notes.into());
        self
    }
}

const COLUMNS: usize = 12;

/// Writes rows, in the caller's transaction.
pub(super) async fn write(
    db: &mut Connection,
    actor: &Actor,
    now: Timestamp,
    records: &[Record],
) -> Result<(), StoreError> {
    for chunk in records.chunks(MAX_BINDS / COLUMNS) {
        let mut insert = Builder::new(
            "INSERT INTO audit_logs (timestamp, actor_type, actor_name, action, target_type, target_id, target_name, \
             previous_state, new_state, notes, ip_address, user_agent) ",
        );
        insert.push_values(chunk, |row, r| {
            let actor = r.actor.as_ref().unwrap_or(actor);
            row.push_bind(millis(now))
                .push_bind(actor.kind())
                .push_bind(actor.name())
                .push_bind(r.action)
                .push_bind(r.target_type.clone())
                .push_bind(r.target_id.clone())
                .push_bind(r.target.clone())
                .push_bind(r.previous.clone())
                .push_bind(r.new.clone())
                .push_bind(r.notes.clone())
                .push_bind(actor.remote().map(|remote| remote.address.to_string()))
                .push_bind(actor.remote().map(|remote| remote.agent.clone()));
        });
        insert.build().execute(&mut *db).await?;
    }
    Ok(())
}

impl Store {
    /// The newest rows of the audit trail, newest first.
    pub async fn list_audit(&self, limit: u32) -> Result<Vec<AuditEntry>, StoreError> {
        let rows = query("SELECT * FROM audit_logs ORDER BY log_id DESC LIMIT $1")
            .bind(limit)
            .fetch_all(self.readers())
            .await?;
        rows.iter().map(read).collect()
    }

    /// The newest rows of the audit trail about one target, newest first.
    pub async fn list_audit_of(&self, target_id: &str, limit: u32) -> Result<Vec<AuditEntry>, StoreError> {
        let rows = query("SELECT * FROM audit_logs WHERE target_id = $1 ORDER BY log_id DESC LIMIT $2")
            .bind(target_id)
            .bind(limit)
            .fetch_all(self.readers())
            .await?;
        rows.iter().map(read).collect()
    }
}

pub(super) fn read(row: &Row) -> Result<AuditEntry, StoreError> {
    let json = |column| -> Result<Option<serde_json::Value>, StoreError> {
        Ok(row.maybe_text(column)?.and_then(|text| serde_json::from_str(&text).ok()))
    };
    Ok(AuditEntry {
        id: row.int("log_id")?,
        time: row.time("timestamp")?,
        actor_type: row.text("actor_type")?,
        actor: row.text("actor_name")?,
        action: row.text("action")?,
        target_type: row.text("target_type")?,
        target_id: row.maybe_text("target_id")?,
        target: row.text("target_name")?,
        address: row.maybe_text("ip_address")?,
        agent: row.maybe_text("user_agent")?,
        notes: row.maybe_text("notes")?,
        previous: json("previous_state")?,
        new: json("new_state")?,
    })
}
