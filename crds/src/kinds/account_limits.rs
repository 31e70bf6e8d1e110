//! What holds for accounts of administrators and for the REST API: a part of `SecurityPolicy`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Issues, TimeSpan};

/// What holds for the accounts of administrators. Accounts belong to no namespace: the policies of the namespace `default`
/// hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[schemars(inline)]
pub struct AccountLimits {
    /// How many wrong passwords or one-time codes in a row lock an account.
    #[schemars(range(min = 1, max = 100))]
    pub lockout_threshold: u16,
    /// For how long it is locked the first time. Each further time in a row it is twice as long.
    #[schemars(extend("x-horizon-min" = "1s", "x-horizon-max" = "30d"))]
    pub lockout_duration: TimeSpan,
    /// The longest that it is locked.
    #[schemars(extend("x-horizon-min" = "1s", "x-horizon-max" = "30d"))]
    pub longest_lockout: TimeSpan,
    /// After how long without a request a session ends.
    #[schemars(extend("x-horizon-min" = "1m", "x-horizon-max" = "24h"))]
    pub session_idle: TimeSpan,
    /// After how long a session ends in any case.
    #[schemars(extend("x-horizon-min" = "1m", "x-horizon-max" = "30d"))]
    pub session_lifetime: TimeSpan,
    /// How many sessions an account has at most; the one that was used least lately ends for another.
    #[schemars(range(min = 1, max = 100))]
    pub sessions: u16,
    /// For how long a one-time password can be used.
    #[schemars(extend("x-horizon-min" = "1m", "x-horizon-max" = "30d"))]
    pub one_time_password: TimeSpan,
    /// Whether everybody must set up one-time codes before anything else. Who has set them up needs one in any case.
    pub require_totp: bool,
}

impl Default for AccountLimits {
    fn default() -> Self {
        Self {
            lockout_threshold: 5,
            lockout_duration: TimeSpan::from_secs(15 * 60),
            longest_lockout: TimeSpan::from_secs(24 * 3600),
            session_idle: TimeSpan::from_secs(30 * 60),
            session_lifetime: TimeSpan::from_secs(12 * 3600),
            sessions: 16,
            one_time_password: TimeSpan::from_secs(72 * 3600),
            require_totp: true,
        }
    }
}

impl AccountLimits {
    pub(super) fn check(&self, issues: &mut Issues) {
        if self.longest_lockout.get() < self.lockout_duration.get() {
            let message = format!(
                "longestLockout is {}, below lockoutDuration, which is {}",
                self.longest_lockout, self.lockout_duration
            );
            issues.add("accounts.longestLockout", message, "write at least lockoutDuration");
        }
        if self.session_lifetime.get() < self.session_idle.get() {
            let message = format!(
                "sessionLifetime is {}, below sessionIdle, which is {}",
                self.session_lifetime, self.session_idle
            );
            issues.add("accounts.sessionLifetime", message, "write at least sessionIdle");
        }
    }
}

/// How often the REST API may be asked, per minute. Who asks belongs to no namespace: the policies of the namespace `default`
/// hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[schemars(inline)]
pub struct RestLimits {
    /// Requests of one source address (IPv4) or /64 (IPv6).
    #[schemars(range(min = 1, max = 1_000_000))]
    pub requests_per_address: u32,
    /// Attempts of one source address to sign in, to register or to enrol.
    #[schemars(range(min = 1, max = 100_000))]
    pub sign_ins_per_address: u32,
    /// Requests of one account or device.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub requests_per_user: u32,
    /// Requests to one endpoint that reads, from anybody.
    #[schemars(range(min = 1, max = 10_000_000))]
    pub reads_per_endpoint: u32,
    /// Requests to one endpoint that changes something, from anybody.
    #[schemars(range(min = 1, max = 10_000_000))]
    pub changes_per_endpoint: u32,
}

impl Default for RestLimits {
    fn default() -> Self {
        Self {
            requests_per_address: 600,
            sign_ins_per_address: 10,
            requests_per_user: 600,
            reads_per_endpoint: 12_000,
            changes_per_endpoint: 12_000,
        }
    }
}
