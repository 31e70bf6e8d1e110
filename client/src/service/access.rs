//! Who may speak to the service: root, the configured owner, and members of the configured group. The socket's mode
//! keeps others out; the kernel's word about the peer (`SO_PEERCRED`) is checked again for each connection.

use std::{ffi::CString, fs, io, os::unix::fs::PermissionsExt, path::Path};

use horizon_client_core::ipc::Request;
use nix::unistd::{Gid, Group, Uid, User, getgrouplist};
use thiserror::Error;

/// A user or group that does not exist.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("there is no {kind} '{name}' on this machine")]
pub(super) struct UnknownName {
    kind: &'static str,
    name: String,
}

/// Who may speak to the service.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Access {
    owner: Option<Uid>,
    group: Option<Gid>,
}

impl Access {
    /// Access for root, and for a user and the members of a group if given, by name or number.
    pub(super) fn new(owner: Option<&str>, group: Option<&str>) -> Result<Self, UnknownName> {
        let owner = owner.map(user_id).transpose()?;
        let group = group.map(group_id).transpose()?;
        Ok(Self { owner, group })
    }

    /// Whether a peer may speak.
    pub(super) fn allows(&self, uid: u32, gid: u32) -> bool {
        let uid = Uid::from_raw(uid);
        uid.is_root()
            || self.owner == Some(uid)
            || self.group.is_some_and(|group| group == Gid::from_raw(gid) || is_member(uid, group))
    }

    /// Whether a peer that may speak may ask this. A personal key adds devices in its user's name: who may only use the
    /// connection is not given it.
    pub(super) fn grants(&self, uid: u32, request: &Request) -> bool {
        let uid = Uid::from_raw(uid);
        match request {
            Request::TakeKey | Request::KeyTaken { .. } => uid.is_root() || self.owner == Some(uid),
            _ => true,
        }
    }

    /// Sets the owner and mode of the socket.
    pub(super) fn apply(&self, socket: &Path) -> io::Result<()> {
        if self.owner.is_some() || self.group.is_some() {
            nix::unistd::chown(socket, self.owner, self.group)?;
        }
        let mode = if self.group.is_some() { 0o660 } else { 0o600 };
        fs::set_permissions(socket, fs::Permissions::from_mode(mode))
    }
}

fn user_id(name: &str) -> Result<Uid, UnknownName> {
    if let Ok(number) = name.parse() {
        return Ok(Uid::from_raw(number));
    }
    let found = User::from_name(name).ok().flatten().map(|u| u.uid);
    found.ok_or_else(|| UnknownName { kind: "user", name: name.into() })
}

fn group_id(name: &str) -> Result<Gid, UnknownName> {
    if let Ok(number) = name.parse() {
        return Ok(Gid::from_raw(number));
    }
    let found = Group::from_name(name).ok().flatten().map(|g| g.gid);
    found.ok_or_else(|| UnknownName { kind: "group", name: name.into() })
}

fn is_member(uid: Uid, group: Gid) -> bool {
    let Ok(Some(user)) = User::from_uid(uid) else { return false };
    let Ok(name) = CString::new(user.name) else { return false };
    getgrouplist(&name, user.gid).is_ok_and(|groups| groups.contains(&group))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_the_owner_and_the_group_may_and_others_may_not() {
        let nobody_special = Access::new(None, None).unwrap();
        assert!(nobody_special.allows(0, 0));
        assert!(!nobody_special.allows(1000, 0));
        let owned = Access::new(Some("1000"), Some("2000")).unwrap();
        assert!(owned.allows(1000, 1));
        assert!(owned.allows(1001, 2000));
        assert!(!owned.allows(1001, 1001));
        assert!(owned.allows(0, 0));
    }

    #[test]
    fn members_of_the_group_are_not_given_the_personal_key() {
        let access = Access::new(Some("1000"), Some("2000")).unwrap();
        assert!(access.allows(1001, 2000) && access.grants(1001, &Request::Status));
        assert!(!access.grants(1001, &Request::TakeKey));
        let id = horizon_model::KeyId(uuid::Uuid::from_u128(1));
        assert!(!access.grants(1001, &Request::KeyTaken { id }));
        assert!(access.grants(1000, &Request::TakeKey) && access.grants(0, &Request::TakeKey));
        assert!(!Access::new(None, Some("2000")).unwrap().grants(1001, &Request::TakeKey));
    }

    #[test]
    fn names_are_looked_up() {
        assert_eq!(Access::new(Some("root"), None).unwrap().owner, Some(Uid::from_raw(0)));
        let error = Access::new(Some("no-such-user-here"), None).unwrap_err();
        assert_eq!(error.to_string(), "there is no user 'no-such-user-here' on this machine");
    }
}
