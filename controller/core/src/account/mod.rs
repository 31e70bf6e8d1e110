//! Accounts of administrators: what they may do, which passwords will do, and when they are locked out.

mod lockout;
mod password;
mod role;

pub use lockout::{AccountPolicy, after_failure};
pub use password::{MAX_PASSWORD, MIN_PASSWORD, PasswordIssue, check_password};
pub use role::{Permission, Role, UnknownPermission};
