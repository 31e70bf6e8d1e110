//! The TUN device.

use std::{
    io::{self, IoSlice},
    os::fd::{AsFd, BorrowedFd},
};

use horizon_tunnel_core::offload::TunFraming;
use tun_rs::{DeviceBuilder, SyncDevice};

/// A TUN device. It vanishes when dropped. Addresses and routes are set elsewhere, by its name.
pub struct TunDevice {
    device: SyncDevice,
    framing: TunFraming,
    name: String,
    mtu: u16,
}

/// Why a TUN device could not be created.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot create TUN device {name}: {source}. Check that /dev/net/tun exists and that this process has CAP_NET_ADMIN"
)]
pub struct TunError {
    name: String,
    source: io::Error,
}

impl TunDevice {
    /// Creates a device with a name and an MTU in bytes, and brings it up. With `offload` it carries super-packets of
    /// TCP, and of UDP, as far as the kernel knows how; without, or where it does not, single packets.
    pub fn create(name: &str, mtu: u16, offload: bool) -> Result<Self, TunError> {
        let build =
            |offload| DeviceBuilder::new().name(name).mtu(mtu).offload(offload).enable(true).build_sync();
        let device = match build(offload) {
            Err(error)
                if offload && error.raw_os_error() == Some(rustix::io::Errno::INVAL.raw_os_error()) =>
            {
                tracing::warn!(name, %error, "TUN device without offloads: expect less speed");
                build(false)
            }
            other => other,
        };
        let finish = |device: SyncDevice| {
            device.set_nonblocking(true)?;
            let framing = match device.tcp_gso() {
                true => TunFraming::Offload { udp: device.udp_gso() },
                false => TunFraming::Plain,
            };
            let name = device.name()?;
            Ok(Self { device, framing, name, mtu })
        };
        device.and_then(finish).map_err(|source| TunError { name: name.to_owned(), source })
    }

    /// The interface's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The MTU it was created with, in bytes.
    pub fn mtu(&self) -> u16 {
        self.mtu
    }

    pub(crate) fn framing(&self) -> TunFraming {
        self.framing
    }

    pub(crate) fn read(&self, buffer: &mut [u8]) -> rustix::io::Result<usize> {
        rustix::io::read(&self.device, buffer)
    }

    pub(crate) fn write(&self, slices: &[IoSlice<'_>]) -> rustix::io::Result<usize> {
        rustix::io::writev(&self.device, slices)
    }
}

impl AsFd for TunDevice {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}

impl std::fmt::Debug for TunDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TunDevice").field("name", &self.name).field("framing", &self.framing).finish()
    }
}
