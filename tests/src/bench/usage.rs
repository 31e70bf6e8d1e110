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
    /// That of this process alone, without its children.
    pub fn own() -> Result<Self> {
        let mut usage = Self { resident_mb: 0.0, cpu: Duration::ZERO, at: Instant::now() };
        usage.add_alone(std::process::id())?;
        Ok(usage)
    }

    /// Reads it from /proc. Children that have ended count with the time they took.
    pub fn of(pid: u32) -> Result<Self> {
        let mut usage = Self { resident_mb: 0.0, cpu: Duration::ZERO, at: Instant::now() };
        usage.add(pid)?;
        Ok(usage)
    }

    fn add(&mut self, pid: u32) -> Result<()> {
        self.add_alone(pid)?;
        self.cpu += ended_children(pid)?;
        for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
            let children = std::fs::read_to_string(task?.path().join("children"))?;
            for child in children.split_whitespace() {
                match self.add(child.parse()?) {
                    // It ended just now.
                    Err(_) if !std::path::Path::new("/proc").join(child).exists() => {}
                    added => added?,
                }
            }
        }
        Ok(())
    }

    fn add_alone(&mut self, pid: u32) -> Result<()> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let field = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let kib: f64 = field.trim().trim_end_matches(" kB").parse()?;
        self.resident_mb += kib * 1024.0 / 1e6;
        for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
            // Nanoseconds on a processor, unlike the ticks of /proc/PID/stat; one line per thread.
            let line = std::fs::read_to_string(task?.path().join("schedstat"))?;
            let nanoseconds = line.split_whitespace().next().context("no time in schedstat")?;
            self.cpu += Duration::from_nanos(nanoseconds.parse()?);
        }
        Ok(())
    }

    /// Processor use since an earlier reading, in per cent of one core.
    pub fn cpu_percent_since(&self, earlier: &Self) -> f64 {
        let cpu = self.cpu.saturating_sub(earlier.cpu).as_secs_f64();
        100.0 * cpu / (self.at - earlier.at).as_secs_f64()
    }
}

/// Processor time of the children of a process that have ended and were waited for.
fn ended_children(pid: u32) -> Result<Duration> {
    /// What the kernel counts in toward programs, on every architecture there is a build for.
    const TICKS: u64 = 100;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field is a name in brackets, which may hold anything; cutime and cstime are 16 and 17.
    let after = stat.rsplit_once(')').context("no name in stat")?.1;
    let ticks = after.split_whitespace().skip(13).take(2).map(str::parse::<u64>);
    Ok(Duration::from_millis(ticks.sum::<Result<u64, _>>()? * 1000 / TICKS))
}
