//! Every order of events around takeovers, as far as the bounds reach: three devices of one user, two replicas, two
//! appliances; messages that are lost, copied and overtaken; replicas and connections that die. What decides is the store
//! itself and the channel's own decision; only the shell around them is a model.

mod drive;
mod world;

use std::collections::{HashMap, VecDeque};

use drive::{Db, Sim};
use world::{Action, World};

/// What the model does instead of what the program does, to show that it would be noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mutant {
    /// Nothing: the program's own rules.
    None,
    /// A session is granted although the appliance of the one before has not confirmed its end.
    GrantBeforeRelease,
    /// An appliance takes an older state after a newer one.
    OlderStateApplies,
    /// What a replica that lost the channel still hears counts.
    NoFence,
}

struct Explored {
    states: usize,
    transitions: usize,
    depth: usize,
    /// What went wrong, and how it came to that.
    violation: Option<(String, Vec<Action>)>,
}

struct Found {
    world: World,
    db: Db,
    parent: Option<(usize, Action)>,
    depth: usize,
}

/// Goes through what can happen, the shortest ways first, until there is nothing new or the bound is reached.
async fn explore(mutant: Mutant, bound: usize, check_liveness_every: usize) -> Explored {
    let mut sim = Sim::new(mutant).await;
    let (world, db) = sim.start();
    let mut seen = HashMap::from([(world.canonical(), 0)]);
    let mut found = vec![Found { world, db, parent: None, depth: 0 }];
    let mut open = VecDeque::from([0]);
    let (mut transitions, mut depth) = (0, 0);
    // What is worth looking at needs a session first, and a takeover that has begun: the ways to them are explored from there.
    for way in ways() {
        let mut at = 0;
        for action in way {
            let (world, db) = sim.act(&found[at].world, &found[at].db, &action).await;
            let next = Found { world, db, depth: found[at].depth + 1, parent: Some((at, action)) };
            at = found.len();
            depth = depth.max(next.depth);
            seen.entry(next.world.canonical()).or_insert(at);
            found.push(next);
            open.push_back(at);
        }
    }
    while let Some(at) = open.pop_front() {
        if found.len() >= bound {
            break;
        }
        for action in found[at].world.actions() {
            transitions += 1;
            let (world, db) = sim.act(&found[at].world, &found[at].db, &action).await;
            let key = world.canonical();
            if seen.contains_key(&key) {
                continue;
            }
            let id = found.len();
            seen.insert(key, id);
            depth = depth.max(found[at].depth + 1);
            let mut wrong = world.violation();
            if wrong.is_none() && mutant == Mutant::None && id.is_multiple_of(check_liveness_every) {
                wrong = sim.stuck(&world, &db).await;
            }
            found.push(Found { world, db, parent: Some((at, action)), depth: found[at].depth + 1 });
            if let Some(why) = wrong {
                let trace = trace(&found, id);
                return Explored { states: found.len(), transitions, depth, violation: Some((why, trace)) };
            }
            open.push_back(id);
        }
    }
    Explored { states: found.len(), transitions, depth, violation: None }
}

/// Ways to where takeovers begin and go wrong.
fn ways() -> Vec<Vec<Action>> {
    let ask = |device, server, agrees| Action::Ask { device, replica: 0, server, agrees };
    let arrive = || Action::Arrive { server: 0, push: 0, copied: false };
    let on_its_way = || vec![ask(0, 0, false), Action::Step(0), Action::Step(0), Action::Push(0)];
    let connected = || {
        let report = Action::Report { server: 0, report: 0, copied: false };
        [on_its_way(), vec![arrive(), report, Action::Step(0), Action::Step(0)]].concat()
    };
    let taking_over = || {
        let agreed = [ask(1, 1, false), Action::Step(1), ask(1, 1, true), Action::Step(1)];
        [connected(), agreed.to_vec()].concat()
    };
    let attached_again =
        vec![Action::Push(0), arrive(), Action::Cut(0), Action::Attach { server: 0, replica: 1 }];
    vec![
        taking_over(),
        [taking_over(), vec![Action::Crash(0)]].concat(),
        [connected(), vec![Action::End(0), ask(1, 1, false)]].concat(),
        [attached_again, on_its_way(), vec![arrive()]].concat(),
        // Two states on their way at once: the second arrives first.
        [
            on_its_way(),
            vec![Action::GiveUp(0), Action::Push(0), Action::Arrive { server: 0, push: 1, copied: false }],
        ]
        .concat(),
    ]
}

fn trace(found: &[Found], mut at: usize) -> Vec<Action> {
    let mut actions = Vec::new();
    while let Some((parent, action)) = &found[at].parent {
        actions.push(action.clone());
        at = *parent;
    }
    actions.reverse();
    actions
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_order_of_events_grants_two_sessions_or_leaves_a_device_stuck() {
    let explored = explore(Mutant::None, 12_000, 60).await;
    eprintln!(
        "takeover model: {} states, {} transitions, depth {}",
        explored.states, explored.transitions, explored.depth
    );
    assert!(explored.violation.is_none(), "{:#?}", explored.violation);
    assert!(explored.states >= 12_000, "only {} states were reached", explored.states);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_takeover_model_notices_rules_that_are_wrong() {
    for mutant in [Mutant::GrantBeforeRelease, Mutant::OlderStateApplies, Mutant::NoFence] {
        let explored = explore(mutant, 30_000, usize::MAX).await;
        let (why, trace) = explored.violation.unwrap_or_else(|| panic!("{mutant:?} was not noticed"));
        eprintln!("{mutant:?} after {} states: {why}: {trace:?}", explored.states);
    }
}
