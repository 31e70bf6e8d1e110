//! What a program takes of the machine.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// Memory and processor time of a process and its children at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    /// Resident memory in MB (10^6 bytes). What parent and children share counts for each.
    pub resident_mb: f64,
    /// Processor time since its start.
    pub cpu: Duration,
    at: Instant,
}

impl Usage {
    /// Reads it from /proc.
    pub fn of(pid: u32) -> Result<Self> {
        let mut usage = Self { resident_mb: 0.0, cpu: Duration::ZERO, at: Instant::now() };
        usage.add(pid)?;
        Ok(usage)
    }

    fn add(&mut self, pid: u32) -> Result<()> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let field = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let kib: f64 = field.trim().trim_end_matches(" kB").parse()?;
        self.resident_mb += kib * 1024.0 / 1e6;
        for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
            let task = task?.path();
            // Nanoseconds on a processor, unlike the ticks of /proc/PID/stat; one line per thread.
            let line = std::fs::read_to_string(task.join("schedstat"))?;
            let nanoseconds = line.split_whitespace().next().context("no time in schedstat")?;
            self.cpu += Duration::from_nanos(nanoseconds.parse()?);
            for child in std::fs::read_to_string(task.join("children"))?.split_whitespace() {
                self.add(child.parse()?)?;
            }
        }
        Ok(())
    }

    /// Processor use since an earlier reading, in per cent of one core.
    pub fn cpu_percent_since(&self, earlier: &Self) -> f64 {
        let cpu = self.cpu.saturating_sub(earlier.cpu).as_secs_f64();
        100.0 * cpu / (self.at - earlier.at).as_secs_f64()
    }
}
