//! Every order of events around takeovers: three devices of one user, two appliances, and any number of replicas, which may
//! do at any time whatever a request could make them do. Connections break and replicas die as often as they like; messages
//! are lost with them, are copied, and overtake each other. What answers is the store itself; only what is around it is a
//! model. Worlds that differ in names, or in what can make no difference any more, are one: so there are finitely many, and
//! all of them are looked at. From each of them, a device that asks comes to its session once nothing fails any more.

mod real;
mod request;
mod steps;
mod world;

use std::collections::HashMap;

use real::Real;
use request::{Absent, Follower};
use world::{Action, Bounds, DEVICES, World};

/// What the model does instead of what the program does, to show that it would be noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mutant {
    /// Nothing: the program's own rules.
    None,
    /// A session counts as let go although its appliance has not confirmed that.
    ReleasedUnheard,
    /// An appliance takes an older state after a newer one.
    OlderStateApplies,
    /// What a replica that lost the channel still hears counts.
    NoFence,
    /// An appliance that is gone is waited for without end.
    NoPatience,
}

/// Three sessions that anything still speaks of, and two states on their way to each appliance.
const USUAL: Bounds = Bounds { sessions: 3, pushes: 2 };
/// Asks for a larger model, as `4,2`: sessions and states on their way. That takes minutes.
const LARGER: &str = "HORIZON_TAKEOVER_MODEL";

#[derive(Debug)]
struct Explored {
    states: usize,
    transitions: usize,
    /// Questions that the database answered.
    questions: usize,
    /// Places that requests came through on their way to a session.
    places: usize,
    /// What went wrong, and how it came to that.
    violation: Option<(String, Vec<Action>)>,
}

/// Goes through what can happen, the shortest ways first, until there is nothing new.
fn explore(mutant: Mutant, bounds: Bounds) -> Explored {
    let mut real = Real::new();
    let mut follower = Follower::new(mutant);
    let start = World::start();
    let mut seen = HashMap::from([(start.key(), 0)]);
    let mut found = vec![(start, None)];
    let (mut at, mut transitions, mut violation) = (0, 0, None);
    while at < found.len() {
        let world: World = found[at].0.clone();
        let wrong = world.violation().or_else(|| match mutant {
            Mutant::None | Mutant::NoPatience => stuck(&mut follower, &mut real, &world),
            _ => None,
        });
        if let Some(why) = wrong {
            violation = Some((why, trace(&found, at)));
            break;
        }
        for action in world.actions(bounds, mutant == Mutant::ReleasedUnheard) {
            transitions += 1;
            let next = steps::after(&mut real, mutant, &world, action);
            let new = found.len();
            seen.entry(next.key()).or_insert_with(|| {
                found.push((next, Some((at, action))));
                new
            });
        }
        at += 1;
    }
    let (questions, places) = (real.questions(), follower.places());
    Explored { states: found.len(), transitions, questions, places, violation }
}

fn stuck(follower: &mut Follower, real: &mut Real, world: &World) -> Option<String> {
    [Absent::Return, Absent::Stay]
        .into_iter()
        .find_map(|absent| (0..DEVICES).find_map(|device| follower.stuck(real, world, device, absent)))
}

fn trace(found: &[(World, Option<(usize, Action)>)], mut at: usize) -> Vec<Action> {
    let mut actions = Vec::new();
    while let Some((parent, action)) = found[at].1 {
        actions.push(action);
        at = parent;
    }
    actions.reverse();
    actions
}

fn bounds() -> Bounds {
    let Ok(text) = std::env::var(LARGER) else { return USUAL };
    let numbers: Vec<usize> = text.split(',').map(|number| number.parse().unwrap()).collect();
    // A set of sessions has eight places, and a request that is followed needs one more.
    assert!(matches!(numbers[..], [1..=6, 1..=4]), "{LARGER} is two numbers, at most 6 and 4");
    Bounds { sessions: numbers[0], pushes: numbers[1] }
}

#[test]
fn no_order_of_events_grants_two_sessions_or_leaves_a_device_stuck() {
    let bounds = bounds();
    let explored = explore(Mutant::None, bounds);
    assert!(explored.violation.is_none(), "{:#?}", explored.violation);
    eprintln!(
        "takeover model, all of {bounds:?}: {} states, {} transitions, {} questions to the database, {} places of requests",
        explored.states, explored.transitions, explored.questions, explored.places
    );
    // Less would mean that something cannot happen any more in the model.
    assert!(explored.states > 30_000, "only {} states", explored.states);
}

#[test]
fn the_takeover_model_notices_rules_that_are_wrong() {
    for mutant in [Mutant::ReleasedUnheard, Mutant::OlderStateApplies, Mutant::NoFence, Mutant::NoPatience] {
        let explored = explore(mutant, USUAL);
        let (why, trace) = explored.violation.unwrap_or_else(|| panic!("{mutant:?} was not noticed"));
        eprintln!("{mutant:?} after {} states: {why}: {trace:?}", explored.states);
    }
}
