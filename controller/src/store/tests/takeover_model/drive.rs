//! Carries the model's actions out: the store's own functions on a database, and the shell around them in words.

use std::{collections::HashMap, time::Duration};

use horizon_controller_core::{Grant, GrantFacts, grant};
use horizon_model::{Incarnation, PublicKey, ServerId, SessionId};
use uuid::Uuid;

use super::{
    Mutant,
    world::{Action, Conversation, Request, Row, SERVERS, Sessions, Stage, Status, World},
};
use crate::{
    channel::takeover::{self, Held, Release, Takeover},
    store::{
        ChannelLease, DeviceRecord, EndReason, NewSession, ReplicaId, SessionOutcome, SessionStatus,
        StoreError,
        dialect::query,
        row::Columns as _,
        tests::kit::{Kit, at, device_info},
    },
};

const GRACE: Duration = Duration::from_secs(90);
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

/// What the database holds: enough to put it back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Db {
    sessions: Vec<SessionId>,
    rows: Vec<Row>,
    leases: [i64; SERVERS],
    /// The leases of conversations that are over.
    stale: [i64; SERVERS],
}

pub(super) struct Sim {
    kit: Kit,
    mutant: Mutant,
    devices: Vec<DeviceRecord>,
    servers: [ServerId; SERVERS],
    grants: Vec<Grant>,
    /// The sealed secrets of sessions, which cannot be made again.
    secrets: HashMap<SessionId, Vec<u8>>,
    /// What the database holds now.
    loaded: Db,
}

fn replica(number: usize) -> ReplicaId {
    ReplicaId(Uuid::from_u128(number as u128 + 1))
}

impl Sim {
    pub(super) async fn new(mutant: Mutant) -> Self {
        let kit = Kit::with_basics().await;
        kit.put(ROME).await;
        let berlin = kit.register(PublicKey([200; 32])).await.server;
        let token = kit.uid("RegistrationKey", "rome-1").await;
        let secret = kit.store.issue_registration_secret(token, at(0)).await.unwrap();
        let mut request = crate::store::tests::kit::request(secret, PublicKey([201; 32]));
        request.key_name = "rome-1".into();
        let rome = kit.store.register_server(&request, at(1)).await.unwrap().server;
        let (key, secret) = kit.personal_key().await;
        let mut devices = Vec::new();
        for n in 1..=3 {
            let public = PublicKey([n; 32]);
            kit.store.enrol_device(key, &secret, public, &device_info("device"), at(1)).await.unwrap();
            devices.push(kit.store.device_by_key(public).await.unwrap().unwrap());
        }
        let index = kit.index().await;
        let servers = [berlin, rome];
        let grants = servers
            .iter()
            .map(|server| grant(&index, GrantFacts::POLICY_ONLY, devices[0].user, *server).unwrap())
            .collect();
        let mut leases = [0; SERVERS];
        for (number, server) in servers.iter().enumerate() {
            leases[number] = take(&kit, *server, number).await.0;
        }
        let loaded = Db { sessions: Vec::new(), rows: Vec::new(), leases, stale: [0; SERVERS] };
        Self { kit, mutant, devices, servers, grants, secrets: HashMap::new(), loaded }
    }

    pub(super) fn start(&self) -> (World, Db) {
        (World::start(), self.loaded.clone())
    }

    /// Carries out an action in a world. Returns the world and the database after it.
    pub(super) async fn act(&mut self, world: &World, db: &Db, action: &Action) -> (World, Db) {
        let (mut world, mut db) = (world.clone(), db.clone());
        if needs_database(action) && self.loaded != db {
            self.load(&db).await;
        }
        self.perform(&mut world, &mut db, action).await;
        if needs_database(action) {
            self.read(&mut world, &mut db).await;
        }
        let numbers = world.forget();
        db.sessions =
            numbers.iter().zip(&db.sessions).filter(|(new, _)| new.is_some()).map(|(_, id)| *id).collect();
        db.rows = world.rows.clone();
        (world, db)
    }

    /// Whether a device that asks again and again gets a session, or is told whose is in the way, once nothing fails any more.
    pub(super) async fn stuck(&mut self, world: &World, db: &Db) -> Option<String> {
        const ROUNDS: usize = 80;
        let (mut world, mut db) = (world.clone(), db.clone());
        (world.crashes_left, world.losses_left, world.copies_left) = (0, 0, 0);
        for device in 0..self.devices.len() {
            let mut agrees = false;
            let mut done = false;
            for _ in 0..ROUNDS {
                if world.devices[device].request.is_none() {
                    if world.devices[device].ticket.is_some_and(|session| world.live(session)) {
                        done = true;
                        break;
                    }
                    world.devices[device].asks_left = 1;
                    let ask = Action::Ask { device, replica: 0, server: 0, agrees };
                    (world, db) = self.act(&world, &db, &ask).await;
                }
                let fair = world.actions().into_iter().find(|action| match action {
                    Action::Attach { .. } | Action::Push(_) | Action::Notice(_) | Action::Sweep => true,
                    Action::Arrive { copied, .. } | Action::Report { copied, .. } => !copied,
                    Action::StaleReport { .. } => true,
                    _ => false,
                });
                if let Some(action) = fair {
                    (world, db) = self.act(&world, &db, &action).await;
                }
                for other in 0..self.devices.len() {
                    if world.devices[other].request.is_some() {
                        (world, db) = self.act(&world, &db, &Action::Step(other)).await;
                    }
                }
                agrees = world.devices[device].prompt.is_some();
                if let Some(why) = world.violation() {
                    return Some(format!("on the way to rest: {why}"));
                }
            }
            if !done {
                return Some(format!("device {device} gets no session: {world:?}"));
            }
        }
        None
    }

    async fn perform(&mut self, world: &mut World, db: &mut Db, action: &Action) {
        let store = self.kit.store.clone();
        match *action {
            Action::Ask { device, replica, server, agrees } => {
                let state = &mut world.devices[device];
                state.asks_left -= 1;
                let agreed = state.prompt.take().filter(|_| agrees);
                state.request = Some(Request { replica, server, agreed, stage: Stage::Check });
            }
            Action::Step(device) => self.step(world, db, device).await,
            Action::GiveUp(device) => match world.devices[device].request.take().expect("it asks").stage {
                Stage::AwaitRelease(session) => {
                    store.end_unconfirmed(db.sessions[session], "test", at(9)).await.unwrap();
                }
                Stage::AwaitAppliance(session) => self.fail(db, session).await,
                _ => {}
            },
            Action::LoseTicket(device) => {
                world.losses_left -= 1;
                world.devices[device].request = None;
            }
            Action::End(device) => {
                let session = world.devices[device].ticket.take().expect("it has one");
                store.end_session(db.sessions[session], &EndReason::broker("test"), at(9)).await.unwrap();
            }
            Action::Sweep => {
                let session = world.orphan().expect("there is one");
                self.fail(db, session).await;
            }
            Action::Push(server) => {
                let wanted: Sessions = store
                    .sessions_of_server(self.servers[server])
                    .await
                    .unwrap()
                    .iter()
                    .map(|row| db.sessions.iter().position(|id| *id == row.id).expect("it is known"))
                    .collect();
                let talk = world.talks[server].as_mut().expect("it talks");
                let number = talk.sent.as_ref().map_or(0, |(number, _)| *number) + 1;
                talk.pushes.insert((number, wanted.clone()));
                talk.sent = Some((number, wanted));
            }
            Action::Arrive { server, push, copied } => {
                let talk = world.talks[server].as_mut().expect("it talks");
                let (number, state) = talk.pushes.iter().nth(push).cloned().expect("it is on its way");
                if copied {
                    world.copies_left -= 1;
                } else {
                    talk.pushes.remove(&(number, state.clone()));
                }
                let appliance = &mut world.appliances[server];
                if number > appliance.applied || self.mutant == Mutant::OlderStateApplies {
                    appliance.admitted = state;
                    appliance.applied = number;
                    talk.reports.insert(number);
                }
            }
            Action::Report { server, report, copied } => {
                let talk = world.talks[server].as_mut().expect("it talks");
                let number = *talk.reports.iter().nth(report).expect("it is on its way");
                if copied {
                    world.copies_left -= 1;
                } else {
                    talk.reports.remove(&number);
                }
                let talk = talk.clone();
                self.applied(db, server, &talk, number, ChannelLease(db.leases[server])).await;
            }
            Action::StaleReport { server, report } => {
                let talk = world.stale[server].as_mut().expect("there is one");
                let number = *talk.reports.iter().nth(report).expect("it is on its way");
                talk.reports.remove(&number);
                let talk = talk.clone();
                let fenced = self.mutant != Mutant::NoFence;
                let lease = if fenced { db.stale[server] } else { db.leases[server] };
                self.applied(db, server, &talk, number, ChannelLease(lease)).await;
            }
            Action::Cut(server) => {
                world.losses_left -= 1;
                world.stale[server] = world.talks[server].take();
                db.stale[server] = db.leases[server];
                world.appliances[server].applied = 0;
                if let Some(stale) = &mut world.stale[server] {
                    stale.pushes.clear();
                }
            }
            Action::Notice(server) => world.stale[server] = None,
            Action::Attach { server, replica } => {
                db.leases[server] = take(&self.kit, self.servers[server], replica).await.0;
                world.talks[server] = Some(Conversation::new(replica));
                world.appliances[server].applied = 0;
                world.appliances[server].long_gone = false;
            }
            Action::LongGone(server) => world.appliances[server].long_gone = true,
            Action::Crash(replica) => {
                world.crashes_left -= 1;
                for device in &mut world.devices {
                    device.request.take_if(|request| request.replica == replica);
                }
                for server in 0..SERVERS {
                    world.stale[server].take_if(|talk| talk.replica == replica);
                    if world.talks[server].take_if(|talk| talk.replica == replica).is_some() {
                        world.appliances[server].applied = 0;
                    }
                }
            }
        }
    }

    /// One step of what the channel does with a request for a session.
    async fn step(&mut self, world: &mut World, db: &mut Db, device: usize) {
        let store = self.kit.store.clone();
        let request = world.devices[device].request.clone().expect("it asks");
        let gone = |server: usize| match (&world.talks[server], &world.stale[server]) {
            (None, None) if world.appliances[server].long_gone => Some(GRACE),
            (None, None) => Some(Duration::ZERO),
            _ => None,
        };
        let number = |db: &Db, id: SessionId| db.sessions.iter().position(|known| *known == id);
        let next = match request.stage {
            Stage::Check => {
                let live = store.session_of_user(self.devices[device].user).await.unwrap();
                let held = live.map(|(_, row)| {
                    let server = self.servers.iter().position(|s| *s == row.server).expect("it is known");
                    (Held { session: row.id, device: row.device, appliance_gone: gone(server) }, row.id)
                });
                let agreed = request.agreed.map(|session| db.sessions[session]);
                let me = self.devices[device].id;
                match (takeover::decide(held.map(|h| h.0), me, agreed, GRACE), held) {
                    (Takeover::Ask, Some((_, id))) => {
                        world.devices[device].prompt = number(db, id);
                        None
                    }
                    (Takeover::End, Some((_, id))) => {
                        store.end_session(id, &EndReason::broker("taken over"), at(9)).await.unwrap();
                        number(db, id).map(Stage::AwaitRelease)
                    }
                    (Takeover::EndUnconfirmed, Some((_, id))) => {
                        store.end_unconfirmed(id, "test", at(9)).await.unwrap();
                        Some(Stage::Grant)
                    }
                    (Takeover::Wait(_), _) => None,
                    _ => Some(Stage::Grant),
                }
            }
            Stage::AwaitRelease(session) => {
                if self.mutant == Mutant::GrantBeforeRelease {
                    self.release(db.sessions[session]).await;
                }
                let released = store.session_released(db.sessions[session]).await.unwrap();
                Some(if released { Stage::Grant } else { request.stage })
            }
            Stage::Grant => {
                let wish = NewSession {
                    device: &self.devices[device],
                    grant: &self.grants[request.server],
                    client: "198.51.100.9".parse().unwrap(),
                };
                match store.request_session(&wish, at(9)).await.unwrap() {
                    SessionOutcome::Requested { session, .. } => {
                        db.sessions.push(session.id);
                        Some(Stage::AwaitAppliance(db.sessions.len() - 1))
                    }
                    SessionOutcome::Conflict { conflict, .. } => {
                        world.devices[device].prompt = number(db, conflict.session);
                        None
                    }
                    SessionOutcome::Unreleased { conflict, server } => {
                        let server = self.servers.iter().position(|s| *s == server).expect("it is known");
                        match takeover::release(gone(server), GRACE) {
                            Release::Await => number(db, conflict.session).map(Stage::AwaitRelease),
                            Release::GiveUp => {
                                store.end_unconfirmed(conflict.session, "test", at(9)).await.unwrap();
                                Some(Stage::Grant)
                            }
                            Release::Wait(_) => None,
                        }
                    }
                }
            }
            Stage::AwaitAppliance(session) => match store.live_session(db.sessions[session]).await.unwrap() {
                Some(row) if row.status == SessionStatus::Active => Some(Stage::Answered(session)),
                Some(_) => Some(request.stage),
                None => None,
            },
            Stage::Answered(session) => {
                world.devices[device].ticket = Some(session);
                None
            }
        };
        world.devices[device].request = next.map(|stage| Request { stage, ..request });
    }

    async fn fail(&self, db: &Db, session: usize) {
        let reason = EndReason { status: SessionStatus::Failed, ..EndReason::broker("nobody took it in") };
        self.kit.store.end_session(db.sessions[session], &reason, at(9)).await.unwrap();
    }

    /// A replica hears which state an appliance has applied.
    async fn applied(&self, db: &Db, server: usize, talk: &Conversation, number: u8, lease: ChannelLease) {
        let Some((sent, sessions)) = &talk.sent else { return };
        if *sent != number {
            return;
        }
        let held = sessions.iter().map(|session| db.sessions[*session]).collect();
        let noted =
            self.kit.store.note_sessions_applied(self.servers[server], lease, &held, &[], at(9)).await;
        match noted {
            Ok(_) | Err(StoreError::LostChannel) => {}
            Err(error) => panic!("{error}"),
        }
    }

    /// Says that an appliance let a session go, which it did not.
    async fn release(&self, session: SessionId) {
        let mut tx = self.kit.store.begin().await.unwrap();
        query("UPDATE connections SET released_date = 1 WHERE connection_id = $1")
            .bind(session.to_string())
            .execute(&mut *tx)
            .await
            .unwrap();
        tx.commit().await.unwrap();
    }

    /// Puts the database back to what it was in a world.
    async fn load(&mut self, db: &Db) {
        let mut tx = self.kit.store.begin().await.unwrap();
        query("DELETE FROM connections").execute(&mut *tx).await.unwrap();
        for (id, row) in db.sessions.iter().zip(&db.rows) {
            let (status, ended) = match row.status {
                Status::Requested => ("requested", None),
                Status::Active => ("active", None),
                Status::Ended => ("terminated", Some(1)),
                Status::Interrupted => ("interrupted", Some(1)),
            };
            let device = &self.devices[row.device];
            query(
                "INSERT INTO connections (connection_id, kind, server_id, device_id, key_id, user_uid, status, \
                 connection_type, connection_start, connection_end, client_ip, allocated_resources, secret, \
                 released_date) VALUES ($1, 'access', $2, $3, $4, $5, $6, 'vpn', 1, $7, '198.51.100.9', '[]', $8, $9)",
            )
            .bind(id.to_string())
            .bind(self.servers[row.server].to_string())
            .bind(device.id.to_string())
            .bind(device.key.to_string())
            .bind(device.user.to_string())
            .bind(status)
            .bind(ended)
            .bind(&self.secrets[id][..])
            .bind(row.released.then_some(1))
            .execute(&mut *tx)
            .await
            .unwrap();
        }
        for (server, lease) in self.servers.iter().zip(db.leases) {
            query("UPDATE servers SET channel_lease = $1 WHERE server_id = $2")
                .bind(lease)
                .bind(server.to_string())
                .execute(&mut *tx)
                .await
                .unwrap();
        }
        tx.commit().await.unwrap();
        self.loaded = db.clone();
    }

    /// Reads what the database holds now.
    async fn read(&mut self, world: &mut World, db: &mut Db) {
        let rows = query("SELECT * FROM connections").fetch_all(self.kit.store.readers()).await.unwrap();
        world.rows = db
            .sessions
            .iter()
            .map(|id| {
                let text = id.to_string();
                let row =
                    rows.iter().find(|row| row.text("connection_id").unwrap() == text).expect("it is there");
                self.secrets.entry(*id).or_insert_with(|| row.bytes("secret").unwrap());
                let device = row.parsed("device_id").unwrap();
                let server: ServerId = row.parsed("server_id").unwrap();
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
            })
            .collect();
        db.rows = world.rows.clone();
        self.loaded = db.clone();
    }
}

async fn take(kit: &Kit, server: ServerId, number: usize) -> ChannelLease {
    let holder = kit.store.channel_of(server).await.unwrap().map(|holder| holder.lease);
    let incarnation = Incarnation(Uuid::from_u128(7));
    let taken = kit.store.take_channel(server, replica(number), incarnation, holder, at(0)).await.unwrap();
    taken.expect("nobody else takes it")
}

/// Whether an action asks the store anything.
fn needs_database(action: &Action) -> bool {
    match action {
        Action::Step(_)
        | Action::GiveUp(_)
        | Action::End(_)
        | Action::Sweep
        | Action::Push(_)
        | Action::Report { .. }
        | Action::StaleReport { .. }
        | Action::Attach { .. } => true,
        Action::Ask { .. }
        | Action::LoseTicket(_)
        | Action::Arrive { .. }
        | Action::Cut(_)
        | Action::Notice(_)
        | Action::LongGone(_)
        | Action::Crash(_) => false,
    }
}
