//! What the controller decides: which resources are in force, who may do what, what each appliance is asked to be, and what
//! statuses say. Pure functions over an [`Index`]: no clock, no randomness, no input or output.

mod accept;
pub mod account;
mod compose;
mod denial;
mod desired;
pub mod detect;
mod facts;
mod grant;
pub mod identity;
mod index;
pub mod live_check;
mod lookup;
pub mod payload;
mod plan;
mod reports;
pub mod rest;
pub mod rotation;
mod scope;
pub mod security;
pub mod status;

pub use compose::{SessionFacts, appliance_address, base_state, session_entry, ticket_networks};
pub use denial::Denial;
pub use desired::{Candidate, Desired, File, ObjectVersion};
pub use facts::{DeviceStanding, DeviceTraits, GrantFacts, Purpose, ServerStanding};
pub use grant::{Grant, GrantedNetwork, MAX_RULE_PORTS, MAX_RULES, grant, grant_named, servers_for};
pub use index::{Index, Origin, Stored};
pub use plan::{
    Counted, ID_ANNOTATION, Plan, PruneHeld, PruneLimit, Put, Recent, Wish, apply, declared_by, everything,
    plan, plan_put, preview,
};
pub use reports::{Difference, TotalsOfBoth, compare_reports};
pub use scope::{Scope, matched_users};

#[cfg(test)]
mod compose_tests;
#[cfg(test)]
mod grant_tests;
#[cfg(test)]
mod limit_tests;
#[cfg(test)]
mod plan_tests;
#[cfg(test)]
mod testing;
