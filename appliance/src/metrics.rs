//! Figures about this process and machine, for heartbeats.

use std::{fs, sync::OnceLock, time::Instant};

use horizon_wire::proto;

static STARTED: OnceLock<Instant> = OnceLock::new();

/// Starts the clock of the process's uptime.
pub(crate) fn started() {
    STARTED.get_or_init(Instant::now);
}

/// The figures that the kernel knows; bytes are the tunnel's business.
pub(crate) fn collect() -> proto::Metrics {
    proto::Metrics {
        uptime_seconds: STARTED.get().map_or(0, |s| s.elapsed().as_secs()),
        memory_bytes: resident_bytes().unwrap_or(0),
        load_percent: load_percent().unwrap_or(0),
        ..proto::Metrics::default()
    }
}

/// Memory in use by this process.
pub(crate) fn resident_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// The load of the last minute over the number of processors.
fn load_percent() -> Option<u32> {
    let loads = fs::read_to_string("/proc/loadavg").ok()?;
    let (whole, hundredths) = loads.split_whitespace().next()?.split_once('.')?;
    let percent: u32 = whole.parse::<u32>().ok()?.checked_mul(100)?.checked_add(hundredths.parse().ok()?)?;
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    Some(percent / u32::try_from(processors).unwrap_or(1))
}
