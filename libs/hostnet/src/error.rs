//! Why the kernel refused, as a sentence that says what to do.

use std::{fmt, io};

use thiserror::Error;

/// An operation on the network configuration that failed.
#[derive(Debug, Error)]
#[error("cannot {action} {object}: {cause}")]
pub struct NetError {
    action: &'static str,
    object: String,
    cause: Errno,
}

impl NetError {
    pub(crate) fn new(action: &'static str, object: impl fmt::Display, cause: Errno) -> Self {
        Self { action, object: object.to_string(), cause }
    }

    pub(crate) fn netlink(action: &'static str, object: impl fmt::Display, error: &rtnetlink::Error) -> Self {
        let cause = match error {
            rtnetlink::Error::NetlinkError(e) => Errno::Kernel(e.raw_code().abs()),
            other => Errno::Protocol(other.to_string()),
        };
        Self::new(action, object, cause)
    }

    pub(crate) fn io(action: &'static str, object: impl fmt::Display, error: &io::Error) -> Self {
        let cause = error.raw_os_error().map_or_else(|| Errno::Protocol(error.to_string()), Errno::Kernel);
        Self::new(action, object, cause)
    }

    /// What the kernel said.
    pub fn cause(&self) -> &Errno {
        &self.cause
    }

    /// Whether privileges are missing.
    pub fn is_permission(&self) -> bool {
        self.cause.is(rustix::io::Errno::PERM) || self.cause.is(rustix::io::Errno::ACCESS)
    }

    /// Whether the link, address, route or rule is not there.
    pub fn is_absent(&self) -> bool {
        use rustix::io::Errno as E;
        [E::NODEV, E::ADDRNOTAVAIL, E::SRCH, E::NOENT, E::NXIO].iter().any(|e| self.cause.is(*e))
    }

    pub(crate) fn is_present(&self) -> bool {
        self.cause.is(rustix::io::Errno::EXIST)
    }
}

/// The kernel's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Errno {
    /// An error number of the kernel, positive.
    Kernel(i32),
    /// The conversation with the kernel broke down.
    Protocol(String),
}

impl Errno {
    fn is(&self, errno: rustix::io::Errno) -> bool {
        *self == Self::Kernel(errno.raw_os_error())
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use rustix::io::Errno as E;
        match self {
            Self::Protocol(text) => f.write_str(text),
            Self::Kernel(number) => {
                write!(f, "{}", io::Error::from_raw_os_error(*number))?;
                match E::from_raw_os_error(*number) {
                    E::PERM | E::ACCESS => f.write_str("; run it as root, or give it CAP_NET_ADMIN"),
                    E::NODEV => f.write_str("; the link does not exist"),
                    E::NETUNREACH | E::HOSTUNREACH => {
                        f.write_str("; the gateway is not reachable through any link that is up")
                    }
                    E::OPNOTSUPP | E::AFNOSUPPORT => {
                        f.write_str("; this kernel was built without support for it")
                    }
                    _ => Ok(()),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_privileges_name_their_remedy() {
        let cause = Errno::Kernel(rustix::io::Errno::PERM.raw_os_error());
        let error = NetError::new("add the address", "10.0.0.1/24 on hzn0", cause);
        assert!(error.is_permission());
        let text = error.to_string();
        assert!(text.starts_with("cannot add the address 10.0.0.1/24 on hzn0: "), "{text}");
        assert!(text.contains("CAP_NET_ADMIN"), "{text}");
    }
}
