//! The state of the model, what can happen in it, and what must hold.

/// Devices of one user, and servers with their appliances.
pub(super) const DEVICES: usize = 3;
pub(super) const SERVERS: usize = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Status {
    Requested,
    Active,
    Ended,
    /// Ended without the word of its appliance, which was recorded.
    Interrupted,
}

/// A session as the store has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Row {
    pub(super) device: usize,
    pub(super) server: usize,
    pub(super) status: Status,
    pub(super) released: bool,
}

impl Row {
    pub(super) fn live(&self) -> bool {
        matches!(self.status, Status::Requested | Status::Active)
    }

    /// Whether it stands in the way of the user's other devices.
    fn blocks(&self) -> bool {
        self.status == Status::Ended && !self.released
    }
}

/// A set of sessions, by their places in the order in which they were asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Sessions(u8);

impl Sessions {
    pub(super) fn contains(self, session: usize) -> bool {
        self.0 >> session & 1 == 1
    }

    pub(super) fn iter(self) -> impl Iterator<Item = usize> {
        (0..8).filter(move |session| self.contains(*session))
    }
}

impl FromIterator<usize> for Sessions {
    fn from_iter<I: IntoIterator<Item = usize>>(sessions: I) -> Self {
        Self(sessions.into_iter().fold(0, |all, session| all | 1 << session))
    }
}

/// What an appliance has to do with the controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Link {
    /// It talks with a replica.
    Up(Conversation),
    /// Their connection broke, and the replica does not know yet: what a report says may still arrive.
    Broken { report: Option<Sessions> },
    /// Nobody talks with it.
    Away,
}

/// A conversation of an appliance with a replica, and what is on its way in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Conversation {
    /// The newest state that was sent: its number, and its sessions.
    pub(super) sent: Option<(u8, Sessions)>,
    /// States on their way.
    pub(super) pushes: Vec<(u8, Sessions)>,
    /// The number of the state that the appliance applied last.
    pub(super) applied: u8,
    /// Whether the report is on its way that the newest state was applied. Reports of older ones count for nothing.
    pub(super) report: bool,
    /// Whether that report came.
    pub(super) confirmed: bool,
    /// What a report says that is still on its way in the conversation before. Only a wrong rule lets that count.
    pub(super) late: Option<Sessions>,
}

/// Where a device's request is that is followed to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// It asks.
    Ask,
    /// The session before has ended; its appliance is waited for.
    AwaitRelease(usize),
    /// The session is granted; its appliance is waited for.
    AwaitAppliance(usize),
}

/// A request that is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) device: usize,
    pub(super) server: usize,
    pub(super) stage: Stage,
    /// Whether more than the grace has passed since it began.
    pub(super) patient: bool,
}

impl Request {
    fn session(&self) -> Option<usize> {
        match self.stage {
            Stage::Ask => None,
            Stage::AwaitRelease(session) | Stage::AwaitAppliance(session) => Some(session),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct World {
    pub(super) rows: Vec<Row>,
    /// What each appliance admits.
    pub(super) admitted: [Sessions; SERVERS],
    pub(super) links: [Link; SERVERS],
    /// A request that is followed; while all that can happen is looked at, none is.
    pub(super) request: Option<Request>,
}

/// What can happen. A replica may do at any time whatever any request might make it do, whatever it saw before: so any
/// number of replicas is covered, their deaths between two steps, and requests that are lost, late or made twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// A session is asked for.
    Request { device: usize, server: usize },
    /// The live session ends; one that was requested may also fail.
    End { failed: bool },
    /// A session ends without the word of its appliance.
    EndUnconfirmed(usize),
    /// A wrong rule: a session counts as let go without the word of its appliance.
    Release(usize),
    /// A replica sends the state of a server as it should be.
    Push(usize),
    /// A state arrives; a copy of it may be still on its way.
    Arrive { server: usize, push: usize, copied: bool },
    /// A report arrives; a copy of it may be still on its way.
    Report { server: usize, copied: bool },
    /// A replica looks at what a server's state should have, and nothing is to be sent.
    Look(usize),
    /// A report arrives at a replica whose conversation is over.
    LateReport(usize),
    /// The connection of an appliance breaks, and with it everything on its way to the appliance.
    Cut(usize),
    /// Its replica finds out, or dies.
    Notice(usize),
    /// An appliance comes to a replica.
    Attach(usize),
}

/// How much there may be at once, which is all that bounds the model.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Sessions that anything still speaks of.
    pub(super) sessions: usize,
    /// States on their way to one appliance.
    pub(super) pushes: usize,
}

impl World {
    pub(super) fn start() -> Self {
        let up = || Link::Up(Conversation::default());
        Self { rows: Vec::new(), admitted: Default::default(), links: [up(), up()], request: None }
    }

    /// The live session.
    pub(super) fn live(&self) -> Option<usize> {
        self.rows.iter().position(Row::live)
    }

    /// The sessions that a server's state should have.
    fn wanted(&self, server: usize) -> Sessions {
        (0..self.rows.len()).filter(|s| self.rows[*s].server == server && self.rows[*s].live()).collect()
    }

    /// Whether a session of a server ended that its appliance may still admit, for all the store knows.
    pub(super) fn blocked(&self, server: usize) -> bool {
        self.rows.iter().any(|row| row.server == server && row.blocks())
    }

    /// Whether a replica has something to send to a server's appliance.
    pub(super) fn outdated(&self, server: usize) -> bool {
        matches!(&self.links[server], Link::Up(talk) if talk.sent.is_none_or(|(_, sent)| sent != self.wanted(server)))
    }

    /// What can happen, within bounds; with a wrong rule, sessions can count as let go that were not.
    pub(super) fn actions(&self, bounds: Bounds, wrong_release: bool) -> Vec<Action> {
        let mut all = Vec::new();
        if self.rows.len() < bounds.sessions {
            for device in 0..DEVICES {
                all.extend((0..SERVERS).map(|server| Action::Request { device, server }));
            }
        }
        if let Some(live) = self.live() {
            all.push(Action::End { failed: false });
            if self.rows[live].status == Status::Requested {
                all.push(Action::End { failed: true });
            }
        }
        for (session, row) in self.rows.iter().enumerate() {
            if !row.released && row.status != Status::Interrupted {
                all.push(Action::EndUnconfirmed(session));
            }
            if wrong_release && row.blocks() {
                all.push(Action::Release(session));
            }
        }
        for server in 0..SERVERS {
            match &self.links[server] {
                Link::Up(talk) => {
                    if talk.pushes.len() < bounds.pushes && self.outdated(server) {
                        all.push(Action::Push(server));
                    }
                    for copied in [false, true] {
                        let pushes = 0..talk.pushes.len();
                        all.extend(pushes.map(|push| Action::Arrive { server, push, copied }));
                        all.extend(talk.report.then_some(Action::Report { server, copied }));
                    }
                    all.extend((talk.confirmed && !self.outdated(server)).then_some(Action::Look(server)));
                    all.extend(talk.late.map(|_| Action::LateReport(server)));
                    all.push(Action::Cut(server));
                }
                Link::Broken { report } => {
                    all.extend([Action::Notice(server), Action::Attach(server)]);
                    all.extend(report.map(|_| Action::LateReport(server)));
                }
                Link::Away => all.push(Action::Attach(server)),
            }
        }
        all
    }

    /// What must never be, if it is.
    pub(super) fn violation(&self) -> Option<String> {
        let live: Vec<_> = (0..self.rows.len()).filter(|s| self.rows[*s].live()).collect();
        if live.len() > 1 {
            return Some(format!("sessions {live:?} of one user are live"));
        }
        for (server, admitted) in self.admitted.iter().enumerate() {
            for session in admitted.iter() {
                let row = &self.rows[session];
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

    /// Drops what can make no difference any more, and numbers what is left anew. With a wrong rule, states that an appliance
    /// should pass over make one.
    pub(super) fn tidy(&mut self, older_applies: bool) {
        for link in &mut self.links {
            let Link::Up(talk) = link else { continue };
            let applied = talk.applied;
            talk.pushes.retain(|(number, _)| older_applies || *number > applied);
            talk.pushes.sort_unstable();
            talk.pushes.dedup();
            // Of the numbers of states, only their order matters.
            let mut numbers: Vec<u8> =
                talk.sent.iter().chain(&talk.pushes).map(|(number, _)| *number).collect();
            numbers.extend([0, applied]);
            numbers.sort_unstable();
            numbers.dedup();
            let rank =
                |number: u8| (0u8..).zip(&numbers).find(|(_, n)| **n == number).expect("it is there").0;
            talk.applied = rank(applied);
            talk.sent.iter_mut().chain(&mut talk.pushes).for_each(|(number, _)| *number = rank(*number));
        }
        self.forget();
    }

    /// Forgets sessions that nothing speaks of and that stand in nobody's way; of those that differ in nothing but their age,
    /// one stands for all.
    fn forget(&mut self) {
        let mut spoken = 0;
        self.messages().for_each(|sessions| spoken |= sessions.0);
        spoken |= self.request.and_then(|request| request.session()).map_or(0, |session| 1 << session);
        let spoken = Sessions(spoken);
        let rows = &self.rows;
        let stays = |s: &usize| {
            let alone =
                || !(s + 1..rows.len()).any(|later| !spoken.contains(later) && rows[later] == rows[*s]);
            spoken.contains(*s) || rows[*s].live() || (rows[*s].blocks() && alone())
        };
        let kept: Vec<usize> = (0..rows.len()).filter(stays).collect();
        if kept.len() == rows.len() {
            return;
        }
        self.rows = kept.iter().map(|old| rows[*old]).collect();
        let new = |old: usize| kept.binary_search(&old).expect("what is spoken of stays");
        self.messages().for_each(|sessions| *sessions = sessions.iter().map(new).collect());
        if let Some(request) = &mut self.request {
            request.stage = match request.stage {
                Stage::Ask => Stage::Ask,
                Stage::AwaitRelease(session) => Stage::AwaitRelease(new(session)),
                Stage::AwaitAppliance(session) => Stage::AwaitAppliance(new(session)),
            };
        }
    }

    /// What appliances admit, and every message that names sessions.
    fn messages(&mut self) -> impl Iterator<Item = &mut Sessions> {
        let told = self.links.iter_mut().flat_map(|link| -> Box<dyn Iterator<Item = &mut Sessions>> {
            match link {
                Link::Up(talk) => {
                    let states = talk.sent.iter_mut().chain(&mut talk.pushes).map(|(_, sessions)| sessions);
                    Box::new(states.chain(&mut talk.late))
                }
                Link::Broken { report } => Box::new(report.iter_mut()),
                Link::Away => Box::new(std::iter::empty()),
            }
        });
        told.chain(&mut self.admitted)
    }

    /// The world in bytes: the same for worlds that differ only in the names of devices and servers.
    pub(super) fn key(&self) -> Box<[u8]> {
        self.encoded(false).min(self.encoded(true)).into()
    }

    fn encoded(&self, swapped: bool) -> Vec<u8> {
        let server = |s: usize| (s ^ usize::from(swapped)) as u8;
        let maybe = |sessions: Option<Sessions>| sessions.map_or(u8::MAX, |sessions| sessions.0);
        let mut bytes = Vec::with_capacity(48);
        // Devices are named in the order in which they occur.
        let mut names: Vec<usize> = self.request.iter().map(|request| request.device).collect();
        if let Some(request) = &self.request {
            let (stage, session) = match request.stage {
                Stage::Ask => (0, 0),
                Stage::AwaitRelease(session) => (1, session),
                Stage::AwaitAppliance(session) => (2, session),
            };
            bytes.extend([server(request.server), u8::from(request.patient), stage, session as u8]);
        }
        bytes.push(self.rows.len() as u8);
        for row in &self.rows {
            let name = names.iter().position(|d| *d == row.device).unwrap_or(names.len());
            if name == names.len() {
                names.push(row.device);
            }
            bytes.extend([name as u8, server(row.server), row.status as u8, u8::from(row.released)]);
        }
        for s in (0..SERVERS).map(|s| usize::from(server(s))) {
            bytes.push(self.admitted[s].0);
            match &self.links[s] {
                Link::Up(talk) => {
                    bytes.extend([0, talk.applied, u8::from(talk.report), maybe(talk.late)]);
                    bytes.extend([
                        u8::from(talk.confirmed),
                        u8::from(talk.sent.is_some()),
                        talk.pushes.len() as u8,
                    ]);
                    let states = talk.sent.iter().chain(&talk.pushes);
                    bytes.extend(states.flat_map(|(number, sessions)| [*number, sessions.0]));
                }
                Link::Broken { report } => bytes.extend([1, maybe(*report)]),
                Link::Away => bytes.push(2),
            }
        }
        bytes
    }
}
