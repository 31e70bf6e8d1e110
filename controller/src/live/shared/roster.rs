//! Makes known who is connected to this replica: in Redis, for as long as it renews that, and in the database what that
//! does not know by itself. What is lost in Redis is written anew.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
};

use horizon_model::{DeviceId, ServerId};
use redis::{Cmd, Value};
use tokio::{
    sync::Notify,
    time::{MissedTickBehavior, interval},
};

use super::{
    Inner,
    bus::BEAT,
    keys::{PRESENCE_LIFETIME, milliseconds},
    lock,
    message::Item,
};
use crate::{
    live::{Live as _, Presence},
    stop::Stop,
};

/// How many members go into one command.
const CHUNK: usize = 500;
/// The field that says that the hash is whole. It is written last, and there also when no server is.
pub(super) const HERE: &str = "replica";

/// Renews the lifetime of a hash if it is whole.
const RENEW: &str = "if redis.call('HEXISTS', KEYS[1], ARGV[2]) == 0 then return 0 end \
    return redis.call('PEXPIRE', KEYS[1], ARGV[1])";

/// Sets fields of a hash and renews its lifetime in one step: a hash that expired must not come back for good.
const PUT_HASH: &str =
    "local n = redis.call('HSET', KEYS[1], unpack(ARGV, 2)) redis.call('PEXPIRE', KEYS[1], ARGV[1]) return n";
/// Adds members to a set and renews its lifetime in one step.
const PUT_SET: &str =
    "local n = redis.call('SADD', KEYS[1], unpack(ARGV, 2)) redis.call('PEXPIRE', KEYS[1], ARGV[1]) return n";

/// What changed here since it was made known.
#[derive(Default)]
pub(super) struct Roster {
    servers: Mutex<HashSet<ServerId>>,
    devices: Mutex<HashSet<DeviceId>>,
    wake: Notify,
}

impl Roster {
    pub(super) fn server_changed(&self, server: ServerId) {
        lock(&self.servers).insert(server);
        self.wake.notify_one();
    }

    pub(super) fn device_changed(&self, device: DeviceId) {
        lock(&self.devices).insert(device);
        self.wake.notify_one();
    }
}

/// What was made known where.
#[derive(Default)]
struct Told {
    /// Redis has everything but what changed since.
    redis: bool,
    /// So has the database.
    database: bool,
}

/// Makes it known until the word to stop comes, and then that nobody is here any more.
pub(super) async fn tell(shared: Arc<Inner>, mut stop: Stop) {
    let mut beat = interval(BEAT);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut told = Told::default();
    loop {
        tokio::select! {
            biased;
            () = stop.requested() => break,
            _ = beat.tick() => shared.beat(&mut told).await,
            () = shared.roster.wake.notified() => {}
        }
        shared.tell_changes(&mut told).await;
    }
    if let Some(redis) = &shared.redis {
        let keys = [shared.keys.servers(shared.replica), shared.keys.devices(shared.replica)];
        let mut commands: Vec<Cmd> = keys.into_iter().map(|key| command("DEL", &[key])).collect();
        commands.push(command("SREM", &[shared.keys.replicas(), shared.replica.to_string()]));
        // What cannot be taken back now ends with its lifetime.
        let _ = redis.run(commands).await;
    }
    if told.database
        && let Some(database) = &shared.database
        && let Err(error) = database.put_devices(shared.replica, true, &[], &[]).await
    {
        tracing::debug!(%error, "devices could not be signed off in the database");
    }
    shared.bus.say(Item::Roster);
}

impl Inner {
    /// Renews what Redis knows. Writes everything if it lost something.
    async fn beat(&self, told: &mut Told) {
        let Some(redis) = &self.redis else { return };
        let here = put(RENEW, self.keys.servers(self.replica), [HERE.to_owned()]);
        let replicas = put(PUT_SET, self.keys.replicas(), [self.replica.to_string()]);
        let devices = command(
            "PEXPIRE",
            &[self.keys.devices(self.replica), milliseconds(PRESENCE_LIFETIME).to_string()],
        );
        let Ok(answers) = redis.probe(vec![here, replicas, devices]).await else {
            told.redis = false;
            return;
        };
        let was_there = answers.first() == Some(&Value::Int(1));
        let devices_were_there = answers.get(2) == Some(&Value::Int(1)) || self.here.devices().is_empty();
        if !(told.redis && was_there && devices_were_there) {
            told.redis = self.tell_redis_everything().await;
            self.bus.say(Item::Roster);
        }
    }

    async fn tell_redis_everything(&self) -> bool {
        let Some(redis) = &self.redis else { return false };
        let servers = self.here.servers();
        let fields: Vec<_> = servers.iter().filter(|(_, presence)| presence.online).collect();
        let devices = self.here.devices();
        // Emptied first: who left while Redis was away must not stay.
        let emptied = [self.keys.servers(self.replica), self.keys.devices(self.replica)];
        let emptied = emptied.into_iter().map(|key| command("DEL", &[key])).collect();
        let servers = fields.chunks(CHUNK).map(|chunk| {
            let pairs = chunk.iter().flat_map(|(server, presence)| [server.to_string(), write(presence)]);
            put(PUT_HASH, self.keys.servers(self.replica), pairs)
        });
        let devices = devices.chunks(CHUNK).map(|chunk| {
            put(PUT_SET, self.keys.devices(self.replica), chunk.iter().map(ToString::to_string))
        });
        let members = servers.chain(devices).collect();
        let here =
            put(PUT_HASH, self.keys.servers(self.replica), [HERE.to_owned(), self.replica.to_string()]);
        for commands in [emptied, members, vec![here]] {
            if redis.run(commands).await.is_err() {
                return false;
            }
        }
        true
    }

    async fn tell_changes(&self, told: &mut Told) {
        let servers: Vec<_> = lock(&self.roster.servers).drain().collect();
        let devices: Vec<_> = lock(&self.roster.devices).drain().collect();
        let (online, offline): (Vec<_>, Vec<_>) =
            devices.iter().copied().partition(|device| self.here.is_device_online(*device));
        if let Some(redis) = self.redis.as_ref().filter(|_| told.redis) {
            told.redis = redis.run(self.changes(&servers, &online, &offline)).await.is_ok();
        }
        // The database knows the servers by their leases.
        let needed = !told.redis || self.bus.anybody_deaf();
        match &self.database {
            Some(database) if needed => {
                let everything = self.here.devices();
                let (whole, online) = if told.database { (false, &online) } else { (true, &everything) };
                if whole || !devices.is_empty() {
                    let put = database.put_devices(self.replica, whole, online, &offline).await;
                    told.database = put.is_ok();
                    if whole {
                        self.bus.say(Item::Roster);
                    }
                }
            }
            _ => told.database = false,
        }
        servers.into_iter().for_each(|server| self.bus.say(Item::Server(server)));
        devices.into_iter().for_each(|device| self.bus.say(Item::Device(device)));
    }

    fn changes(&self, servers: &[ServerId], online: &[DeviceId], offline: &[DeviceId]) -> Vec<Cmd> {
        let (mut come, mut gone) = (Vec::new(), Vec::new());
        for server in servers {
            match self.here.presence(*server) {
                Some(presence) if presence.online => come.push((server, presence)),
                _ => gone.push(server.to_string()),
            }
        }
        let (servers, devices) = (self.keys.servers(self.replica), self.keys.devices(self.replica));
        let mut commands = Vec::new();
        for chunk in come.chunks(CHUNK) {
            let pairs = chunk.iter().flat_map(|(server, presence)| [server.to_string(), write(presence)]);
            commands.push(put(PUT_HASH, servers.clone(), pairs));
        }
        for chunk in online.chunks(CHUNK) {
            commands.push(put(PUT_SET, devices.clone(), chunk.iter().map(ToString::to_string)));
        }
        for chunk in gone.chunks(CHUNK) {
            commands.push(command("HDEL", &[std::slice::from_ref(&servers), chunk].concat()));
        }
        for chunk in offline.chunks(CHUNK) {
            let members: Vec<_> = chunk.iter().map(ToString::to_string).collect();
            commands.push(command("SREM", &[std::slice::from_ref(&devices), &members].concat()));
        }
        commands
    }
}

/// A presence as it is kept in Redis.
fn write(presence: &Presence) -> String {
    format!("{} {} {}", presence.incarnation, presence.lease, presence.since.as_millisecond())
}

/// Reads what [`write`] wrote.
pub(super) fn read(text: &str) -> Option<Presence> {
    let mut words = text.split(' ');
    let incarnation = words.next()?.parse().ok()?;
    let lease = crate::store::ChannelLease(words.next()?.parse().ok()?);
    let since = jiff::Timestamp::from_millisecond(words.next()?.parse().ok()?).ok()?;
    Some(Presence { online: true, since, last_seen: since, incarnation, lease })
}

pub(super) fn command(name: &str, args: &[String]) -> Cmd {
    let mut command = redis::cmd(name);
    command.arg(args);
    command
}

fn put(script: &str, key: String, members: impl IntoIterator<Item = String>) -> Cmd {
    let mut command = redis::cmd("EVAL");
    command.arg(script).arg(1).arg(key).arg(milliseconds(PRESENCE_LIFETIME));
    for member in members {
        command.arg(member);
    }
    command
}
