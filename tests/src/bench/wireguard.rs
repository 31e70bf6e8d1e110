//! The newest wireguard-go, between two hosts.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use aws_lc_rs::agreement::{PrivateKey, X25519};
use aws_lc_rs::encoding::{AsBigEndian, Curve25519SeedBin};
use data_encoding::HEXLOWER;

use crate::lab::{Host, Proc, eventually};

/// The Go module of wireguard-go.
const MODULE: &str = "golang.zx2c4.com/wireguard@latest";

/// A tunnel between two hosts; dropping it ends it.
pub struct WireGuard {
    _processes: [Proc; 2],
}

impl WireGuard {
    /// Builds the newest wireguard-go into a cache folder, and returns its program and version.
    pub fn install(cache: &Path) -> Result<(PathBuf, String)> {
        let program = cache.join("wireguard");
        if !program.exists() {
            std::fs::create_dir_all(cache)?;
            let cache = cache.canonicalize()?;
            let built =
                Command::new("go").args(["install", MODULE]).env("GOBIN", cache).env("GOFLAGS", "").output();
            let built = built.context("no Go toolchain")?;
            if !built.status.success() {
                bail!("go install {MODULE}: {}", String::from_utf8_lossy(&built.stderr));
            }
        }
        let about = Command::new("go").args(["version", "-m"]).arg(&program).output()?;
        let about = String::from_utf8_lossy(&about.stdout).into_owned();
        let line =
            about.lines().find(|line| line.trim_start().starts_with("mod\t")).context("no module line")?;
        let version = line.split_whitespace().nth(2).context("no version")?.to_owned();
        Ok((program.canonicalize()?, version))
    }

    /// Joins two hosts by a device `wg0` each, 10.99.0.1 on `a` and 10.99.0.2 on `b`, over their `eth0` links.
    pub fn start(program: &Path, a: &Host, b: &Host) -> Result<Self> {
        let keys = [PrivateKey::generate(&X25519)?, PrivateKey::generate(&X25519)?];
        let mut processes = Vec::new();
        for host in [a, b] {
            processes.push(host.cmd(program, ["-f", "wg0"]).spawn("wireguard")?);
        }
        for (n, (own, other)) in [(a, b), (b, a)].into_iter().enumerate() {
            let (mine, theirs) = (&keys[n], &keys[1 - n]);
            let config = format!(
                "set=1\nprivate_key={}\nlisten_port=51820\npublic_key={}\nendpoint={}:51820\n\
                 replace_allowed_ips=true\nallowed_ip=10.99.0.{}/32\n\n",
                HEXLOWER.encode(AsBigEndian::<Curve25519SeedBin<'_>>::as_be_bytes(mine)?.as_ref()),
                HEXLOWER.encode(theirs.compute_public_key()?.as_ref()),
                other.v4(),
                2 - n
            );
            eventually("wireguard-go takes its configuration", || configure(own, &config).ok())?;
            own.ip(&format!("addr add 10.99.0.{}/24 dev wg0", n + 1))?;
            own.ip("link set wg0 mtu 1420 up")?;
        }
        let processes = <[Proc; 2]>::try_from(processes).ok().context("two processes")?;
        Ok(Self { _processes: processes })
    }
}

fn configure(host: &Host, config: &str) -> Result<()> {
    let config = config.to_owned();
    let answer = host.run(move || -> std::io::Result<String> {
        let mut stream = UnixStream::connect("/var/run/wireguard/wg0.sock")?;
        stream.write_all(config.as_bytes())?;
        stream.shutdown(std::net::Shutdown::Write)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    })?;
    if !answer.contains("errno=0") {
        bail!("wireguard-go refused its configuration: {answer}");
    }
    Ok(())
}
