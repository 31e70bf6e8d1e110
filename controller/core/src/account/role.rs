//! Permissions, and the roles that come with the program. Roles of one's own are rows of the database.

use std::{collections::BTreeSet, fmt, str::FromStr};

use thiserror::Error;

macro_rules! permissions {
    ($($(#[doc = $doc:literal])+ $name:ident = $text:literal;)+) => {
        /// What an administrator may be allowed to do.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Permission {
            $($(#[doc = $doc])+ $name,)+
        }

        impl Permission {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// The name, as roles and the API spell it.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text),+ }
            }

            /// What it allows, in words.
            pub fn describe(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc),+)),+ }.trim()
            }
        }
    };
}

permissions! {
    /// Make, change and suspend administrators, and what roles allow.
    ManageAdmins = "manage_admins";
    /// Make personal keys for users, and revoke keys and devices.
    ManageUsers = "manage_users";
    /// Make registration tokens, and revoke servers.
    ManageServers = "manage_servers";
    /// Rotate keys.
    ManageKeys = "manage_keys";
    /// Approve a changed identity of a server.
    ApproveIdentity = "approve_identity";
    /// Confirm the removal of resources that vanished.
    ConfirmPrune = "confirm_prune";
    /// Read what is declared, and its status.
    ReadResources = "read_resources";
    /// Read sessions and devices.
    ReadSessions = "read_sessions";
    /// End sessions.
    ManageSessions = "manage_sessions";
    /// Read security events.
    ReadEvents = "read_events";
    /// Mark security events as handled.
    HandleEvents = "handle_events";
    /// Block addresses, and flag servers and users.
    ManageSecurity = "manage_security";
    /// Read the audit trail.
    ReadAudit = "read_audit";
}

/// A name that is no permission.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("there is no permission '{0}'")]
pub struct UnknownPermission(pub String);

impl FromStr for Permission {
    type Err = UnknownPermission;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.iter().find(|permission| permission.as_str() == text);
        found.copied().ok_or_else(|| UnknownPermission(text.chars().take(64).collect()))
    }
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A role that comes with the program. What it allows is stated anew by every start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// May do everything.
    Admin,
    /// Runs the organisation day by day.
    Operator,
    /// Looks at how things are.
    Viewer,
    /// Looks at how things are, and at who did what.
    Auditor,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Admin, Self::Operator, Self::Viewer, Self::Auditor];

    /// The name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Operator => "operator",
            Self::Viewer => "viewer",
            Self::Auditor => "auditor",
        }
    }

    /// What it is for, in words.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Admin => "May do everything.",
            Self::Operator => "Runs the organisation day by day.",
            Self::Viewer => "Looks at how things are.",
            Self::Auditor => "Looks at how things are, and at who did what.",
        }
    }

    /// What it allows.
    pub fn permissions(self) -> BTreeSet<Permission> {
        use Permission::{ManageAdmins, ReadAudit, ReadEvents, ReadResources, ReadSessions};
        let all = Permission::ALL.iter().copied();
        match self {
            Self::Admin => all.collect(),
            Self::Operator => all.filter(|p| !matches!(p, ManageAdmins | ReadAudit)).collect(),
            Self::Viewer => [ReadResources, ReadSessions, ReadEvents].into(),
            Self::Auditor => [ReadResources, ReadSessions, ReadEvents, ReadAudit].into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_return_and_roles_grow() {
        for permission in Permission::ALL {
            assert_eq!(permission.as_str().parse(), Ok(*permission));
            assert!(permission.describe().ends_with('.'));
        }
        assert!("manage_everything".parse::<Permission>().is_err());
        let [admin, operator, viewer, auditor] = Role::ALL.map(Role::permissions);
        assert_eq!(admin.len(), Permission::ALL.len());
        assert!(viewer.is_subset(&operator) && viewer.is_subset(&auditor) && auditor.is_subset(&admin));
        assert!(!operator.contains(&Permission::ManageAdmins));
    }
}
