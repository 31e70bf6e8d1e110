//! Is this still the machine that was approved? What an appliance's machine is like now is compared with the approved
//! baseline, and the differences are weighed.
//!
//! The rules, in the order in which they matter:
//!
//! - **Only an approval moves the baseline.** A small change is taken note of, and counts again, together with all others, in
//!   every later comparison. What is judged is the distance between the baseline and now, never the last step, so no walk of
//!   small steps ends at another machine unnoticed.
//! - **Classes weigh, not factors.** Each [`Class`] has a fixed weight; of a class with several items (disks, network cards)
//!   each item has its part. A machine with sixteen disks does not hide its board behind them.
//! - **What joins weighs nothing, and makes nothing lighter.** A new disk is noted. Only classes that are judged by themselves
//!   (a TPM, a place, software) are taken into a baseline that had none of them; hardware never is, because it would make
//!   the hardware that was approved a smaller part of the whole.
//! - **Little is known of some machines.** If the hardware of the baseline weighs less than 100, its changes count in
//!   proportion (down to half, so that one part of two is not everything); if all of it has gone, that is significant.
//! - **The controller's own findings are its own.** Where an appliance is and what its TPM signed is never taken from what it
//!   says of itself. A place that is unknown now is no change.

mod class;
mod compare;
pub mod quote;
#[cfg(test)]
mod tests;

pub use class::Class;
pub use compare::{Assessment, Drift, Verdict, assess, confidence, identifying};
