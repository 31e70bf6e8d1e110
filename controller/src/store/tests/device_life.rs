//! What becomes of devices: blocked, doubted, forgotten, renamed; on another machine; and what they share and report.

use horizon_controller_core::{
    Denial, DeviceStanding, Difference, GrantFacts, grant,
    live_check::{Answers, Said},
};
use horizon_crds::FingerprintChange;
use horizon_model::{DeviceId, KeyId, PublicKey, SessionUsage, TaggedSecret};

use super::kit::{Kit, at, conformance, device_info};
use crate::store::{
    ClientReport, DeviceRecord, EndReason, EndedBy, EnrolError, EventFilter, NewSession, SessionError,
    SessionOutcome, SessionRow, SessionStatus, WrappedKey,
};

struct Scene {
    kit: Kit,
    key: KeyId,
    secret: TaggedSecret,
}

impl Scene {
    async fn new() -> Self {
        let kit = Kit::with_basics().await;
        kit.register(PublicKey([200; 32])).await;
        let (key, secret) = kit.personal_key().await;
        Self { kit, key, secret }
    }

    async fn enrol(&self, n: u8, fingerprint: &str) -> Result<DeviceId, EnrolError> {
        let mut info = device_info("laptop");
        info.hardware_fingerprint = fingerprint.into();
        let key = PublicKey([n; 32]);
        Ok(self.kit.store.enrol_device(self.key, &self.secret, key, &info, at(1)).await?.device)
    }

    async fn record(&self, n: u8) -> Option<DeviceRecord> {
        self.kit.store.device_by_key(PublicKey([n; 32])).await.unwrap()
    }

    async fn decide(&self, name: &str, device: DeviceId, decision: &str) {
        let more = if decision == "rename" { "newName = 'Ana at work'\n" } else { "" };
        let toml = format!(
            "apiVersion = 'horizon.dev/v1alpha1'\nkind = 'DeviceDecision'\nmetadata.name = '{name}'\n[spec]\n\
             device = '{device}'\ndecision = '{decision}'\nreason = 'because'\n{more}"
        );
        self.kit.put(&toml).await;
    }

    async fn effective(&self, name: &str) -> bool {
        let uid = self.kit.uid("DeviceDecision", name).await;
        self.kit.store.decision_facts(uid).await.unwrap().effective_at.is_some()
    }

    async fn ask(&self, device: &DeviceRecord) -> Result<SessionOutcome, SessionError> {
        let server = self.kit.server().await;
        let grant = grant(&self.kit.index().await, GrantFacts::POLICY_ONLY, device.user, server).unwrap();
        let wish = NewSession { device, grant: &grant, client: "198.51.100.9".parse().unwrap() };
        self.kit.store.request_session(&wish, at(2)).await
    }

    async fn active(&self, device: &DeviceRecord) -> Box<SessionRow> {
        let SessionOutcome::Requested { session, .. } = self.ask(device).await.unwrap() else {
            panic!("no session")
        };
        let server = self.kit.server().await;
        let lease = self.kit.lease(server).await;
        let held = [session.id].into();
        self.kit.store.note_sessions_applied(server, lease, &held, &[], at(3)).await.unwrap();
        session
    }

    async fn events(&self, source: DeviceId) -> Vec<String> {
        let filter = EventFilter { source: Some(source.0), limit: 10 };
        let events = self.kit.store.list_security_events(&filter).await.unwrap();
        events.into_iter().map(|event| event.kind).collect()
    }
}

async fn a_blocked_device_is_refused_until_it_is_allowed() {
    let scene = Scene::new().await;
    let id = scene.enrol(1, "a").await.unwrap();
    let before = scene.record(1).await.unwrap();
    scene.decide("no", id, "block").await;
    let blocked = scene.record(1).await.unwrap();
    assert_eq!((blocked.standing(at(2)), blocked.reason.as_str()), (DeviceStanding::Blocked, "because"));
    // Neither with what was read of it before, nor by enrolling again.
    let asked = scene.ask(&before).await;
    assert!(matches!(asked, Err(SessionError::Device(DeviceStanding::Blocked))), "{asked:?}");
    assert!(matches!(scene.enrol(1, "a").await, Err(EnrolError::DeviceBlocked(why)) if why == "because"));
    // Deleting the record undoes nothing; another does.
    scene.kit.remove("DeviceDecision", "no").await;
    assert_eq!(scene.record(1).await.unwrap().standing(at(2)), DeviceStanding::Blocked);
    scene.decide("yes", id, "allow").await;
    assert!(scene.effective("yes").await);
    let allowed = scene.record(1).await.unwrap();
    assert_eq!(allowed.standing(at(2)), DeviceStanding::Good);
    assert!(matches!(scene.ask(&allowed).await, Ok(SessionOutcome::Requested { .. })));
    assert_eq!(scene.events(id).await, ["device_allowed", "device_blocked"]);
    let audited = scene.kit.store.list_audit_of(&id.to_string(), 10).await.unwrap();
    let actions: Vec<_> = audited.iter().map(|entry| entry.action.as_str()).collect();
    assert_eq!(actions, ["allow", "block", "enrol"]);
    assert_eq!(audited[1].new.as_ref().unwrap()["status"], "blocked");
}

async fn what_was_revoked_is_not_allowed_again() {
    let scene = Scene::new().await;
    let id = scene.enrol(1, "a").await.unwrap();
    scene
        .kit
        .put(&format!(
            "apiVersion = 'horizon.dev/v1alpha1'\nkind = 'Revocation'\nmetadata.name = 'lost'\n[spec]\nreason = 'lost'\n\
             target.kind = 'Device'\ntarget.name = '{id}'\n"
        ))
        .await;
    for decision in ["allow", "forget", "rename"] {
        scene.decide(decision, id, decision).await;
        assert!(!scene.effective(decision).await, "{decision}");
    }
    assert_eq!(scene.record(1).await.unwrap().standing(at(2)), DeviceStanding::Revoked);
}

async fn a_forgotten_device_must_enrol_again_and_leaves_room() {
    let scene = Scene::new().await;
    let one =
        "apiVersion = 'horizon.dev/v1alpha1'\nkind = 'User'\nmetadata.name = 'ana'\nspec.deviceLimit = 1\n";
    scene.kit.put(one).await;
    let id = scene.enrol(1, "a").await.unwrap();
    let session = scene.active(&scene.record(1).await.unwrap()).await;
    scene.decide("gone", id, "forget").await;
    assert!(scene.record(1).await.is_none());
    let row = scene.kit.store.live_session(session.id).await.unwrap().unwrap();
    assert_eq!(row.standing(at(2)), DeviceStanding::Forgotten, "so that its session ends");
    let again = scene.enrol(1, "a").await.unwrap();
    assert_ne!(again, id, "it is another device now");
    // A device that is only doubted still counts.
    scene.decide("odd", again, "suspect").await;
    assert!(matches!(scene.enrol(2, "b").await, Err(EnrolError::TooMany { limit: 1, .. })));
}

async fn a_key_on_another_machine_is_noticed_once_and_doubted_by_policy() {
    let scene = Scene::new().await;
    let id = scene.enrol(1, "machine-a").await.unwrap();
    let note = async |fingerprint: &str, policy| {
        let mut info = device_info("laptop");
        info.hardware_fingerprint = fingerprint.into();
        scene.kit.store.note_machine(id, &info, "203.0.113.9".parse().unwrap(), policy, at(2)).await.unwrap()
    };
    assert!(!note("machine-a", FingerprintChange::Suspect).await);
    assert!(!note("", FingerprintChange::Suspect).await, "what is not known says nothing");
    assert!(note("machine-b", FingerprintChange::Record).await);
    assert!(!scene.record(1).await.unwrap().traits.suspicious, "the policy only records");
    assert!(note("machine-c", FingerprintChange::Suspect).await);
    assert!(!note("machine-c", FingerprintChange::Suspect).await, "once");
    let doubted = scene.record(1).await.unwrap();
    assert!(doubted.traits.suspicious);
    let index = scene.kit.index().await;
    let facts = GrantFacts { traits: Some(&doubted.traits), ..GrantFacts::POLICY_ONLY };
    let server = scene.kit.server().await;
    assert_eq!(grant(&index, facts, doubted.user, server), Err(Denial::DeviceSuspicious));
    assert_eq!(scene.events(id).await, ["device_machine_changed", "device_machine_changed"]);
    // Whoever allows it takes the machine it is on now for its machine.
    scene.decide("fine", id, "allow").await;
    assert!(!note("machine-c", FingerprintChange::Suspect).await);
    let view = scene.kit.store.device(id).await.unwrap().unwrap();
    assert_eq!((view.status.as_str(), view.fingerprint.as_str()), ("active", "machine-c"));
    assert_eq!(view.other_fingerprint, None);
}

async fn a_device_that_became_suspicious_meanwhile_is_seen_in_the_transaction() {
    let scene = Scene::new().await;
    let id = scene.enrol(1, "a").await.unwrap();
    let before = scene.record(1).await.unwrap();
    scene.decide("odd", id, "suspect").await;
    let asked = scene.ask(&before).await;
    assert!(matches!(asked, Err(SessionError::Device(DeviceStanding::Suspicious))), "{asked:?}");
    // Where the policy allows it knowingly, it connects.
    let now = scene.record(1).await.unwrap();
    assert!(matches!(scene.ask(&now).await, Ok(SessionOutcome::Requested { .. })));
}

async fn a_given_name_outlives_what_the_device_calls_itself() {
    let scene = Scene::new().await;
    let id = scene.enrol(1, "a").await.unwrap();
    scene.decide("name", id, "rename").await;
    scene.enrol(1, "a").await.unwrap();
    assert_eq!(scene.record(1).await.unwrap().name, "Ana at work");
    let session = scene.active(&scene.record(1).await.unwrap()).await;
    let history = scene.kit.store.sessions_of_device(id, 10).await.unwrap();
    assert_eq!((history.len(), history[0].id, history[0].device.as_str()), (1, session.id, "Ana at work"));
}

async fn ends_that_count_differently_raise_one_event() {
    let scene = Scene::new().await;
    scene.enrol(1, "a").await.unwrap();
    let device = scene.record(1).await.unwrap();
    let session = scene.active(&device).await;
    let server = scene.kit.server().await;
    let lease = scene.kit.lease(server).await;
    let appliance = async |sent: u64, received: u64, now: i64| {
        let usage = SessionUsage {
            session: session.id,
            connected: true,
            remote: None,
            bytes_sent: sent,
            bytes_received: received,
            rtt_micros: 0,
        };
        scene.kit.store.note_usage(server, lease, &[usage], at(now)).await.unwrap();
    };
    let client = async |sent: u64, received: u64, now: i64| {
        let report = ClientReport { session: session.id, sent, received };
        scene.kit.store.note_client_report(device.id, &report, at(now)).await.unwrap()
    };
    const M: u64 = 1 << 20;
    appliance(0, 10 * M, 10).await;
    assert_eq!(client(10 * M, 0, 11).await, None);
    appliance(0, 20 * M, 12).await;
    assert_eq!(client(20 * M, 0, 13).await, None);
    // A client that was started anew counts from 0, and its totals go on.
    appliance(0, 25 * M, 14).await;
    assert_eq!(client(5 * M, 0, 15).await, None);
    // The appliance keeps most of it to itself.
    assert_eq!(client(80 * M, 0, 16).await, None, "it has not reported since");
    appliance(0, 26 * M, 17).await;
    assert_eq!(client(90 * M, 0, 18).await, Some(Difference::LessFromClient));
    assert_eq!(client(99 * M, 0, 19).await, None, "once");
    let stranger = ClientReport { session: session.id, sent: 1 << 40, received: 0 };
    let other = DeviceId(uuid::Uuid::from_u128(9));
    assert_eq!(scene.kit.store.note_client_report(other, &stranger, at(20)).await.unwrap(), None);
    let filter = EventFilter { source: Some(session.id.0), limit: 10 };
    assert_eq!(scene.kit.store.list_security_events(&filter).await.unwrap().len(), 1);
    assert!(scene.kit.store.silent_sessions(at(17)).await.unwrap().is_empty());
    assert_eq!(scene.kit.store.silent_sessions(at(18)).await.unwrap()[0].id, session.id);
}

async fn what_both_ends_say_of_a_session_is_known_since_they_were_asked() {
    let scene = Scene::new().await;
    scene.enrol(1, "a").await.unwrap();
    let device = scene.record(1).await.unwrap();
    let session = scene.active(&device).await;
    let (store, server) = (&scene.kit.store, scene.kit.server().await);
    let lease = scene.kit.lease(server).await;
    let said = async |since: i64| {
        let both = store.said_since(session.id, at(since)).await.unwrap().unwrap();
        assert_eq!(both.device, device.id);
        (both.appliance, both.device_said, both.device_reports)
    };
    assert_eq!(said(0).await, (Said::Nothing, Said::Nothing, false));
    let report = ClientReport { session: session.id, sent: 0, received: 0 };
    store.note_client_report(device.id, &report, at(10)).await.unwrap();
    for (connected, time) in [(true, 11), (false, 13)] {
        let usage = SessionUsage {
            session: session.id,
            connected,
            remote: None,
            bytes_sent: 0,
            bytes_received: 0,
            rtt_micros: 0,
        };
        store.note_usage(server, lease, &[usage], at(time)).await.unwrap();
        let expected = if connected { Said::Connected } else { Said::Not };
        assert_eq!(said(10).await, (expected, Said::Connected, true));
        assert_eq!(said(time + 1).await, (Said::Nothing, Said::Nothing, true));
    }
    // The newest word holds; that of another device is none.
    store.note_client_absent(DeviceId(uuid::Uuid::from_u128(9)), session.id, at(20)).await.unwrap();
    assert_eq!(said(10).await.1, Said::Connected);
    store.note_client_absent(device.id, session.id, at(20)).await.unwrap();
    assert_eq!((said(10).await.1, said(20).await.1, said(21).await.1), (Said::Not, Said::Not, Said::Nothing));
    store.note_client_report(device.id, &report, at(30)).await.unwrap();
    assert_eq!(said(10).await.1, Said::Connected);
    store.note_look(session.id, Answers::Agree, at(31)).await.unwrap();
    let over = EndReason { status: SessionStatus::Terminated, by: EndedBy::Admin, reason: "a test".into() };
    store.end_session(session.id, &over, at(40)).await.unwrap().unwrap();
    assert_eq!(store.said_since(session.id, at(0)).await.unwrap(), None);
}

async fn settings_go_forward_and_only_between_the_devices_of_their_user() {
    let scene = Scene::new().await;
    let first = scene.enrol(1, "a").await.unwrap();
    let second = scene.enrol(2, "b").await.unwrap();
    let user = scene.record(1).await.unwrap().user;
    let store = &scene.kit.store;
    let key = |device, n: u8| WrappedKey { device, key_id: [n; 16], wrapped: vec![n; 80] };
    let keys = [key(first, 1), key(DeviceId(uuid::Uuid::from_u128(7)), 1)];
    assert!(store.put_user_settings(user, first, 0, b"one", &keys, at(2)).await.unwrap());
    assert!(!store.put_user_settings(user, second, 0, b"late", &[], at(3)).await.unwrap(), "it knew of none");
    let seen = store.user_settings(user, second).await.unwrap();
    assert_eq!((seen.version, &seen.content[..], seen.key), (1, &b"one"[..], None));
    assert_eq!(seen.devices.iter().filter(|d| d.key_id.is_some()).count(), 1);
    store.wrap_settings_keys(user, first, &[key(second, 1)], at(4)).await.unwrap();
    let seen = store.user_settings(user, second).await.unwrap();
    assert_eq!(seen.key, Some(key(second, 1)));
    assert!(store.put_user_settings(user, second, 1, b"two", &[], at(5)).await.unwrap());
    assert_eq!(store.user_settings(user, first).await.unwrap().version, 2);
    // A device that is forgotten is nobody to wrap for.
    scene.decide("gone", second, "forget").await;
    assert_eq!(store.user_settings(user, first).await.unwrap().devices.len(), 1);
    // Nor does it write any more, over a connection that it still has: the others would believe it.
    assert!(!store.put_user_settings(user, second, 2, b"three", &[key(first, 9)], at(6)).await.unwrap());
    store.wrap_settings_keys(user, second, &[key(first, 9)], at(6)).await.unwrap();
    let seen = store.user_settings(user, first).await.unwrap();
    assert_eq!((seen.version, seen.key), (2, Some(key(first, 1))));
}

conformance!(
    a_blocked_device_is_refused_until_it_is_allowed,
    what_was_revoked_is_not_allowed_again,
    a_forgotten_device_must_enrol_again_and_leaves_room,
    a_key_on_another_machine_is_noticed_once_and_doubted_by_policy,
    a_device_that_became_suspicious_meanwhile_is_seen_in_the_transaction,
    a_given_name_outlives_what_the_device_calls_itself,
    ends_that_count_differently_raise_one_event,
    what_both_ends_say_of_a_session_is_known_since_they_were_asked,
    settings_go_forward_and_only_between_the_devices_of_their_user,
);
