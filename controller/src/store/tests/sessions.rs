//! Sessions: the one lease of a user, addresses, and how sessions end.

use std::net::IpAddr;

use horizon_controller_core::{Denial, Grant, GrantFacts, grant};
use horizon_model::{NetworkId, PublicKey, ServerId, SessionUsage};
use jiff::SignedDuration;

use super::kit::{Kit, at, conformance, device_info};
use crate::store::{
    ChannelLease, DeviceRecord, EndReason, EndedBy, NewSession, Retention, SessionError, SessionOutcome,
    SessionRow, SessionStatus, dialect::query,
};

const SECOND_USER: &str = "
[[resource]]
apiVersion = 'horizon.dev/v1alpha1'
kind = 'User'
metadata.name = 'ben'
[resource.spec]
[[resource]]
apiVersion = 'horizon.dev/v1alpha1'
kind = 'PersonalKey'
metadata.name = 'ben-1'
spec.userRef = 'ben'
";

const SUSPENDED: &str = "apiVersion = 'horizon.dev/v1alpha1'\nkind = 'User'\nmetadata.name = 'ana'\n\
                         [spec]\nsuspended = true\nsuspensionReason = 'left'\n";

pub(super) struct Scene {
    pub(super) kit: Kit,
    pub(super) server: ServerId,
    lease: ChannelLease,
    pub(super) laptop: DeviceRecord,
    phone: DeviceRecord,
}

impl Scene {
    pub(super) async fn new() -> Self {
        let kit = Kit::with_basics().await;
        let server = kit.register(PublicKey([200; 32])).await.server;
        let (key, secret) = kit.personal_key().await;
        let mut devices = Vec::new();
        for (n, name) in [(1, "laptop"), (2, "phone")] {
            let public = PublicKey([n; 32]);
            kit.store.enrol_device(key, &secret, public, &device_info(name), at(1)).await.unwrap();
            devices.push(kit.store.device_by_key(public).await.unwrap().unwrap());
        }
        let phone = devices.pop().unwrap();
        let lease = kit.lease(server).await;
        Self { server, lease, laptop: devices.pop().unwrap(), phone, kit }
    }

    pub(super) async fn grant(&self) -> Grant {
        grant(&self.kit.index().await, GrantFacts::POLICY_ONLY, self.laptop.user, self.server).unwrap()
    }

    async fn ask_with(
        &self,
        device: &DeviceRecord,
        grant: &Grant,
        now: i64,
    ) -> Result<SessionOutcome, SessionError> {
        let wish = NewSession { device, grant, client: "198.51.100.9".parse().unwrap() };
        self.kit.store.request_session(&wish, at(now)).await
    }

    async fn ask(&self, device: &DeviceRecord, now: i64) -> Result<SessionOutcome, SessionError> {
        self.ask_with(device, &self.grant().await, now).await
    }

    pub(super) async fn granted(&self, device: &DeviceRecord, now: i64) -> SessionRow {
        match self.ask(device, now).await.unwrap() {
            SessionOutcome::Requested { session, .. } => *session,
            other => panic!("expected a session, got {other:?}"),
        }
    }

    async fn end(&self, session: &SessionRow) -> bool {
        let ended = self.kit.store.end_session(session.id, &EndReason::broker("test"), at(90)).await.unwrap();
        let held = std::collections::HashSet::new();
        self.kit.store.note_sessions_applied(self.server, self.lease, &held, &[], at(90)).await.unwrap();
        ended.is_some()
    }
}

fn addresses(session: &SessionRow) -> Vec<String> {
    session.addresses.iter().flat_map(|(_, list)| list.iter().map(IpAddr::to_string)).collect()
}

async fn a_user_has_one_session_and_a_device_its_addresses() {
    let scene = Scene::new().await;
    let first = scene.granted(&scene.laptop, 1).await;
    assert_eq!(addresses(&first), ["100.96.0.2", "fd68:6f72:697a:6f6e::2"]);
    match scene.ask(&scene.phone, 2).await.unwrap() {
        SessionOutcome::Conflict { conflict, server } => {
            assert_eq!(
                (conflict.session, conflict.device_name.as_str(), server),
                (first.id, "laptop", scene.server)
            );
        }
        other => panic!("expected a conflict, got {other:?}"),
    }
    // The same device asks again: never a conflict.
    match scene.ask(&scene.laptop, 3).await.unwrap() {
        SessionOutcome::Requested { session, replaced } => {
            assert_eq!(replaced.unwrap().session, first.id);
            assert_ne!(session.secret.expose(), first.secret.expose());
            assert_eq!(addresses(&session), addresses(&first));
            assert!(scene.end(&session).await);
            assert!(!scene.end(&session).await, "it has ended");
        }
        other => panic!("expected a session, got {other:?}"),
    }
    let phone = scene.granted(&scene.phone, 4).await;
    assert_eq!(addresses(&phone), ["100.96.0.3", "fd68:6f72:697a:6f6e::3"], "the laptop's are kept for it");
    assert!(scene.end(&phone).await);
    assert_eq!(addresses(&scene.granted(&scene.laptop, 5).await), addresses(&first));
}

async fn the_database_itself_allows_one_access_session() {
    let scene = Scene::new().await;
    let first = scene.granted(&scene.laptop, 1).await;
    let mut tx = scene.kit.store.begin().await.unwrap();
    let copied = query(
        "INSERT INTO connections (connection_id, kind, server_id, device_id, key_id, user_uid, status, connection_type, \
         connection_start, client_ip, allocated_resources, secret) SELECT 'copy', kind, server_id, device_id, key_id, \
         user_uid, 'active', connection_type, connection_start, client_ip, allocated_resources, secret \
         FROM connections WHERE connection_id = $1",
    )
    .bind(first.id.to_string())
    .execute(&mut *tx)
    .await;
    assert!(copied.unwrap_err().as_database_error().unwrap().is_unique_violation());
}

async fn sessions_go_through_their_states() {
    let scene = Scene::new().await;
    let store = &scene.kit.store;
    let session = scene.granted(&scene.laptop, 1).await;
    let row = store.live_session(session.id).await.unwrap().unwrap();
    assert_eq!((row.status, row.secret.expose()), (SessionStatus::Requested, session.secret.expose()));
    assert_eq!(row.facts().addresses, session.addresses);
    let held = [session.id].into();
    let applied =
        async || store.note_sessions_applied(scene.server, scene.lease, &held, &[], at(2)).await.unwrap();
    assert_eq!(applied().await.activated, [session.id]);
    assert!(applied().await.activated.is_empty());
    let usage = |session, connected| SessionUsage {
        session,
        connected,
        remote: None,
        bytes_sent: 10,
        bytes_received: 20,
        rtt_micros: 30,
    };
    let stranger = horizon_model::SessionId(uuid::Uuid::from_u128(1));
    let reported = [usage(session.id, true), usage(stranger, true)];
    let noted = store.note_usage(scene.server, scene.lease, &reported, at(4)).await.unwrap();
    assert_eq!((noted.known, noted.unknown), (1, 1));
    let elsewhere = ServerId(uuid::Uuid::from_u128(2));
    assert_eq!(
        store.note_usage(elsewhere, scene.lease, &reported, at(4)).await.unwrap().known,
        0,
        "not its sessions"
    );
    assert!(store.idle_sessions(at(100)).await.unwrap().is_empty(), "it is connected");
    store.note_usage(scene.server, scene.lease, &[usage(session.id, false)], at(5)).await.unwrap();
    assert!(store.idle_sessions(at(5)).await.unwrap().is_empty());
    assert_eq!(store.idle_sessions(at(6)).await.unwrap()[0].id, session.id);
    assert_eq!(store.sessions_of_server(scene.server).await.unwrap().len(), 1);
    assert_eq!(store.all_servers_with_sessions().await.unwrap(), [scene.server]);
    assert_eq!(store.servers_with_sessions(&[scene.laptop.user], &[]).await.unwrap(), [scene.server]);
    assert!(store.servers_with_sessions(&[], &[scene.phone.id]).await.unwrap().is_empty());
    assert_eq!(store.live_sessions().await.unwrap(), [(session.id, scene.laptop.user, scene.server)]);
    assert_eq!(store.session_of_user(scene.laptop.user).await.unwrap().unwrap().0.server_name, "berlin");
    let reason =
        EndReason { status: SessionStatus::Timeout, by: EndedBy::Broker, reason: "nobody used it".into() };
    store.end_session(session.id, &reason, at(7)).await.unwrap().unwrap();
    assert_eq!(store.session_end(session.id).await.unwrap().as_deref(), Some("nobody used it"));
    assert!(store.live_session(session.id).await.unwrap().is_none());
    let shown = &store.list_sessions(10).await.unwrap()[0];
    assert_eq!((shown.status.as_str(), shown.ended_at, shown.bytes_received), ("timeout", Some(at(7)), 20));
    assert_eq!(
        (shown.user.as_str(), shown.device.as_str(), shown.server.as_str()),
        ("ana", "laptop", "berlin")
    );
}

async fn requests_that_nobody_waits_for_are_found() {
    let scene = Scene::new().await;
    let session = scene.granted(&scene.laptop, 1).await;
    assert!(scene.kit.store.stale_requests(at(1)).await.unwrap().is_empty());
    assert_eq!(scene.kit.store.stale_requests(at(2)).await.unwrap()[0].id, session.id);
}

async fn what_was_revoked_since_is_seen_in_the_transaction() {
    let scene = Scene::new().await;
    let grant = scene.grant().await;
    let kit = &scene.kit;
    let server = kit.server().await;
    kit.store.distrust_server(server, scene.lease, "test", "because", at(2)).await.unwrap();
    assert!(matches!(scene.ask_with(&scene.laptop, &grant, 3).await, Err(SessionError::Server(_))));
    let scene = Scene::new().await;
    let grant = scene.grant().await;
    scene.kit.remove("PersonalKey", "ana-1").await;
    assert!(matches!(scene.ask_with(&scene.laptop, &grant, 3).await, Err(SessionError::Device(_))));
    let scene = Scene::new().await;
    let grant = scene.grant().await;
    scene.kit.remove("Server", "berlin").await;
    assert!(matches!(scene.ask_with(&scene.laptop, &grant, 3).await, Err(SessionError::Server(_))));
    // A replica that has not heard of it yet would still grant.
    let scene = Scene::new().await;
    let grant = scene.grant().await;
    scene.kit.put(SUSPENDED).await;
    let refused = scene.ask_with(&scene.laptop, &grant, 3).await.unwrap_err();
    let SessionError::User(Denial::Suspended { reason, .. }) = refused else { panic!("{refused}") };
    assert_eq!(reason, "left");
    scene.kit.remove("User", "ana").await;
    let refused = scene.ask_with(&scene.laptop, &grant, 3).await;
    assert!(matches!(refused, Err(SessionError::User(Denial::UserGone))));
}

async fn servers_and_ranges_can_be_full() {
    let scene = Scene::new().await;
    let kit = &scene.kit;
    kit.put(SECOND_USER).await;
    let key = horizon_model::KeyId(kit.uid("PersonalKey", "ben-1").await);
    let secret = kit.store.issue_personal_secret(key, at(1)).await.unwrap().secret;
    kit.store.enrol_device(key, &secret, PublicKey([3; 32]), &device_info("tablet"), at(1)).await.unwrap();
    let tablet = kit.store.device_by_key(PublicKey([3; 32])).await.unwrap().unwrap();
    let mut grant = scene.grant().await;
    grant.max_sessions = 1;
    // Two hosts, one of them the appliance's.
    grant.networks[0].ranges = vec!["10.0.0.0/30".parse().unwrap()];
    let SessionOutcome::Requested { session, .. } = scene.ask_with(&scene.laptop, &grant, 1).await.unwrap()
    else {
        panic!("no session")
    };
    assert_eq!(addresses(&session), ["10.0.0.2"]);
    assert!(matches!(scene.ask_with(&tablet, &grant, 2).await, Err(SessionError::Full(1))));
    grant.max_sessions = 9;
    assert!(matches!(scene.ask_with(&tablet, &grant, 2).await, Err(SessionError::NoAddress(_))));
    // Once the laptop is away its address may be given to another.
    assert!(scene.end(&session).await);
    let SessionOutcome::Requested { session, .. } = scene.ask_with(&tablet, &grant, 3).await.unwrap() else {
        panic!("no session")
    };
    assert_eq!(addresses(&session), ["10.0.0.2"]);
    assert_eq!(kit.store.addresses_in_use(NetworkId(1)).await.unwrap(), 0);
}

async fn addresses_are_forgotten_and_ended_sessions_go_in_their_time() {
    let scene = Scene::new().await;
    let store = &scene.kit.store;
    let first = scene.granted(&scene.laptop, 1).await;
    scene.end(&first).await;
    let living = scene.granted(&scene.laptop, 91).await;
    for sql in [
        "UPDATE connections SET connection_start = 1000, connection_end = 2000 WHERE connection_end IS NOT NULL",
        "UPDATE connections SET connection_start = 1000 WHERE connection_end IS NULL",
        // More than go in one step.
        "INSERT INTO security_events (timestamp, event_type, severity, component, source_ip, description, raw_data) \
         SELECT 2000, 'test', 'low', 'system', '198.51.100.9', 'test', 'null' FROM \
         (WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2100) SELECT i FROM n) AS many",
    ] {
        scene.kit.place.admin(sql).await;
    }
    let now = jiff::Timestamp::now();
    let ever = SignedDuration::from_hours(24 * 365 * 100);
    let kept = Retention { sessions: ever, events: ever, addresses: ever, ..Retention::default() };
    let done = store.maintain(now, &kept).await.unwrap();
    assert_eq!(done.forgotten, 0, "{done:?}");
    let day = SignedDuration::from_hours(24);
    let done = store.maintain(now, &Retention { addresses: day, ..kept }).await.unwrap();
    assert_eq!(done.forgotten, 2101, "{done:?}");
    let sessions = store.list_sessions(10).await.unwrap();
    let seen = |id| sessions.iter().find(|s| s.id == id).map(|s| s.client_address.is_some());
    assert_eq!((seen(first.id), seen(living.id)), (Some(false), Some(true)), "who is connected is somewhere");
    assert_eq!(store.maintain(now, &Retention { addresses: day, ..kept }).await.unwrap().forgotten, 0);

    let done = store.maintain(now, &Retention { sessions: day, events: day, ..kept }).await.unwrap();
    assert!(done.deleted >= 2101, "{done:?}");
    let left: Vec<_> = store.list_sessions(10).await.unwrap().into_iter().map(|s| s.id).collect();
    assert_eq!(left, [living.id]);
}

conformance!(
    addresses_are_forgotten_and_ended_sessions_go_in_their_time,
    a_user_has_one_session_and_a_device_its_addresses,
    the_database_itself_allows_one_access_session,
    sessions_go_through_their_states,
    requests_that_nobody_waits_for_are_found,
    what_was_revoked_since_is_seen_in_the_transaction,
    servers_and_ranges_can_be_full,
);
