//! Which security policy holds where there are several. A pure function of the policies of a namespace.

use horizon_crds::{
    AccountLimits, AnomalyThresholds, Blocking, DetectionSpec, Lockout, Name, PayloadRules, RateLimits,
    RestLimits, SecurityPolicySpec, TimeSpan,
};

/// The policy that holds, of those of a namespace by name:
///
/// 1. Those of the highest `priority` count, the others do not.
/// 2. Of several of them, each number is the strictest: the fewest tries, the lowest thresholds, the longest windows and
///    lockouts, the shortest intervals. What is blocked without anybody asking is spared only where all of them spare it.
/// 3. Settings that have no order (`devices`, `identity`, …) are those of the first by name.
/// 4. `payload.patterns` are those of all policies of that priority together.
/// 5. `blockedNetworks` are those of all policies of the namespace, whatever their priority: who blocks a network is not
///    overruled by somebody who forgot it.
///
/// Without any, the defaults hold.
pub fn effective<'a>(
    policies: impl IntoIterator<Item = (&'a Name, &'a SecurityPolicySpec)>,
) -> SecurityPolicySpec {
    let mut all: Vec<_> = policies.into_iter().collect();
    all.sort_by_key(|(name, policy)| (std::cmp::Reverse(policy.priority), *name));
    let Some((_, first)) = all.first() else { return SecurityPolicySpec::default() };
    let mut result = (*first).clone();
    let highest = first.priority;
    for (_, policy) in all.iter().skip(1).filter(|(_, policy)| policy.priority == highest) {
        tighten(&mut result, policy);
    }
    let mut blocked: Vec<_> =
        all.iter().flat_map(|(_, policy)| policy.blocked_networks.iter().copied()).collect();
    blocked.sort_unstable();
    blocked.dedup();
    if all.len() > 1 {
        result.blocked_networks = blocked;
    }
    result
}

/// Whether a policy counts besides its blocked networks, and with which others, by name.
pub fn standing<'a>(
    name: &Name,
    policies: impl IntoIterator<Item = (&'a Name, &'a SecurityPolicySpec)>,
) -> Standing {
    let all: Vec<_> = policies.into_iter().collect();
    let highest = all.iter().map(|(_, policy)| policy.priority).max().unwrap_or(0);
    let (mine, others): (Vec<_>, Vec<_>) = all
        .into_iter()
        .filter(|(_, policy)| policy.priority == highest)
        .map(|(other, _)| other.clone())
        .partition(|other| other == name);
    match mine.is_empty() {
        true => Standing::Overruled(others),
        false => Standing::InForce(others),
    }
}

/// Where a policy stands among those of its namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It holds, together with these.
    InForce(Vec<Name>),
    /// These hold instead: their priority is higher.
    Overruled(Vec<Name>),
}

fn lower<T: Ord + Copy>(a: &mut T, b: T) {
    *a = (*a).min(b);
}

fn longer(a: &mut TimeSpan, b: TimeSpan) {
    if b.get() > a.get() {
        *a = b;
    }
}

fn shorter(a: &mut TimeSpan, b: TimeSpan) {
    if b.get() < a.get() {
        *a = b;
    }
}

fn tighten_accounts(result: &mut AccountLimits, other: &AccountLimits) {
    let AccountLimits {
        lockout_threshold,
        lockout_duration,
        longest_lockout,
        session_idle,
        session_lifetime,
        sessions,
        one_time_password,
        require_totp,
    } = result;
    lower(lockout_threshold, other.lockout_threshold);
    longer(lockout_duration, other.lockout_duration);
    longer(longest_lockout, other.longest_lockout);
    shorter(session_idle, other.session_idle);
    shorter(session_lifetime, other.session_lifetime);
    lower(sessions, other.sessions);
    shorter(one_time_password, other.one_time_password);
    *require_totp |= other.require_totp;
}

fn tighten_payload(result: &mut PayloadRules, other: &PayloadRules) {
    let PayloadRules {
        max_bytes,
        max_depth,
        max_values,
        max_text,
        refuse_control_characters,
        patterns,
        block_after,
    } = result;
    lower(max_bytes, other.max_bytes);
    lower(max_depth, other.max_depth);
    lower(max_values, other.max_values);
    lower(max_text, other.max_text);
    *refuse_control_characters |= other.refuse_control_characters;
    patterns.extend(other.patterns.iter().cloned());
    patterns.sort_unstable();
    patterns.dedup();
    lower(block_after, other.block_after);
}

fn tighten(result: &mut SecurityPolicySpec, other: &SecurityPolicySpec) {
    let RateLimits { registrations_per_minute, enrolments_per_minute, handshakes_per_minute } =
        &mut result.rate_limits;
    lower(registrations_per_minute, other.rate_limits.registrations_per_minute);
    lower(enrolments_per_minute, other.rate_limits.enrolments_per_minute);
    lower(handshakes_per_minute, other.rate_limits.handshakes_per_minute);
    let Lockout { threshold, window, duration } = &mut result.lockout;
    lower(threshold, other.lockout.threshold);
    longer(window, other.lockout.window);
    longer(duration, other.lockout.duration);
    tighten_accounts(&mut result.accounts, &other.accounts);
    let RestLimits {
        requests_per_address,
        sign_ins_per_address,
        requests_per_user,
        reads_per_endpoint,
        changes_per_endpoint,
    } = &mut result.rest_limits;
    lower(requests_per_address, other.rest_limits.requests_per_address);
    lower(sign_ins_per_address, other.rest_limits.sign_ins_per_address);
    lower(requests_per_user, other.rest_limits.requests_per_user);
    lower(reads_per_endpoint, other.rest_limits.reads_per_endpoint);
    lower(changes_per_endpoint, other.rest_limits.changes_per_endpoint);
    tighten_payload(&mut result.payload, &other.payload);
    shorter(&mut result.challenge_interval, other.challenge_interval);
    shorter(&mut result.heartbeat_interval, other.heartbeat_interval);
    let AnomalyThresholds { missed_heartbeats, failed_challenges, violations_per_minute } =
        &mut result.anomaly_thresholds;
    lower(missed_heartbeats, other.anomaly_thresholds.missed_heartbeats);
    lower(failed_challenges, other.anomaly_thresholds.failed_challenges);
    lower(violations_per_minute, other.anomaly_thresholds.violations_per_minute);
    let DetectionSpec { minimum_confidence, flag_confidence, blocking } = &mut result.detection;
    lower(minimum_confidence, other.detection.minimum_confidence);
    lower(flag_confidence, other.detection.flag_confidence);
    let Blocking { enabled, failures, window, duration, spared } = blocking;
    *enabled |= other.detection.blocking.enabled;
    lower(failures, other.detection.blocking.failures);
    longer(window, other.detection.blocking.window);
    longer(duration, other.detection.blocking.duration);
    spared.retain(|range| other.detection.blocking.spared.contains(range));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    fn policy(priority: u16, edit: impl FnOnce(&mut SecurityPolicySpec)) -> SecurityPolicySpec {
        let mut policy = SecurityPolicySpec { priority, ..SecurityPolicySpec::default() };
        edit(&mut policy);
        policy
    }

    #[test]
    fn the_highest_priority_holds_then_the_strictest() {
        let (a, b, c) = (name("a"), name("b"), name("c"));
        let loose = policy(0, |p| {
            p.lockout.threshold = 2;
            p.blocked_networks = vec!["192.0.2.0/24".parse().unwrap()];
        });
        let one = policy(5, |p| {
            p.lockout.threshold = 7;
            p.accounts.require_totp = false;
            p.payload.patterns = vec!["one*".parse().unwrap()];
            p.payload.max_text = 300;
            p.accounts.session_idle = TimeSpan::from_secs(60);
            p.rest_limits.requests_per_user = 5;
            p.rate_limits.enrolments_per_minute = 100;
            p.heartbeat_interval = TimeSpan::from_secs(10);
            p.blocked_networks = vec!["198.51.100.0/24".parse().unwrap()];
        });
        let two = policy(5, |p| {
            p.lockout.threshold = 9;
            p.accounts.longest_lockout = TimeSpan::from_secs(7 * 86_400);
            p.rest_limits.requests_per_address = 4;
            p.payload.patterns = vec!["two*".parse().unwrap(), "one*".parse().unwrap()];
            p.payload.refuse_control_characters = false;
            p.rate_limits.enrolments_per_minute = 3;
            p.lockout.duration = TimeSpan::from_secs(86_400);
            p.detection.blocking.spared.clear();
        });
        let held = effective([(&a, &loose), (&b, &one), (&c, &two)]);
        assert_eq!((held.lockout.threshold, held.rate_limits.enrolments_per_minute), (7, 3));
        assert_eq!(held.heartbeat_interval, TimeSpan::from_secs(10));
        assert_eq!(held.lockout.duration, TimeSpan::from_secs(86_400));
        assert!(held.detection.blocking.spared.is_empty());
        assert!(held.accounts.require_totp, "one of them requires it");
        let patterns: Vec<String> = held.payload.patterns.iter().map(ToString::to_string).collect();
        assert_eq!(patterns, ["one*", "two*"]);
        assert!(held.payload.refuse_control_characters && held.payload.max_text == 300);
        assert_eq!(held.accounts.session_idle, TimeSpan::from_secs(60));
        assert_eq!(held.accounts.longest_lockout, TimeSpan::from_secs(7 * 86_400));
        assert_eq!((held.rest_limits.requests_per_user, held.rest_limits.requests_per_address), (5, 4));
        // Blocked networks of all of them.
        assert_eq!(held.blocked_networks.len(), 2);
        let all = || [(&a, &loose), (&b, &one), (&c, &two)];
        assert_eq!(standing(&a, all()), Standing::Overruled(vec![b.clone(), c.clone()]));
        assert_eq!(standing(&b, all()), Standing::InForce(vec![c.clone()]));
        assert_eq!(effective([]), SecurityPolicySpec::default());
        assert_eq!(effective([(&a, &loose)]), loose);
    }

    proptest! {
        #[test]
        fn order_does_not_matter_and_nothing_becomes_looser(
            settings in prop::collection::vec((0_u16..3, 1_u16..100, 1_u32..1000, 1_u32..1000), 1..6),
            turn in 0_usize..6,
        ) {
            let named: Vec<(Name, SecurityPolicySpec)> = settings.iter().enumerate().map(|(i, (priority, threshold, rate, seconds))| {
                (name(&format!("p{i}")), policy(*priority, |p| {
                    p.lockout.threshold = *threshold;
                    p.rate_limits.handshakes_per_minute = *rate;
                    p.lockout.duration = TimeSpan::from_secs(*seconds);
                }))
            }).collect();
            let held = effective(named.iter().map(|(n, p)| (n, p)));
            let mut turned = named.clone();
            turned.rotate_left(turn % named.len());
            prop_assert_eq!(&held, &effective(turned.iter().map(|(n, p)| (n, p))));
            let highest = named.iter().map(|(_, p)| p.priority).max().unwrap();
            for (name, policy) in named.iter().filter(|(_, p)| p.priority == highest) {
                prop_assert!(held.lockout.threshold <= policy.lockout.threshold);
                prop_assert!(held.rate_limits.handshakes_per_minute <= policy.rate_limits.handshakes_per_minute);
                prop_assert!(held.lockout.duration.get() >= policy.lockout.duration.get());
                let standing = standing(name, named.iter().map(|(n, p)| (n, p)));
                prop_assert!(matches!(standing, Standing::InForce(_)));
            }
        }
    }
}
