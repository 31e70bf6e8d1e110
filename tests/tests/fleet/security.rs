//! Keys and tokens when many try at once: what `horizon-bench security` measures, smaller.

use std::time::Duration;

use horizon_tests::fleet::rotation::{RotationOptions, rotate};
use horizon_tests::fleet::security::{FloodOptions, RevokeOptions, flood, one_token, revoke};
use horizon_tests::products::Programs;

use crate::LIMIT;

#[test]
fn of_many_who_use_one_token_at_once_one_registers() {
    const CALLERS: usize = 500;
    let programs = Programs::for_tests().unwrap();
    for postgres in [false, true] {
        let one = one_token(&programs.controller, CALLERS, postgres, LIMIT).unwrap();
        assert_eq!((one.successes, one.refused), (1, CALLERS as u64 - 1), "{one:?}");
    }
}

#[test]
fn a_flood_of_wrong_keys_lets_nobody_in_and_keeps_nobody_out() {
    let programs = Programs::for_tests().unwrap();
    let options = FloodOptions { at_once: 16, keys: 4, time: Duration::from_secs(3), postgres: false };
    let flood = flood(&programs.controller, options, LIMIT).unwrap();
    assert!(flood.wrong > 0.0, "{flood:?}");
    assert_eq!((flood.let_in, flood.honest_failed, flood.bystanders_lost), (0, 0, 0), "{flood:?}");
    assert!(!flood.honest.is_empty() && !flood.bystanders.is_empty(), "{flood:?}");
    // A wrong key is told by its tag, before the hash that takes 19 MiB.
    assert!(flood.memory < flood.memory_before + 200.0, "{flood:?}");
}

#[test]
fn every_session_of_a_revoked_key_ends_at_the_device_and_at_the_appliance() {
    let programs = Programs::for_tests().unwrap();
    let options = RevokeOptions { appliances: 5, sessions: 40, single: 4, postgres: true };
    let done = revoke(&programs.controller, options, LIMIT).unwrap();
    assert_eq!((done.single.len(), done.together.len()), (4, 36));
}

#[test]
fn no_flow_breaks_while_keys_of_every_kind_rotate_under_a_fleet() {
    let programs = Programs::for_tests().unwrap();
    let options = RotationOptions { simulated: 40, real: 2, overlap: Duration::from_secs(2) };
    let rotations = rotate(programs, options, LIMIT).unwrap();
    assert_eq!(rotations.len(), 4);
    for rotated in rotations {
        assert!(rotated.broken.is_empty(), "{rotated:?}");
    }
}
