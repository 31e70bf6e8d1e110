//! Roles of administrators: those that come with the program, and those of the organisation's own.

use std::collections::BTreeSet;

use horizon_controller_core::account::{Permission, Role};
use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    Actor, AdminError, AdminId, Store, StoreError,
    admin::json,
    audit::{self, Record},
    dialect::{Connection, query},
    row::{Columns as _, millis},
};

/// A role.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RoleView {
    /// Its name.
    pub name: String,
    /// What it is for.
    pub description: String,
    /// Whether it comes with the program.
    pub built_in: bool,
    /// What it allows.
    pub permissions: Vec<String>,
}

pub(super) async fn exists(db: &mut Connection, role: &str) -> Result<bool, StoreError> {
    let row =
        query("SELECT role_name FROM roles WHERE role_name = $1").bind(role).fetch_optional(&mut *db).await?;
    Ok(row.is_some())
}

/// Whether any active account may manage accounts. A locked one may again by itself.
pub(super) async fn manages_admins(db: &mut Connection) -> Result<bool, StoreError> {
    let row = query(
        "SELECT a.admin_id FROM admins a JOIN user_roles u ON u.admin_id = a.admin_id \
         JOIN role_permissions p ON p.role_name = u.role_name \
         WHERE p.permission_name = $1 AND a.status IN ('active', 'locked') LIMIT 1",
    )
    .bind(Permission::ManageAdmins.as_str())
    .fetch_optional(&mut *db)
    .await?;
    Ok(row.is_some())
}

/// What an account may do. What this program does not know allows nothing.
pub(super) async fn permissions_of(
    db: &mut Connection,
    id: AdminId,
) -> Result<BTreeSet<Permission>, StoreError> {
    let rows = query(
        "SELECT DISTINCT p.permission_name FROM user_roles u JOIN role_permissions p ON p.role_name = u.role_name \
         WHERE u.admin_id = $1",
    )
    .bind(id.to_string())
    .fetch_all(&mut *db)
    .await?;
    let names: Vec<String> = rows.iter().map(|row| row.text("permission_name")).collect::<Result<_, _>>()?;
    Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
}

impl Store {
    /// States anew which permissions there are, and what the roles that come with the program allow.
    pub async fn ensure_roles(&self, now: Timestamp) -> Result<(), StoreError> {
        self.repeatable("ensure_roles", || async {
            let mut tx = self.begin().await?;
            tx.serialise("roles").await?;
            for permission in Permission::ALL {
                query(
                    "INSERT INTO permissions (permission_name, description) VALUES ($1, $2) \
                     ON CONFLICT (permission_name) DO UPDATE SET description = excluded.description",
                )
                .bind(permission.as_str())
                .bind(permission.describe())
                .execute(&mut *tx)
                .await?;
            }
            for role in Role::ALL {
                query(
                    "INSERT INTO roles (role_name, description, built_in, created_date) VALUES ($1, $2, TRUE, $3) \
                     ON CONFLICT (role_name) DO UPDATE SET description = excluded.description, built_in = TRUE",
                )
                .bind(role.as_str())
                .bind(role.describe())
                .bind(millis(now))
                .execute(&mut *tx)
                .await?;
                put_permissions(&mut tx, role.as_str(), &role.permissions(), now).await?;
            }
            tx.commit().await
        })
        .await
    }

    /// The roles, by name.
    pub async fn list_roles(&self) -> Result<Vec<RoleView>, StoreError> {
        let mut tx = self.readers().snapshot().await?;
        read_roles(&mut tx).await
    }

    /// Makes or changes a role of the organisation's own. Returns what it was before.
    pub async fn put_role(
        &self,
        role: &RoleView,
        actor: &Actor,
        now: Timestamp,
    ) -> Result<Option<RoleView>, AdminError> {
        let name = &role.name;
        let good = name.len() <= 32
            && name.starts_with(|c: char| c.is_ascii_lowercase())
            && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if !good {
            return Err(AdminError::Invalid("a role's name has up to 32 lower-case letters, digits and '-'"));
        }
        if role.description.chars().count() > 256 || role.description.chars().any(char::is_control) {
            return Err(AdminError::Invalid("a role's description has up to 256 characters that print"));
        }
        let permissions: Result<BTreeSet<Permission>, _> =
            role.permissions.iter().map(|p| p.parse()).collect();
        let permissions =
            permissions.map_err(|_| AdminError::Invalid("one of the permissions does not exist"))?;
        self.retried("put_role", || async {
            let mut tx = self.begin().await?;
            tx.serialise("admins").await?;
            let before = read_roles(&mut tx).await?.into_iter().find(|known| known.name == *name);
            if before.as_ref().is_some_and(|before| before.built_in) {
                return Err(AdminError::Invalid("roles that come with the program cannot be changed: make another"));
            }
            query(
                "INSERT INTO roles (role_name, description, built_in, created_date) VALUES ($1, $2, FALSE, $3) \
                 ON CONFLICT (role_name) DO UPDATE SET description = excluded.description",
            )
            .bind(name)
            .bind(&role.description)
            .bind(millis(now))
            .execute(&mut *tx)
            .await?;
            put_permissions(&mut tx, name, &permissions, now).await?;
            if !manages_admins(&mut tx).await? {
                return Err(AdminError::LastOne);
            }
            let action = if before.is_some() { "update" } else { "create" };
            let mut record = Record::new(action, "Role", name, name);
            (record.previous, record.new) = (before.as_ref().and_then(json), json(role));
            audit::write(&mut tx, actor, now, &[record]).await?;
            tx.commit().await?;
            Ok(before)
        })
        .await
    }
}

async fn read_roles(db: &mut Connection) -> Result<Vec<RoleView>, StoreError> {
    let rows = query(
        "SELECT r.role_name, r.description, r.built_in, p.permission_name FROM roles r \
         LEFT JOIN role_permissions g ON g.role_name = r.role_name \
         LEFT JOIN permissions p ON p.permission_name = g.permission_name ORDER BY r.role_name, p.permission_name",
    )
    .fetch_all(&mut *db)
    .await?;
    let mut roles: Vec<RoleView> = Vec::new();
    for row in rows {
        let name = row.text("role_name")?;
        if roles.last().is_none_or(|last| last.name != name) {
            let (description, built_in) = (row.text("description")?, row.flag("built_in")?);
            roles.push(RoleView { name, description, built_in, permissions: Vec::new() });
        }
        if let (Some(role), Some(permission)) = (roles.last_mut(), row.maybe_text("permission_name")?) {
            role.permissions.push(permission);
        }
    }
    Ok(roles)
}

async fn put_permissions(
    db: &mut Connection,
    role: &str,
    permissions: &BTreeSet<Permission>,
    now: Timestamp,
) -> Result<(), StoreError> {
    query("DELETE FROM role_permissions WHERE role_name = $1").bind(role).execute(&mut *db).await?;
    for permission in permissions {
        query("INSERT INTO role_permissions (role_name, permission_name, created_date) VALUES ($1, $2, $3)")
            .bind(role)
            .bind(permission.as_str())
            .bind(millis(now))
            .execute(&mut *db)
            .await?;
    }
    Ok(())
}
