//! A device's request, followed as the channel follows it, while nothing fails any more: does it come to a session?

use std::{collections::HashSet, time::Duration};

use horizon_model::{DeviceId, SessionId};
use uuid::Uuid;

use super::{
    Mutant,
    real::{Answer, Question, Real},
    steps::perform,
    world::{Action, Link, Request, SERVERS, Stage, Status, World},
};
use crate::channel::takeover::{self, Held, Release, Takeover};

const GRACE: Duration = Duration::from_secs(90);

/// What becomes of appliances that nobody talks with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Absent {
    /// They come back.
    Return,
    /// They stay away for ever: the device asks for a server whose appliance is there.
    Stay,
}

/// Follows requests. What was found good once is known.
pub(super) struct Follower {
    mutant: Mutant,
    good: HashSet<(Absent, Box<[u8]>)>,
}

impl Follower {
    pub(super) fn new(mutant: Mutant) -> Self {
        Self { mutant, good: HashSet::new() }
    }

    /// How many different places requests came through.
    pub(super) fn places(&self) -> usize {
        self.good.len()
    }

    /// Why a device that asks, and agrees to take over, would never get its session.
    pub(super) fn stuck(
        &mut self,
        real: &mut Real,
        world: &World,
        device: usize,
        absent: Absent,
    ) -> Option<String> {
        let there = |server: &usize| absent == Absent::Return || matches!(world.links[*server], Link::Up(_));
        // Where appliances stay away from everything, nobody promises anything.
        let server = (0..SERVERS).find(there)?;
        let mut world = world.clone();
        world.request = Some(Request { device, server, stage: Stage::Ask, patient: false });
        let mut way = Vec::new();
        let mut passed = HashSet::new();
        loop {
            let key = (absent, world.key());
            if self.good.contains(&key) {
                break;
            }
            if !passed.insert(key.clone()) {
                return Some(format!("device {device} asks in a circle: {:?}", way.last()));
            }
            way.push(world.clone());
            if self.step(real, &mut world) {
                break;
            }
            if let Some(action) = fair(&world, absent) {
                perform(real, self.mutant, &mut world, action);
            }
            world.tidy(false);
            if let Some(why) = world.violation() {
                return Some(format!("on the way: {why}"));
            }
        }
        self.good.extend(passed);
        None
    }

    /// One step of what the channel does with the request. Whether its device has its session.
    fn step(&self, real: &mut Real, world: &mut World) -> bool {
        let Request { device, server, stage, .. } = world.request.expect("one is followed");
        let next = match stage {
            // Refused as long as its appliance is away; the device asks again.
            Stage::Ask if gone(world, server).is_some() => Stage::Ask,
            Stage::Ask => self.ask(real, world, device, server),
            Stage::AwaitRelease(session) => {
                match real.ask(&mut world.rows, Question::Released(session)) {
                    Answer::Released(true) => Stage::Ask,
                    // What the channel does when its patience ends.
                    _ if gone(world, world.rows[session].server).is_some()
                        && self.mutant != Mutant::NoPatience =>
                    {
                        real.ask(&mut world.rows, Question::EndUnconfirmed(session));
                        Stage::Ask
                    }
                    _ => stage,
                }
            }
            Stage::AwaitAppliance(session) => match real.ask(&mut world.rows, Question::Status(session)) {
                Answer::Status(Some(Status::Active)) => return true,
                Answer::Status(Some(_)) => stage,
                _ => Stage::Ask,
            },
        };
        // A device that asks again does so until more than the grace has passed.
        let patient = world.request.is_some_and(|request| request.patient || next == stage);
        world.request = Some(Request { device, server, stage: next, patient });
        false
    }

    fn ask(&self, real: &mut Real, world: &mut World, device: usize, server: usize) -> Stage {
        let Answer::Session(live) = real.ask(&mut world.rows, Question::Live) else {
            panic!("a session was asked for")
        };
        let held = live.map(|session| Held {
            session: session_id(session),
            device: device_id(world.rows[session].device),
            appliance_gone: gone(world, world.rows[session].server),
        });
        match (takeover::decide(held, device_id(device), live.map(session_id), GRACE), live) {
            (Takeover::End, Some(session)) => {
                real.ask(&mut world.rows, Question::End { session, failed: false });
                return Stage::AwaitRelease(session);
            }
            (Takeover::EndUnconfirmed, Some(session)) => {
                real.ask(&mut world.rows, Question::EndUnconfirmed(session));
            }
            (Takeover::Wait(_) | Takeover::Ask, _) => return Stage::Ask,
            _ => {}
        }
        match real.ask(&mut world.rows, Question::Request { device, server }) {
            Answer::Session(Some(session)) => Stage::AwaitAppliance(session),
            Answer::Unreleased(session) => {
                match takeover::release(gone(world, world.rows[session].server), GRACE) {
                    Release::GiveUp if self.mutant != Mutant::NoPatience => {
                        real.ask(&mut world.rows, Question::EndUnconfirmed(session));
                        Stage::Ask
                    }
                    Release::Await => Stage::AwaitRelease(session),
                    Release::GiveUp | Release::Wait(_) => Stage::Ask,
                }
            }
            _ => Stage::Ask,
        }
    }
}

/// How long the appliance of a server has been gone, for all that is known.
fn gone(world: &World, server: usize) -> Option<Duration> {
    let long = world.request.is_some_and(|request| request.patient);
    (world.links[server] == Link::Away).then_some(if long { GRACE } else { Duration::ZERO })
}

/// The next thing that happens by itself: messages arrive, broken connections are noticed, appliances come back.
fn fair(world: &World, absent: Absent) -> Option<Action> {
    (0..SERVERS).find_map(|server| match &world.links[server] {
        Link::Up(talk) if talk.late.is_some() => Some(Action::LateReport(server)),
        Link::Up(talk) if talk.report => Some(Action::Report { server, copied: false }),
        Link::Up(talk) if !talk.pushes.is_empty() => Some(Action::Arrive { server, push: 0, copied: false }),
        Link::Up(_) if world.outdated(server) => Some(Action::Push(server)),
        Link::Up(talk) if talk.confirmed && world.blocked(server) => Some(Action::Look(server)),
        Link::Broken { report: Some(_) } => Some(Action::LateReport(server)),
        Link::Broken { report: None } => Some(Action::Notice(server)),
        Link::Away if absent == Absent::Return => Some(Action::Attach(server)),
        _ => None,
    })
}

fn session_id(session: usize) -> SessionId {
    SessionId(Uuid::from_u128(session as u128 + 1))
}

fn device_id(device: usize) -> DeviceId {
    DeviceId(Uuid::from_u128(device as u128 + 1))
}
