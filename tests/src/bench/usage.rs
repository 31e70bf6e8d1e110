//! What a process takes of the machine.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// Memory and processor time of one process at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    /// Resident memory in MB (10^6 bytes).
    pub resident_mb: f64,
    /// Processor time since its start.
    pub cpu: Duration,
    at: Instant,
}

impl Usage {
    /// Reads it from /proc.
    pub fn of(pid: u32) -> Result<Self> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let field = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let kib: f64 = field.trim().trim_end_matches(" kB").parse()?;
        // Nanoseconds on a processor, unlike the ticks of /proc/PID/stat; one line per thread.
        let mut nanoseconds = 0;
        for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
            let line = std::fs::read_to_string(task?.path().join("schedstat")).unwrap_or_default();
            nanoseconds +=
                line.split_whitespace().next().and_then(|n| n.parse::<u64>().ok()).unwrap_or_default();
        }
        Ok(Self {
            resident_mb: kib * 1024.0 / 1e6,
            cpu: Duration::from_nanos(nanoseconds),
            at: Instant::now(),
        })
    }

    /// Processor use since an earlier reading, in per cent of one core.
    pub fn cpu_percent_since(&self, earlier: &Self) -> f64 {
        let cpu = self.cpu.saturating_sub(earlier.cpu).as_secs_f64();
        100.0 * cpu / (self.at - earlier.at).as_secs_f64()
    }
}
