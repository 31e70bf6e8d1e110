//! What actions do: the store's own answers, and appliances and conversations in words of the model.

use super::{
    Mutant,
    real::{Answer, Question, Real},
    world::{Action, Conversation, Link, World},
};

/// The world after an action.
pub(super) fn after(real: &mut Real, mutant: Mutant, world: &World, action: Action) -> World {
    let mut next = world.clone();
    perform(real, mutant, &mut next, action);
    next.tidy(mutant == Mutant::OlderStateApplies);
    next
}

/// Carries an action out, and leaves everything where it was.
pub(super) fn perform(real: &mut Real, mutant: Mutant, world: &mut World, action: Action) {
    match action {
        Action::Request { device, server } => {
            real.ask(&mut world.rows, Question::Request { device, server });
        }
        Action::End { failed } => {
            let Answer::Session(live) = real.ask(&mut world.rows, Question::Live) else {
                panic!("a session was asked for")
            };
            let session = live.expect("there is one");
            real.ask(&mut world.rows, Question::End { session, failed });
        }
        Action::EndUnconfirmed(session) => {
            real.ask(&mut world.rows, Question::EndUnconfirmed(session));
        }
        Action::Release(session) => world.rows[session].released = true,
        Action::Push(server) => {
            let Answer::Sessions(wanted) = real.ask(&mut world.rows, Question::OfServer(server)) else {
                panic!("sessions were asked for")
            };
            let talk = talk(world, server);
            let newest = talk.sent.map_or(talk.applied, |(number, _)| number.max(talk.applied));
            talk.sent = Some((newest + 1, wanted));
            talk.pushes.push((newest + 1, wanted));
            (talk.report, talk.confirmed) = (false, false);
        }
        Action::Arrive { server, push, copied } => {
            let talk = talk(world, server);
            let (number, sessions) = talk.pushes[push];
            if !copied {
                talk.pushes.remove(push);
            }
            if number > talk.applied || mutant == Mutant::OlderStateApplies {
                talk.applied = number;
                talk.report |= talk.sent.is_some_and(|(newest, _)| newest == number);
                world.admitted[server] = sessions;
            }
        }
        Action::Report { server, copied } => {
            let talk = talk(world, server);
            (talk.report, talk.confirmed) = (copied, true);
            let (_, holds) = talk.sent.expect("it was sent");
            real.ask(&mut world.rows, Question::Applied { server, holds, lost: false });
        }
        Action::Look(server) => {
            let (_, holds) = talk(world, server).sent.expect("it was sent");
            real.ask(&mut world.rows, Question::Applied { server, holds, lost: false });
        }
        Action::LateReport(server) => match &mut world.links[server] {
            // Nobody else has taken the channel since.
            Link::Broken { report } => {
                let holds = report.take().expect("it is on its way");
                real.ask(&mut world.rows, Question::Applied { server, holds, lost: false });
            }
            Link::Up(talk) => {
                let holds = talk.late.take().expect("it is on its way");
                real.ask(&mut world.rows, Question::Applied { server, holds, lost: false });
            }
            Link::Away => panic!("nobody hears it"),
        },
        Action::Cut(server) => {
            let talk = talk(world, server);
            let report = talk.sent.filter(|_| talk.report).map(|(_, holds)| holds);
            world.links[server] = Link::Broken { report };
        }
        Action::Notice(server) => world.links[server] = Link::Away,
        Action::Attach(server) => {
            real.ask(&mut world.rows, Question::Take(server));
            let mut late = match world.links[server] {
                Link::Broken { report } => report,
                _ => None,
            };
            if mutant != Mutant::NoFence
                && let Some(holds) = late.take()
            {
                // The store passes over it, whenever it arrives: it is heard here, and gone.
                let before = world.rows.clone();
                real.ask(&mut world.rows, Question::Applied { server, holds, lost: true });
                assert_eq!(world.rows, before, "what is heard by a replica that lost the channel counts");
            }
            world.links[server] = Link::Up(Conversation { late, ..Conversation::default() });
        }
    }
}

fn talk(world: &mut World, server: usize) -> &mut Conversation {
    match &mut world.links[server] {
        Link::Up(talk) => talk,
        link => panic!("the appliance does not talk: {link:?}"),
    }
}
