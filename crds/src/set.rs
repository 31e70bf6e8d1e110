//! What can only be told of a whole set of resources: duplicates, dangling references, overlapping ranges.

use std::collections::{BTreeMap, HashMap, HashSet, hash_map::Entry};

use crate::{
    Cidr, Issue, KindName, Name, Origin, Problem, Reference, ReferenceTarget, Resource, ResourceId,
    check::did_you_mean,
};

/// A problem of one resource among others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetProblem {
    /// The place of the resource in the set that was checked.
    pub index: usize,
    /// What is wrong with it.
    pub problem: Problem,
}

/// The names there are in each namespace, to resolve references against.
#[derive(Clone, Debug, Default)]
pub struct Names {
    of_kind: HashMap<(Name, KindName), HashSet<Name>>,
    groups: HashMap<Name, HashSet<Name>>,
    /// Namespaces with a user who cannot be read, and who may be in any group.
    unknown_groups: HashSet<Name>,
}

impl Names {
    /// The names of a set of resources.
    pub fn of<'a>(resources: impl IntoIterator<Item = &'a Resource>) -> Self {
        let mut names = Self::default();
        for resource in resources {
            let namespace = resource.namespace();
            let same_kind = names.of_kind.entry((namespace.clone(), resource.kind())).or_default();
            same_kind.insert(resource.name().clone());
            if let Resource::User(user) = resource {
                let groups = names.groups.entry(namespace.clone()).or_default();
                groups.extend(user.spec.groups.iter().cloned());
            }
        }
        names
    }

    /// Adds resources of which only the name is known, because something else about them is wrong. What refers to them is then
    /// not blamed for it.
    pub fn add_broken<'a>(&mut self, broken: impl IntoIterator<Item = &'a ResourceId>) {
        for id in broken {
            self.of_kind.entry((id.namespace.clone(), id.kind)).or_default().insert(id.name.clone());
            if id.kind == KindName::User {
                self.unknown_groups.insert(id.namespace.clone());
            }
        }
    }

    fn candidates(&self, namespace: &Name, target: ReferenceTarget) -> Option<&HashSet<Name>> {
        match target {
            ReferenceTarget::Kind(kind) => self.of_kind.get(&(namespace.clone(), kind)),
            ReferenceTarget::Group => self.groups.get(namespace),
        }
    }

    /// What is wrong with the references of a resource: each that names nothing, with the nearest name there is.
    pub fn dangling(&self, resource: &Resource) -> Vec<Issue> {
        let namespace = resource.namespace();
        let mut issues = Vec::new();
        for Reference { field, target, name } in resource.references() {
            let candidates = self.candidates(namespace, target);
            let any_group = target == ReferenceTarget::Group && self.unknown_groups.contains(namespace);
            if any_group || candidates.is_some_and(|names| names.contains(&name)) {
                continue;
            }
            let (what, otherwise) = match target {
                ReferenceTarget::Kind(kind) => {
                    (kind.as_str(), format!("declare it or remove the reference ({kind} {name})"))
                }
                ReferenceTarget::Group => {
                    ("group", format!("list {name} in the groups of a User or remove the reference"))
                }
            };
            let names = candidates.into_iter().flatten().map(Name::as_str);
            issues.push(Issue {
                field,
                message: format!("there is no {what} \"{name}\" in namespace \"{namespace}\""),
                remedy: did_you_mean(&name, names, || otherwise),
            });
        }
        issues
    }
}

/// Checks resources against one another: names that stand twice, references that lead nowhere, ranges of addresses that
/// overlap, and a second `SecurityPolicy` in a namespace. Of two that cannot stand together, the later one has the problem.
pub fn check_set(set: &[(&Resource, &Origin)]) -> Vec<SetProblem> {
    check_set_with(set, [])
}

/// [`check_set`], with resources beside the set of which only the name is known, as [`Parsed::broken`](crate::Parsed::broken)
/// lists them: references to them are not dangling.
pub fn check_set_with<'a>(
    set: &[(&Resource, &Origin)],
    broken: impl IntoIterator<Item = &'a ResourceId>,
) -> Vec<SetProblem> {
    let mut found = Vec::new();
    let mut report = |index: usize, issue: Issue| {
        let (resource, origin) = set[index];
        found.push(SetProblem { index, problem: Problem::from_issue(issue, resource, origin) });
    };
    duplicates(set, &mut report);
    let mut names = Names::of(set.iter().map(|(resource, _)| *resource));
    names.add_broken(broken);
    for (index, (resource, _)) in set.iter().enumerate() {
        names.dangling(resource).into_iter().for_each(|issue| report(index, issue));
    }
    network_overlaps(set, &mut report);
    egress_overlaps(set, &mut report);
    found.sort_by_key(|found| found.index);
    found
}

fn duplicates(set: &[(&Resource, &Origin)], report: &mut impl FnMut(usize, Issue)) {
    let mut seen: HashMap<ResourceId, usize> = HashMap::with_capacity(set.len());
    for (index, (resource, _)) in set.iter().enumerate() {
        match seen.entry(resource.id()) {
            Entry::Vacant(place) => {
                place.insert(index);
            }
            Entry::Occupied(first) => report(
                index,
                Issue {
                    field: "metadata.name".into(),
                    message: format!("{} is already declared at {}", resource.id(), set[*first.get()].1),
                    remedy: "rename or remove one of the two".into(),
                },
            ),
        }
    }
}

/// A range of a virtual network and where it stands.
struct Range<'a> {
    cidr: Cidr,
    index: usize,
    place: usize,
    name: &'a Name,
}

/// Finds ranges of different networks of a namespace that overlap. Sorted by their first address and then from large to
/// small, a range overlaps an earlier one exactly when it lies inside the innermost one still open.
fn network_overlaps(set: &[(&Resource, &Origin)], report: &mut impl FnMut(usize, Issue)) {
    let mut by_namespace: BTreeMap<&Name, Vec<Range<'_>>> = BTreeMap::new();
    for (index, (resource, _)) in set.iter().enumerate() {
        let Resource::VirtualNetwork(network) = resource else { continue };
        let ranges = by_namespace.entry(resource.namespace()).or_default();
        let places = network.spec.address_ranges.iter().enumerate();
        ranges.extend(places.map(|(place, cidr)| Range { cidr: *cidr, index, place, name: resource.name() }));
    }
    for ranges in by_namespace.values_mut() {
        ranges.sort_by_key(|range| (range.cidr.get().network(), range.cidr.get().prefix_len(), range.index));
        let mut open: Vec<&Range<'_>> = Vec::new();
        for range in &*ranges {
            while open.last().is_some_and(|outer| !outer.cidr.overlaps(range.cidr)) {
                open.pop();
            }
            if let Some(outer) = open.last().filter(|outer| outer.name != range.name) {
                let (earlier, later) =
                    if outer.index < range.index { (*outer, range) } else { (range, *outer) };
                report(later.index, overlap(later, earlier));
            }
            open.push(range);
        }
    }
}

fn overlap(later: &Range<'_>, earlier: &Range<'_>) -> Issue {
    Issue {
        field: format!("spec.addressRanges[{}]", later.place),
        message: format!("{} overlaps {} of VirtualNetwork \"{}\"", later.cidr, earlier.cidr, earlier.name),
        remedy: "give each network a range of its own".into(),
    }
}

/// Finds servers whose clients' addresses overlap a virtual network they carry.
fn egress_overlaps(set: &[(&Resource, &Origin)], report: &mut impl FnMut(usize, Issue)) {
    let networks: HashMap<(&Name, &Name), &[Cidr]> = set
        .iter()
        .filter_map(|(resource, _)| match resource {
            Resource::VirtualNetwork(network) => {
                Some(((resource.namespace(), resource.name()), network.spec.address_ranges.as_slice()))
            }
            _ => None,
        })
        .collect();
    for (index, (resource, _)) in set.iter().enumerate() {
        let Resource::Server(server) = resource else { continue };
        for (place, own) in server.spec.egress.address_ranges.iter().enumerate() {
            for name in &server.spec.networks {
                let ranges = networks.get(&(resource.namespace(), name)).copied().unwrap_or_default();
                if let Some(other) = ranges.iter().find(|range| range.overlaps(*own)) {
                    let field = format!("spec.egress.addressRanges[{place}]");
                    let message = format!(
                        "{own} overlaps {other} of VirtualNetwork \"{name}\", which this server carries"
                    );
                    report(index, Issue { field, message, remedy: "give the server another range".into() });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Parsed, parse};

    /// The problems of a set of files, each with its name, as text.
    fn problems(files: &[(&str, &str)]) -> Vec<String> {
        let parsed: Vec<Parsed> = files.iter().map(|(name, text)| parse(name, text.as_bytes())).collect();
        for file in &parsed {
            assert_eq!(file.problems, [], "the files themselves are valid");
        }
        let set: Vec<_> = parsed.iter().flat_map(|file| file.resources.iter().map(|(r, o)| (r, o))).collect();
        check_set(&set).iter().map(|found| found.problem.to_string()).collect()
    }

    fn document(kind: &str, name: &str, spec: &str) -> String {
        format!(
            "apiVersion = \"horizon.dev/v1alpha1\"\nkind = \"{kind}\"\nmetadata.name = \"{name}\"\n[spec]\n{spec}\n"
        )
    }

    #[test]
    fn a_name_stands_once_across_files() {
        let user = document("User", "ana", "");
        let found =
            problems(&[("a.toml", &user), ("b.toml", &user), ("c.toml", &document("Server", "ana", ""))]);
        assert_eq!(
            found,
            [
                "b.toml:3:17: User default/ana: metadata.name: User default/ana is already declared at a.toml:1: \
              rename or remove one of the two"
            ]
        );
    }

    #[test]
    fn references_lead_somewhere() {
        let policy = document(
            "AccessPolicy",
            "staff",
            "servers = [\"berln\", \"*\"]\nsubjects = { users = [\"ana\"], groups = [\"stuff\", \"nobody\"] }\nnetworks = [\"games\"]",
        );
        let files = [
            ("policy.toml", policy.as_str()),
            ("berlin.toml", &document("Server", "berlin", "")),
            ("ana.toml", &document("User", "ana", "groups = [\"staff\"]")),
        ];
        let found = problems(&files);
        assert_eq!(found.len(), 4, "{found:#?}");
        assert!(
            found[0].starts_with("policy.toml:6:") && found[0].ends_with("did you mean \"staff\"?"),
            "{}",
            found[0]
        );
        assert!(found[1].contains("there is no group \"nobody\""), "{}", found[1]);
        assert!(
            found[2].starts_with("policy.toml:5:12:") && found[2].ends_with("did you mean \"berlin\"?"),
            "{}",
            found[2]
        );
        assert!(
            found[3].contains("no VirtualNetwork \"games\"") && found[3].contains("declare it"),
            "{}",
            found[3]
        );
    }

    #[test]
    fn a_broken_resource_is_not_missing() {
        let broken =
            parse("broken.toml", document("User", "ana", "deviceLimit = 0\ngroups = [\"staff\"]").as_bytes());
        let policy = "servers = [\"*\"]\nsubjects = { users = [\"ana\"], groups = [\"staff\"] }\nnetworks = [\"games\"]";
        let policy = parse("policy.toml", document("AccessPolicy", "staff", policy).as_bytes());
        let set: Vec<_> = policy.resources.iter().map(|(r, o)| (r, o)).collect();
        assert_eq!(check_set(&set).len(), 3);
        let found = check_set_with(&set, broken.broken());
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].problem.message.contains("VirtualNetwork"));
    }

    #[test]
    fn references_stay_in_their_namespace() {
        let elsewhere = "apiVersion = \"horizon.dev/v1alpha1\"\nkind = \"User\"\n[metadata]\nname = \"ana\"\nnamespace = \"b\"\n[spec]\n";
        let key = document("PersonalKey", "ana-1", "userRef = \"ana\"");
        let found = problems(&[("ana.toml", elsewhere), ("key.toml", &key)]);
        assert_eq!(found.len(), 1);
        assert!(found[0].contains("there is no User \"ana\" in namespace \"default\""), "{}", found[0]);
    }

    #[test]
    fn networks_do_not_overlap() {
        let network =
            |name: &str, ranges: &str| document("VirtualNetwork", name, &format!("addressRanges = {ranges}"));
        let files = [
            ("a.toml", &network("a", "[\"10.1.0.0/16\", \"fd01::/64\"]")),
            ("b.toml", &network("b", "[\"10.0.0.0/8\", \"fd02::/64\"]")),
            ("c.toml", &network("c", "[\"10.1.2.0/24\"]")),
            ("d.toml", &network("d", "[\"11.0.0.0/8\", \"fd01::/48\"]")),
        ];
        let found = problems(&files.map(|(name, text)| (name, text.as_str())));
        assert_eq!(found.len(), 3, "{found:#?}");
        assert!(
            found[0].starts_with("b.toml")
                && found[0].contains("10.0.0.0/8 overlaps 10.1.0.0/16 of VirtualNetwork \"a\"")
        );
        assert!(found[1].starts_with("c.toml") && found[1].contains("10.1.2.0/24 overlaps 10.1.0.0/16"));
        assert!(found[2].starts_with("d.toml") && found[2].contains("fd01::/48 overlaps fd01::/64"));
    }

    #[test]
    fn a_server_keeps_clear_of_its_networks() {
        let network = document("VirtualNetwork", "games", "addressRanges = [\"100.96.4.0/24\"]");
        let on = document("Server", "on", "networks = [\"games\"]");
        let off = document("Server", "off", "");
        let found = problems(&[("n.toml", &network), ("on.toml", &on), ("off.toml", &off)]);
        assert_eq!(found.len(), 1, "{found:#?}");
        assert!(
            found[0].starts_with("on.toml") && found[0].contains("100.96.0.0/16 overlaps 100.96.4.0/24"),
            "{}",
            found[0]
        );
    }
}
