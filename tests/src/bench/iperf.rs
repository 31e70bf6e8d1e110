//! iperf3 between two hosts.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::lab::{Host, Proc};

/// Which end sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The end that connected.
    Up,
    /// The end that listens.
    Down,
}

/// An iperf3 server; dropping it ends it.
pub struct Iperf {
    address: IpAddr,
    _server: Proc,
}

impl Iperf {
    /// Starts the server on one address of a host.
    pub fn serve(host: &Host, address: IpAddr) -> Result<Self> {
        let on = address.to_string();
        let mut server = host.cmd("iperf3", ["-s", "--forceflush", "-B", &on]).spawn("iperf3")?;
        server.wait_for("Server listening")?;
        Ok(Self { address, _server: server })
    }

    /// TCP throughput from another host in Gb/s, as the receiving end counted it.
    pub fn tcp(&self, from: &Host, streams: u8, direction: Direction, seconds: u32) -> Result<f64> {
        let (to, streams, time) = (self.address.to_string(), streams.to_string(), seconds.to_string());
        // The first second, in which windows open, does not count.
        let mut args = vec!["-c", &to, "-J", "-O", "1", "-t", &time, "-P", &streams];
        if direction == Direction::Down {
            args.push("-R");
        }
        let limit = Duration::from_secs(u64::from(seconds) + 20);
        let output = from.cmd("iperf3", args).limit(limit).ok()?;
        let result: serde_json::Value = serde_json::from_str(&output)?;
        let bits = result["end"]["sum_received"]["bits_per_second"].as_f64();
        Ok(bits.with_context(|| format!("iperf3 answered: {output}"))? / 1e9)
    }
}
