//! When an account is locked, and how long what belongs to it lasts.

use std::time::Duration;

use horizon_crds::AccountLimits;

/// The numbers that hold for accounts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AccountPolicy {
    /// How many failures in a row lock an account.
    pub threshold: u32,
    /// For how long, the first time; each further time in a row twice as long.
    pub lockout: Duration,
    /// The longest lockout.
    pub longest: Duration,
    /// After how long without a request a session ends.
    pub idle: Duration,
    /// After how long a session ends in any case.
    pub absolute: Duration,
    /// How many sessions an account has at most.
    pub sessions: usize,
    /// For how long a one-time password can be used.
    pub one_time: Duration,
    /// Whether everybody must set up one-time codes.
    pub require_totp: bool,
}

impl From<&AccountLimits> for AccountPolicy {
    fn from(limits: &AccountLimits) -> Self {
        Self {
            threshold: limits.lockout_threshold.into(),
            lockout: limits.lockout_duration.get(),
            longest: limits.longest_lockout.get(),
            idle: limits.session_idle.get(),
            absolute: limits.session_lifetime.get(),
            sessions: limits.sessions.into(),
            one_time: limits.one_time_password.get(),
            require_totp: limits.require_totp,
        }
    }
}

/// Where no policy says anything.
impl Default for AccountPolicy {
    fn default() -> Self {
        Self::from(&AccountLimits::default())
    }
}

/// For how long an account is locked by one more failure, if it is. `failures` counts those in a row, this one included;
/// `lockouts` those since the last success.
pub fn after_failure(policy: &AccountPolicy, failures: u32, lockouts: u32) -> Option<Duration> {
    let doubled = || policy.lockout.saturating_mul(2_u32.saturating_pow(lockouts)).min(policy.longest);
    (failures >= policy.threshold).then(doubled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lockouts_double_up_to_a_day() {
        let policy = AccountPolicy::default();
        assert_eq!(after_failure(&policy, 4, 0), None);
        let minutes =
            |failures, lockouts| after_failure(&policy, failures, lockouts).map(|d| d.as_secs() / 60);
        assert_eq!(minutes(5, 0), Some(15));
        assert_eq!(minutes(5, 1), Some(30));
        assert_eq!(minutes(5, 6), Some(960));
        assert_eq!(minutes(5, 7), Some(1440));
        assert_eq!(minutes(500, u32::MAX), Some(1440));
    }
}
