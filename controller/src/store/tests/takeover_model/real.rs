//! The store's own functions. A question about the same rows is put to the database once, and remembered: what the store
//! answers depends on its rows alone, and no rule of it knows the name of a device or a server.

use std::collections::{HashMap, HashSet};

use horizon_controller_core::{Grant, GrantFacts, grant};
use horizon_model::{PublicKey, Secret, ServerId, SessionId};
use tokio::runtime::Runtime;
use uuid::Uuid;

use super::world::{Row, SERVERS, Sessions, Status};
use crate::store::{
    ChannelLease, DeviceRecord, EndReason, NewSession, SessionOutcome, SessionStatus, StoreError,
    dialect::query,
    row::Columns as _,
    seal,
    tests::kit::{Kit, at, device_info, request},
};

const ROME: &str = "
[[resource]]
apiVersion = 'horizon.dev/v1alpha1'
kind = 'Server'
metadata.name = 'rome'
[resource.spec]
[[resource]]
apiVersion = 'horizon.dev/v1alpha1'
kind = 'RegistrationKey'
metadata.name = 'rome-1'
spec.serverRef = 'rome'
";

/// What the store is asked. Sessions go by their places among the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Question {
    /// Which session is live?
    Live,
    /// A device wants one on a server.
    Request { device: usize, server: usize },
    /// How far is it?
    Status(usize),
    /// Has its appliance let it go?
    Released(usize),
    /// It ends, or fails.
    End { session: usize, failed: bool },
    /// It ends without the word of its appliance.
    EndUnconfirmed(usize),
    /// Which sessions should a server's state have?
    OfServer(usize),
    /// A server's appliance holds just these; who heard it may have lost the channel since.
    Applied { server: usize, holds: Sessions, lost: bool },
    /// A replica takes the channel of a server.
    Take(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Done,
    Session(Option<usize>),
    /// Another device's session is in the way.
    Conflict(usize),
    /// One that ended and that its appliance has not let go is.
    Unreleased(usize),
    Status(Option<Status>),
    Released(bool),
    Sessions(Sessions),
}

pub(super) struct Real {
    runtime: Runtime,
    database: Database,
    known: HashMap<(Vec<Row>, Question), (Vec<Row>, Answer)>,
}

/// The database of the store, and what it knows.
struct Database {
    kit: Kit,
    devices: Vec<DeviceRecord>,
    servers: [ServerId; SERVERS],
    grants: Vec<Grant>,
    /// For each server the channel's lease, and one that was lost.
    leases: [(ChannelLease, ChannelLease); SERVERS],
}

impl Real {
    pub(super) fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let database = runtime.block_on(Database::new());
        Self { runtime, database, known: HashMap::new() }
    }

    /// Asks the store, when its sessions are these.
    pub(super) fn ask(&mut self, rows: &mut Vec<Row>, question: Question) -> Answer {
        let mut names = Names::default();
        let asked = names.question(question);
        let key = (rows.iter().map(|row| names.row(row)).collect::<Vec<_>>(), asked);
        let (after, answer) = self.known.entry(key).or_insert_with_key(|(rows, question)| {
            self.runtime.block_on(self.database.ask(rows.clone(), *question))
        });
        rows.clear();
        rows.extend(after.iter().map(|row| names.back(row)));
        *answer
    }

    /// How many questions the database answered.
    pub(super) fn questions(&self) -> usize {
        self.known.len()
    }
}

/// The names of devices and servers, in the order in which they occur.
#[derive(Default)]
struct Names {
    devices: Vec<usize>,
    servers: Vec<usize>,
}

impl Names {
    fn question(&mut self, question: Question) -> Question {
        match question {
            Question::Request { device, server } => {
                Question::Request { device: name(&mut self.devices, device), server: self.server(server) }
            }
            Question::OfServer(server) => Question::OfServer(self.server(server)),
            Question::Applied { server, holds, lost } => {
                Question::Applied { server: self.server(server), holds, lost }
            }
            Question::Take(server) => Question::Take(self.server(server)),
            of_sessions => of_sessions,
        }
    }

    fn server(&mut self, server: usize) -> usize {
        name(&mut self.servers, server)
    }

    fn row(&mut self, row: &Row) -> Row {
        Row { device: name(&mut self.devices, row.device), server: self.server(row.server), ..*row }
    }

    fn back(&self, row: &Row) -> Row {
        Row { device: self.devices[row.device], server: self.servers[row.server], ..*row }
    }
}

fn name(known: &mut Vec<usize>, one: usize) -> usize {
    known.iter().position(|other| *other == one).unwrap_or_else(|| {
        known.push(one);
        known.len() - 1
    })
}

impl Database {
    async fn new() -> Self {
        let kit = Kit::with_basics().await;
        kit.put(ROME).await;
        let berlin = kit.register(PublicKey([200; 32])).await.server;
        let token = kit.uid("RegistrationKey", "rome-1").await;
        let secret = kit.store.issue_registration_secret(token, at(0)).await.unwrap();
        let mut second = request(secret, PublicKey([201; 32]));
        second.key_name = "rome-1".into();
        let rome = kit.store.register_server(&second, at(1)).await.unwrap().server;
        let (key, secret) = kit.personal_key().await;
        let mut devices = Vec::new();
        for n in 1..=3 {
            let public = PublicKey([n; 32]);
            kit.store.enrol_device(key, &secret, public, &device_info("device"), at(1)).await.unwrap();
            devices.push(kit.store.device_by_key(public).await.unwrap().unwrap());
        }
        let index = kit.index().await;
        let servers = [berlin, rome];
        let granted = |server: &ServerId| grant(&index, GrantFacts::POLICY_ONLY, devices[0].user, *server);
        let grants = servers.iter().map(|server| granted(server).unwrap()).collect();
        let mut leases = [(ChannelLease(0), ChannelLease(0)); SERVERS];
        for (lease, server) in leases.iter_mut().zip(servers) {
            let lost = kit.attach(server).await.lease;
            *lease = (kit.attach(server).await.lease, lost);
        }
        Self { kit, devices, servers, grants, leases }
    }

    /// Puts these rows in place, asks, and reads the rows that are there then.
    async fn ask(&mut self, rows: Vec<Row>, question: Question) -> (Vec<Row>, Answer) {
        let mut sessions = self.load(&rows).await;
        let place = |id: SessionId| sessions.iter().position(|known| *known == id).expect("it is known");
        let store = &self.kit.store;
        let answer = match question {
            Question::Live => {
                let live = store.session_of_user(self.devices[0].user).await.unwrap();
                Answer::Session(live.map(|(_, row)| place(row.id)))
            }
            Question::Request { device, server } => {
                let wish = NewSession {
                    device: &self.devices[device],
                    grant: &self.grants[server],
                    client: "198.51.100.9".parse().unwrap(),
                };
                match store.request_session(&wish, at(9)).await.unwrap() {
                    SessionOutcome::Requested { session, .. } => {
                        sessions.push(session.id);
                        Answer::Session(Some(sessions.len() - 1))
                    }
                    SessionOutcome::Conflict { conflict, .. } => Answer::Conflict(place(conflict.session)),
                    SessionOutcome::Unreleased { conflict, .. } => {
                        Answer::Unreleased(place(conflict.session))
                    }
                }
            }
            Question::Status(session) => {
                let row = store.live_session(sessions[session]).await.unwrap();
                Answer::Status(row.map(|row| match row.status {
                    SessionStatus::Active => Status::Active,
                    _ => Status::Requested,
                }))
            }
            Question::Released(session) => {
                Answer::Released(store.session_released(sessions[session]).await.unwrap())
            }
            Question::End { session, failed } => {
                let status = if failed { SessionStatus::Failed } else { SessionStatus::Terminated };
                let reason = EndReason { status, ..EndReason::broker("test") };
                store.end_session(sessions[session], &reason, at(9)).await.unwrap();
                Answer::Done
            }
            Question::EndUnconfirmed(session) => {
                store.end_unconfirmed(sessions[session], "test", at(9)).await.unwrap();
                Answer::Done
            }
            Question::OfServer(server) => {
                let rows = store.sessions_of_server(self.servers[server]).await.unwrap();
                Answer::Sessions(rows.iter().map(|row| place(row.id)).collect())
            }
            Question::Applied { server, holds, lost } => {
                let (lease, lost_lease) = self.leases[server];
                let held: HashSet<_> = holds.iter().map(|session| sessions[session]).collect();
                let lease = if lost { lost_lease } else { lease };
                let noted = store.note_sessions_applied(self.servers[server], lease, &held, &[], at(9)).await;
                match noted {
                    Ok(_) => {}
                    Err(StoreError::LostChannel) if lost => {}
                    Err(error) => panic!("{error}"),
                }
                Answer::Done
            }
            Question::Take(server) => {
                let lost = self.leases[server].0;
                let lease = self.kit.attach(self.servers[server]).await.lease;
                assert!(lease > lost, "the channel is another one");
                self.leases[server] = (lease, lost);
                Answer::Done
            }
        };
        (self.read(&sessions).await, answer)
    }

    /// Puts sessions into the database, and says what they are called there: the earlier, the lower.
    async fn load(&self, rows: &[Row]) -> Vec<SessionId> {
        let mut sessions = Vec::new();
        let mut tx = self.kit.store.begin().await.unwrap();
        query("DELETE FROM connections").execute(&mut *tx).await.unwrap();
        for row in rows {
            let id = SessionId(Uuid::from_u128(sessions.len() as u128 + 1));
            let (status, ended) = match row.status {
                Status::Requested => ("requested", None),
                Status::Active => ("active", None),
                Status::Ended => ("terminated", Some(1)),
                Status::Interrupted => ("interrupted", Some(1)),
            };
            let device = &self.devices[row.device];
            let secret = Secret::new([7; 32]);
            let sealed = self.kit.store.sealer().seal(seal::Place::Session, id.as_bytes(), &secret);
            query(
                "INSERT INTO connections (connection_id, kind, server_id, device_id, key_id, user_uid, status, \
                 connection_type, connection_start, connection_end, client_ip, allocated_resources, secret, \
                 secret_key, released_date) \
                 VALUES ($1, 'access', $2, $3, $4, $5, $6, 'vpn', 1, $7, '198.51.100.9', '[]', $8, $9, $10)",
            )
            .bind(id.to_string())
            .bind(self.servers[row.server].to_string())
            .bind(device.id.to_string())
            .bind(device.key.to_string())
            .bind(device.user.to_string())
            .bind(status)
            .bind(ended)
            .bind(sealed.bytes)
            .bind(sealed.key)
            .bind(row.released.then_some(1))
            .execute(&mut *tx)
            .await
            .unwrap();
            sessions.push(id);
        }
        tx.commit().await.unwrap();
        sessions
    }

    /// Reads what the database holds of sessions.
    async fn read(&self, sessions: &[SessionId]) -> Vec<Row> {
        let found = query("SELECT * FROM connections ORDER BY connection_id")
            .fetch_all(self.kit.store.readers())
            .await
            .unwrap();
        let ids: Vec<SessionId> = found.iter().map(|row| row.parsed("connection_id").unwrap()).collect();
        assert_eq!(ids, sessions, "the last that was asked for is the last in the order");
        let read = |row: &crate::store::dialect::Row| {
            let (device, server) = (row.parsed("device_id").unwrap(), row.parsed("server_id").unwrap());
            Row {
                device: self.devices.iter().position(|d| d.id == device).expect("it is known"),
                server: self.servers.iter().position(|s| *s == server).expect("it is known"),
                status: match row.text("status").unwrap().as_str() {
                    "requested" => Status::Requested,
                    "active" => Status::Active,
                    "interrupted" => Status::Interrupted,
                    _ => Status::Ended,
                },
                released: row.maybe_time("released_date").unwrap().is_some(),
            }
        };
        found.iter().map(read).collect()
    }
}
