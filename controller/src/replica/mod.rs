//! This controller among others on the same database: which of them leads, and which of them live.
//!
//! Every replica serves channels and the API. One of them leads: it alone reads what is declared, brings it into force,
//! and writes statuses. Who leads is decided by a lease, and proved by the fencing epoch that each of a leader's
//! transactions names: a leader that was frozen past its lease knows so by its own clock before it acts, and what it had
//! begun before is refused by the database.

mod campaign;
mod database;
pub mod election;
mod elector;
mod leadership;
mod roll;

pub use campaign::Campaign;
pub use database::DatabaseLease;
pub use elector::{Alone, Attempt, ElectError, Elector};
pub use leadership::{Leadership, Standing};
pub use roll::Roll;
