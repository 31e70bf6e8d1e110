//! The state of the model, what can happen in it, and what must hold.

use std::collections::BTreeSet;

/// Devices, servers with their appliances, replicas, and sessions by the order in which they were asked for.
pub(super) const DEVICES: usize = 3;
pub(super) const SERVERS: usize = 2;
pub(super) const REPLICAS: usize = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Status {
    Requested,
    Active,
    Ended,
    /// Ended without the word of its appliance, which was recorded.
    Interrupted,
}

/// A session as the store has it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Row {
    pub(super) device: usize,
    pub(super) server: usize,
    pub(super) status: Status,
    pub(super) released: bool,
}

pub(super) type Sessions = BTreeSet<usize>;

#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Appliance {
    pub(super) admitted: Sessions,
    /// The number of the state it applied in this conversation.
    pub(super) applied: u8,
    /// Whether it has been away for longer than the grace.
    pub(super) long_gone: bool,
}

/// A conversation of an appliance with a replica, and what is on its way in it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Conversation {
    pub(super) replica: usize,
    pub(super) sent: Option<(u8, Sessions)>,
    pub(super) pushes: BTreeSet<(u8, Sessions)>,
    pub(super) reports: BTreeSet<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Stage {
    Check,
    Grant,
    AwaitRelease(usize),
    AwaitAppliance(usize),
    /// The ticket is on its way.
    Answered(usize),
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Request {
    pub(super) replica: usize,
    pub(super) server: usize,
    pub(super) agreed: Option<usize>,
    pub(super) stage: Stage,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Device {
    pub(super) request: Option<Request>,
    /// The session its user was asked about.
    pub(super) prompt: Option<usize>,
    pub(super) ticket: Option<usize>,
    pub(super) asks_left: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct World {
    pub(super) rows: Vec<Row>,
    pub(super) appliances: [Appliance; SERVERS],
    /// The conversation that each appliance is in.
    pub(super) talks: [Option<Conversation>; SERVERS],
    /// One that is over, which its replica does not know yet.
    pub(super) stale: [Option<Conversation>; SERVERS],
    pub(super) devices: [Device; DEVICES],
    pub(super) crashes_left: u8,
    pub(super) losses_left: u8,
    pub(super) copies_left: u8,
}

#[derive(Clone, Debug)]
pub(super) enum Action {
    /// A device asks for a session; it may agree to end the one it was asked about.
    Ask { device: usize, replica: usize, server: usize, agrees: bool },
    /// A replica goes on with a device's request.
    Step(usize),
    /// What a request waits for has not come in time.
    GiveUp(usize),
    /// The ticket does not arrive.
    LoseTicket(usize),
    /// A device ends its session.
    End(usize),
    /// A request that nobody waits for is cleared away.
    Sweep,
    /// A replica sends the state of a server as it should be.
    Push(usize),
    /// A state arrives; a copy of it may be still on its way.
    Arrive { server: usize, push: usize, copied: bool },
    /// A report arrives.
    Report { server: usize, report: usize, copied: bool },
    /// A report arrives at a replica that has lost the channel, or is about to.
    StaleReport { server: usize, report: usize },
    /// The connection of an appliance breaks, which its replica does not know yet.
    Cut(usize),
    /// It does now.
    Notice(usize),
    /// An appliance comes to a replica.
    Attach { server: usize, replica: usize },
    /// An appliance has been away for longer than the grace.
    LongGone(usize),
    /// A replica dies.
    Crash(usize),
}

impl World {
    pub(super) fn start() -> Self {
        Self {
            rows: Vec::new(),
            appliances: Default::default(),
            talks: [0, 1].map(|replica| Some(Conversation::new(replica))),
            stale: Default::default(),
            devices: std::array::from_fn(|_| Device { asks_left: 3, ..Device::default() }),
            crashes_left: 1,
            losses_left: 1,
            copies_left: 1,
        }
    }

    pub(super) fn live(&self, session: usize) -> bool {
        matches!(self.rows[session].status, Status::Requested | Status::Active)
    }

    /// The sessions that a server's state should have.
    pub(super) fn wanted(&self, server: usize) -> Sessions {
        (0..self.rows.len()).filter(|s| self.rows[*s].server == server && self.live(*s)).collect()
    }

    /// A requested session whose request is gone.
    pub(super) fn orphan(&self) -> Option<usize> {
        let waits = |s| {
            let stage = Stage::AwaitAppliance(s);
            self.devices.iter().any(|d| d.request.as_ref().is_some_and(|r| r.stage == stage))
        };
        (0..self.rows.len()).find(|s| self.rows[*s].status == Status::Requested && !waits(*s))
    }

    pub(super) fn actions(&self) -> Vec<Action> {
        let mut all = Vec::new();
        for (device, state) in self.devices.iter().enumerate() {
            match &state.request {
                None if state.asks_left > 0 => {
                    for (replica, server) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                        all.push(Action::Ask { device, replica, server, agrees: false });
                        if state.prompt.is_some() {
                            all.push(Action::Ask { device, replica, server, agrees: true });
                        }
                    }
                }
                None => {}
                Some(request) => {
                    all.push(Action::Step(device));
                    match request.stage {
                        Stage::AwaitRelease(_) | Stage::AwaitAppliance(_) => all.push(Action::GiveUp(device)),
                        Stage::Answered(_) if self.losses_left > 0 => all.push(Action::LoseTicket(device)),
                        _ => {}
                    }
                }
            }
            if state.ticket.is_some_and(|session| self.live(session)) {
                all.push(Action::End(device));
            }
        }
        if self.orphan().is_some() {
            all.push(Action::Sweep);
        }
        for server in 0..SERVERS {
            if let Some(talk) = &self.talks[server] {
                if talk.sent.as_ref().is_none_or(|(_, sent)| *sent != self.wanted(server)) {
                    all.push(Action::Push(server));
                }
                for push in 0..talk.pushes.len() {
                    all.push(Action::Arrive { server, push, copied: false });
                    if self.copies_left > 0 {
                        all.push(Action::Arrive { server, push, copied: true });
                    }
                }
                for report in 0..talk.reports.len() {
                    all.push(Action::Report { server, report, copied: false });
                    if self.copies_left > 0 {
                        all.push(Action::Report { server, report, copied: true });
                    }
                }
                if self.losses_left > 0 {
                    all.push(Action::Cut(server));
                }
            } else {
                all.extend((0..REPLICAS).map(|replica| Action::Attach { server, replica }));
                if !self.appliances[server].long_gone {
                    all.push(Action::LongGone(server));
                }
            }
            if let Some(stale) = &self.stale[server] {
                all.push(Action::Notice(server));
                all.extend((0..stale.reports.len()).map(|report| Action::StaleReport { server, report }));
            }
        }
        if self.crashes_left > 0 {
            all.extend((0..REPLICAS).map(Action::Crash));
        }
        all
    }

    /// What must never be, if it is.
    pub(super) fn violation(&self) -> Option<String> {
        let live: Vec<_> = (0..self.rows.len()).filter(|s| self.live(*s)).collect();
        if live.len() > 1 {
            return Some(format!("sessions {live:?} of one user are live"));
        }
        for (server, appliance) in self.appliances.iter().enumerate() {
            for session in &appliance.admitted {
                let row = &self.rows[*session];
                if row.released {
                    return Some(format!("appliance {server} admits session {session}, which it had let go"));
                }
                // One that it may still admit after its end is recorded as such before another device gets one.
                let other = live.iter().find(|s| self.rows[**s].device != row.device);
                if row.status == Status::Ended && other.is_some() {
                    return Some(format!(
                        "appliance {server} admits session {session} while {other:?} of another device is granted"
                    ));
                }
            }
        }
        None
    }

    /// Forgets sessions that nothing speaks of any more. Returns the new numbers of those that stay.
    pub(super) fn forget(&mut self) -> Vec<Option<usize>> {
        let mut named: Sessions = (0..self.rows.len())
            .filter(|s| self.live(*s) || (!self.rows[*s].released && self.rows[*s].status == Status::Ended))
            .collect();
        for appliance in &self.appliances {
            named.extend(&appliance.admitted);
        }
        for talk in self.talks.iter().chain(&self.stale).flatten() {
            named.extend(talk.sent.iter().flat_map(|(_, sent)| sent));
            named.extend(talk.pushes.iter().flat_map(|(_, push)| push));
        }
        for device in &self.devices {
            named.extend(device.prompt.iter().chain(&device.ticket));
            if let Some(request) = &device.request {
                named.extend(request.agreed);
                named.extend(match request.stage {
                    Stage::AwaitRelease(s) | Stage::AwaitAppliance(s) | Stage::Answered(s) => Some(s),
                    Stage::Check | Stage::Grant => None,
                });
            }
        }
        let order: Vec<usize> = named.into_iter().collect();
        let numbers = (0..self.rows.len()).map(|old| order.binary_search(&old).ok()).collect::<Vec<_>>();
        if order.len() < self.rows.len() {
            let number = |old: &usize| numbers[*old].expect("it is named");
            self.rows = order.iter().map(|old| self.rows[*old].clone()).collect();
            let renumbered = |set: &Sessions| set.iter().map(number).collect::<Sessions>();
            for appliance in &mut self.appliances {
                appliance.admitted = renumbered(&appliance.admitted);
            }
            for talk in self.talks.iter_mut().chain(&mut self.stale).flatten() {
                talk.sent = talk.sent.as_ref().map(|(n, sent)| (*n, renumbered(sent)));
                talk.pushes = talk.pushes.iter().map(|(n, push)| (*n, renumbered(push))).collect();
            }
            for device in &mut self.devices {
                device.prompt = device.prompt.as_ref().map(number);
                device.ticket = device.ticket.as_ref().map(number);
                if let Some(request) = &mut device.request {
                    request.agreed = request.agreed.as_ref().map(number);
                    request.stage = match request.stage {
                        Stage::AwaitRelease(s) => Stage::AwaitRelease(number(&s)),
                        Stage::AwaitAppliance(s) => Stage::AwaitAppliance(number(&s)),
                        Stage::Answered(s) => Stage::Answered(number(&s)),
                        stage => stage,
                    };
                }
            }
        }
        numbers
    }

    /// The least of all worlds that are the same but for the names of devices, servers and replicas.
    pub(super) fn canonical(&self) -> Self {
        const ORDERS: [[usize; 3]; 6] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
        let mut least: Option<Self> = None;
        for devices in ORDERS {
            for swap_servers in [false, true] {
                for swap_replicas in [false, true] {
                    let renamed = self.renamed(devices, swap_servers, swap_replicas);
                    if least.as_ref().is_none_or(|least| renamed < *least) {
                        least = Some(renamed);
                    }
                }
            }
        }
        least.expect("there are orders")
    }

    fn renamed(&self, devices: [usize; 3], swap_servers: bool, swap_replicas: bool) -> Self {
        let server = |s: usize| if swap_servers { 1 - s } else { s };
        let replica = |r: usize| if swap_replicas { 1 - r } else { r };
        let mut world = self.clone();
        for row in &mut world.rows {
            row.device = devices[row.device];
            row.server = server(row.server);
        }
        for (old, state) in self.devices.iter().enumerate() {
            let mut state = state.clone();
            if let Some(request) = &mut state.request {
                request.server = server(request.server);
                request.replica = replica(request.replica);
            }
            world.devices[devices[old]] = state;
        }
        if swap_servers {
            world.appliances.swap(0, 1);
            world.talks.swap(0, 1);
            world.stale.swap(0, 1);
        }
        for talk in world.talks.iter_mut().chain(&mut world.stale).flatten() {
            talk.replica = replica(talk.replica);
        }
        world
    }
}

impl Conversation {
    pub(super) fn new(replica: usize) -> Self {
        Self { replica, sent: None, pushes: BTreeSet::new(), reports: BTreeSet::new() }
    }
}
