//! Rotation of keys: when it is time, how a personal key lives on through its versions, and which keys a rotation means.

mod life;
#[cfg(test)]
mod life_tests;
pub mod schedule;
mod select;
mod warning;

pub use life::{BeginError, Change, Ending, Life, Version, VersionState};
pub use select::{policy_for, selects};
pub use warning::{Warning, next_warning, warning};
