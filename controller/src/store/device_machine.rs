//! What a device says of the machine it runs on, each time it comes. Its key on another machine is a copy, or a disk that
//! moved; either way somebody should know.

use std::net::IpAddr;

use horizon_crds::FingerprintChange;
use horizon_model::{DeviceId, DeviceInfo};
use jiff::Timestamp;

use super::{
    Actor, NewEvent, Severity, Source, Store, StoreError,
    audit::{self, Record},
    device, device_decision,
    dialect::query,
    event,
    row::{Columns as _, millis},
};

/// Why a device whose key is used on another machine is doubted.
const OTHER_MACHINE: &str = "its key is used on another machine than the one it was enrolled on";

impl Store {
    /// Notes what a device says of itself. Returns whether it is on another machine than before, for the first time.
    pub async fn note_machine(
        &self,
        device: DeviceId,
        info: &DeviceInfo,
        address: IpAddr,
        policy: FingerprintChange,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let _timed = self.timed("note_machine");
        let moved = self
            .retried("note_machine", || self.note_machine_once(device, info, address, policy, now))
            .await?;
        if moved {
            self.inner.metrics.security_event("device_machine_changed");
        }
        Ok(moved)
    }

    async fn note_machine_once(
        &self,
        device: DeviceId,
        info: &DeviceInfo,
        address: IpAddr,
        policy: FingerprintChange,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let mut tx = self.begin().await?;
        let row = query("SELECT * FROM devices WHERE device_id = $1 AND status <> 'inactive' {lock}")
            .bind(device.to_string())
            .fetch_optional(&mut *tx)
            .await?;
        let Some(row) = row else { return Ok(false) };
        query("UPDATE devices SET os_version = $1, app_version = $2, last_seen = $3 WHERE device_id = $4")
            .bind(&info.os_version)
            .bind(&info.app_version)
            .bind(millis(now))
            .bind(device.to_string())
            .execute(&mut *tx)
            .await?;
        let (known, seen) = (row.text("hardware_fingerprint")?, info.hardware_fingerprint.as_str());
        let other = !known.is_empty() && !seen.is_empty() && known != seen;
        let fresh = other && row.maybe_text("other_fingerprint")?.as_deref() != Some(seen);
        if known.is_empty() && !seen.is_empty() {
            query("UPDATE devices SET hardware_fingerprint = $1 WHERE device_id = $2")
                .bind(seen)
                .bind(device.to_string())
                .execute(&mut *tx)
                .await?;
        }
        if fresh {
            query("UPDATE devices SET other_fingerprint = $1 WHERE device_id = $2")
                .bind(seen)
                .bind(device.to_string())
                .execute(&mut *tx)
                .await?;
            let name = device::called(&row)?;
            let doubted = policy == FingerprintChange::Suspect;
            if doubted {
                device_decision::suspect(&mut tx, device, OTHER_MACHINE, now).await?;
                let record = Record::new("suspect", "Device", device, &name).notes(OTHER_MACHINE);
                audit::write(&mut tx, &Actor::System("devices"), now, &[record]).await?;
            }
            let event = NewEvent {
                kind: "device_machine_changed",
                severity: if doubted { Severity::High } else { Severity::Medium },
                source: Source::Device(device),
                address: Some(address),
                description: format!("device '{name}' ({device}): {OTHER_MACHINE}"),
                data: serde_json::json!({ "enrolled": known, "seen": seen, "suspicious": doubted }),
            };
            event::write(&mut tx, &event, now).await?;
        }
        tx.commit().await?;
        Ok(fresh)
    }
}
