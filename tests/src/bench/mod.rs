//! Measuring: figures and their tables, iperf3, and the tunnel to compare with.

mod figure;
mod iperf;
mod usage;
mod wireguard;

pub use figure::{Figure, Report, percentile, table};
pub use iperf::{Direction, Iperf};
pub use usage::Usage;
pub use wireguard::WireGuard;
