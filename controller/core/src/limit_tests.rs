//! How many resources may go without a question.

use std::collections::BTreeSet;

use horizon_crds::KindName;

use crate::testing::{World, document};

fn users(count: usize) -> Vec<(String, String)> {
    (0..count).map(|i| (format!("user-{i:03}.toml"), document("User", &format!("user-{i:03}"), ""))).collect()
}

#[test]
fn removals_of_many_wait() {
    let files = users(50);
    let files: Vec<_> = files.iter().map(|(p, t)| (p.as_str(), t.clone())).collect();
    let mut world = World::of(&files);
    for (path, _) in &files[..10] {
        world.delete(path);
    }
    let plan = world.plan_all();
    assert_eq!((plan.removals.len(), plan.held), (10, None), "20 % go");
    world.delete(files[10].0);
    let plan = world.plan_all();
    let held = plan.held.clone().unwrap();
    assert!(plan.removals.is_empty(), "11 of 50 wait");
    assert_eq!(held.resources.len(), 11);
    assert!(
        held.message.contains("11 of 50 users") && held.message.contains("confirm-prune"),
        "{}",
        held.message
    );
    let confirmed = world.plan(&held.resources, &held.resources);
    assert_eq!(confirmed.removals.len(), 11);
    world.commit(&confirmed);
    assert!(world.plan_all().is_empty());
}

#[test]
fn a_slow_removal_of_many_waits_too() {
    let files = users(50);
    let files: Vec<_> = files.iter().map(|(p, t)| (p.as_str(), t.clone())).collect();
    let mut world = World::of(&files);
    let mut removed = 0;
    for (path, _) in &files {
        let touched = world.delete(path);
        let plan = world.plan(&touched, &BTreeSet::new());
        removed += plan.removals.len();
        *world.recent.entry((KindName::User, "default".parse().unwrap())).or_default() += plan.removals.len();
        world.commit(&plan);
    }
    assert_eq!(removed, 10);
    world.recent.clear();
    assert_eq!(world.plan_all().held.unwrap().resources.len(), 40);
}

#[test]
fn removals_that_wait_in_one_namespace_hold_up_no_other() {
    let user = |name: &str, namespace: &str| {
        let text = document("User", name, "");
        text.replacen("metadata.name", &format!("metadata.namespace = \"{namespace}\"\nmetadata.name"), 1)
    };
    let mut files: Vec<_> =
        (0..30).map(|i| (format!("a{i}.toml"), user(&format!("u{i}"), "team-a"))).collect();
    files.extend((0..30).map(|i| (format!("b{i}.toml"), user(&format!("u{i}"), "team-b"))));
    let files: Vec<_> = files.iter().map(|(p, t)| (p.as_str(), t.clone())).collect();
    let mut world = World::of(&files);
    for (path, _) in &files[..25] {
        world.delete(path);
    }
    world.delete("b7.toml");
    let plan = world.plan_all();
    let held = plan.held.unwrap();
    assert!(held.message.contains("25 of 30 users in 'team-a':"), "{}", held.message);
    assert_eq!(held.resources.len(), 25);
    let gone: Vec<_> = plan.removals.iter().map(ToString::to_string).collect();
    assert_eq!(gone, ["User team-b/u7"]);
    // Nor does what went there lately.
    world.recent.insert((KindName::User, "team-a".parse().unwrap()), 30);
    assert_eq!(world.plan_all().removals.len(), 1);
}

#[test]
fn an_emptied_directory_removes_nothing() {
    let mut world = World::of(&[("a.toml", document("User", "ana", ""))]);
    world.delete("a.toml");
    let plan = world.plan_all();
    assert!(plan.is_empty());
    let held = plan.held.unwrap();
    assert!(held.message.contains("declares nothing"), "{}", held.message);
    assert_eq!(world.plan(&held.resources, &held.resources).removals.len(), 1);
}
