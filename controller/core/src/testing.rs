//! Short ways to make resources and worlds of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use horizon_crds::{KindName, Name, Resource, ResourceId, parse};
use horizon_model::NetworkId;
use jiff::Timestamp;
use uuid::Uuid;

use crate::{Desired, File, Index, Plan, PruneLimit, Recent, Stored, Wish, apply, everything, plan};

pub(crate) fn name(text: &str) -> Name {
    text.parse().unwrap()
}

pub(crate) fn id(kind: KindName, text: &str) -> ResourceId {
    ResourceId { kind, namespace: name("default"), name: name(text) }
}

/// A document; `spec` in TOML, with dotted keys or inline tables.
pub(crate) fn document(kind: &str, name: &str, spec: &str) -> String {
    format!(
        "apiVersion = \"horizon.dev/v1alpha1\"\nkind = \"{kind}\"\nmetadata.name = \"{name}\"\n[spec]\n{spec}\n"
    )
}

pub(crate) fn resource(kind: &str, name: &str, spec: &str) -> Resource {
    let mut parsed = parse("test.toml", document(kind, name, spec).as_bytes());
    assert_eq!(parsed.problems, []);
    parsed.resources.pop().unwrap().0
}

/// A stand-in for the directory, the store and the engine: files, and what is in force.
#[derive(Clone, Default)]
pub(crate) struct World {
    pub(crate) desired: Desired,
    pub(crate) index: Index,
    pub(crate) recent: Recent,
    made: u128,
    numbers: u16,
}

impl World {
    /// A world in which these files are in force.
    pub(crate) fn of(files: &[(&str, String)]) -> Self {
        let mut world = Self::default();
        for (path, text) in files {
            world.write(path, text);
        }
        let plan = world.settle();
        assert!(plan.rejected.is_empty(), "{:#?}", plan.rejected);
        world
    }

    pub(crate) fn write(&mut self, path: &str, text: &str) -> BTreeSet<ResourceId> {
        self.desired.set_complete(true);
        self.desired.set_file(&Arc::from(path), Some(File::from(parse(path, text.as_bytes()))))
    }

    pub(crate) fn delete(&mut self, path: &str) -> BTreeSet<ResourceId> {
        self.desired.set_file(&Arc::from(path), None)
    }

    pub(crate) fn plan(&self, touched: &BTreeSet<ResourceId>, confirmed: &BTreeSet<ResourceId>) -> Plan {
        let wish =
            Wish { desired: &self.desired, limit: PruneLimit::default(), recent: &self.recent, confirmed };
        plan(&self.index, wish, touched)
    }

    pub(crate) fn plan_all(&self) -> Plan {
        self.plan(&everything(&self.index, &self.desired), &BTreeSet::new())
    }

    /// Does what the store does.
    pub(crate) fn commit(&mut self, plan: &Plan) {
        let mut assigned = Vec::new();
        for (id, put) in &plan.puts {
            let old = self.index.by_id(id).cloned();
            let respecified =
                old.as_ref().is_some_and(|old| old.resource.spec_json() != put.resource.spec_json());
            if old.is_none() {
                self.made += 1;
                if id.kind == KindName::VirtualNetwork {
                    self.numbers += 1;
                }
            }
            assigned.push(Stored {
                resource: put.resource.clone(),
                uid: old.as_ref().map_or(Uuid::from_u128(self.made << 64), |old| old.uid),
                generation: old.as_ref().map_or(1, |old| old.generation + i64::from(respecified)),
                origin: put.origin.clone(),
                number: match &old {
                    Some(old) => old.number,
                    None => (id.kind == KindName::VirtualNetwork).then_some(NetworkId(self.numbers)),
                },
                created_at: old.map_or(Timestamp::UNIX_EPOCH, |old| old.created_at),
            });
        }
        self.index = apply(&self.index, plan, assigned);
    }

    /// Plans everything and commits it; returns the plan.
    pub(crate) fn settle(&mut self) -> Plan {
        let plan = self.plan_all();
        self.commit(&plan);
        plan
    }

    pub(crate) fn uid(&self, kind: KindName, text: &str) -> Uuid {
        self.index.get(kind, "default", text).unwrap().uid
    }

    /// What is in force, without identities.
    pub(crate) fn in_force(&self) -> BTreeMap<ResourceId, (String, String)> {
        let line = |s: &Arc<Stored>| (s.id(), (s.resource.to_json().to_string(), s.origin.to_string()));
        self.index.iter().map(line).collect()
    }
}
