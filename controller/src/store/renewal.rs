//! What makes of a copy of a database one that goes on where the other ended: appliances take its states although they have seen
//! newer ones, nobody proves anything by what may have changed since, and what works once does not work a second time.

use jiff::Timestamp;
use serde_json::json;

use super::{
    Actor, NewEvent, Severity, Source, StoreError,
    audit::{self, Record},
    dialect::{Connection, catalog, query},
    event,
    row::{Columns as _, int, millis},
    settings,
};

/// The reason that tokens show which a restore ended.
const REASON: &str = "a backup was restored, and whether the token was used since is not known";

/// What is to be done with a copy.
#[derive(Clone, Copy, Debug)]
pub struct Renewal {
    /// When the copy was made.
    pub made: Timestamp,
    /// Whether registration tokens and hand-overs that were not used by then can still be used.
    pub keep_tokens: bool,
}

/// What was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Renewed {
    /// The epoch of appliances' states from now on.
    pub epoch: u64,
    /// Servers whose appliances are given a new verification secret when they attach.
    pub servers: u64,
    /// Registration tokens that were ended.
    pub tokens: u64,
    /// Hand-overs of personal keys that were ended.
    pub handovers: u64,
    /// Administrators' sessions that were ended.
    pub sign_ins: u64,
}

/// Renews a copy.
pub(super) async fn renew(
    db: &mut Connection,
    renewal: &Renewal,
    now: Timestamp,
) -> Result<Renewed, StoreError> {
    // Rows that the chain covers keep their numbers for themselves, also where their time was over and they were let go.
    let row =
        query("SELECT COALESCE(MAX(last_row), 0) AS last_row FROM audit_links").fetch_one(&mut *db).await?;
    let last_row = row.int("last_row")?;
    for shape in catalog::tables(db).await? {
        let least = if shape.table == "audit_logs" { last_row } else { 0 };
        catalog::number_on(db, &shape.table, least).await?;
    }
    let epoch = settings::raise_epoch(db, now).await?;
    // Whoever led is fenced, also one that led after the copy was made.
    let row = query("SELECT epoch FROM leadership WHERE singleton = 1").fetch_one(&mut *db).await?;
    query(
        "UPDATE leadership SET epoch = $1, replica_id = NULL, replica_name = NULL, held_until = NULL WHERE singleton = 1",
    )
    .bind((row.int("epoch")? + 1).max(now.as_second()))
    .execute(&mut *db)
    .await?;
    // Nobody is connected, and the order in which servers changed begins anew, since it may be that of another database.
    query(
        "UPDATE servers SET channel_replica = NULL, channel_incarnation = NULL, channel_since = NULL, \
         channel_lease = channel_lease + 1, changed = 0",
    )
    .execute(&mut *db)
    .await?;
    query("UPDATE connections SET connected = FALSE WHERE connected").execute(&mut *db).await?;
    // Every heartbeat makes a new verification secret, which the copy does not have.
    let servers = count(
        db,
        "UPDATE servers SET reissue_secret = TRUE WHERE registration_date IS NOT NULL AND decommission_date IS NULL \
         AND revoked_date IS NULL",
        None,
    )
    .await?;
    let (mut tokens, mut handovers) = (0, 0);
    if !renewal.keep_tokens {
        let done = query(
            "UPDATE registration_keys SET revoked_date = $1, revocation_reason = $2 \
             WHERE used_date IS NULL AND revoked_date IS NULL \
             AND (secret_hash IS NOT NULL OR secret_digest IS NOT NULL)",
        );
        tokens = done.bind(millis(now)).bind(REASON).execute(&mut *db).await?.rows_affected();
        handovers =
            count(db, "UPDATE key_handovers SET ended_date = $1 WHERE ended_date IS NULL", Some(now)).await?;
    }
    let sign_ins = count(
        db,
        "UPDATE admin_sessions SET active = FALSE, logout_time = $1, logout_reason = 'security_policy' WHERE active",
        Some(now),
    )
    .await?;
    count(db, "DELETE FROM idempotency_keys", None).await?;

    let renewed = Renewed { epoch, servers, tokens, handovers, sign_ins };
    let made = renewal.made;
    let notes = format!(
        "from the backup of {made}; what was decided between then and now is not in it. Ended: {tokens} registration tokens, \
         {handovers} hand-overs, {sign_ins} sign-ins of administrators"
    );
    let record = Record {
        action: "restore",
        target_type: "Database".into(),
        target: "database".into(),
        ..Record::default()
    };
    audit::write(db, &Actor::System("restore"), now, &[record.notes(notes)]).await?;
    let event = NewEvent {
        kind: "backup_restored",
        severity: Severity::High,
        source: Source::System,
        address: None,
        description: format!(
            "the backup of {made} was restored: what was revoked, blocked or approved since then must be decided again"
        ),
        data: json!({ "made": made, "epoch": epoch }),
    };
    event::write(db, &event, now).await?;
    Ok(renewed)
}

async fn count(db: &mut Connection, sql: &'static str, now: Option<Timestamp>) -> Result<u64, StoreError> {
    let statement = match now {
        Some(now) => query(sql).bind(millis(now)),
        None => query(sql),
    };
    Ok(statement.execute(db).await?.rows_affected())
}

/// The epoch after one, whatever was restored before: no two restores of one copy give the same.
pub(super) fn next_epoch(epoch: u64, now: Timestamp) -> u64 {
    let clock = u64::try_from(now.as_second()).unwrap_or(0);
    // The database has no larger numbers.
    u64::try_from(int(epoch.saturating_add(1).max(clock))).unwrap_or(epoch)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epochs_rise_with_every_restore_and_with_any_clock() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let first = next_epoch(1, at(1_800_000_000));
        assert_eq!(first, 1_800_000_000);
        // The same copy again, later: above what the first restore gave.
        assert!(next_epoch(1, at(1_800_000_001)) > first);
        // The clock is wrong: still above what was.
        assert_eq!(next_epoch(first, at(-5)), first + 1);
        assert_eq!(next_epoch(u64::MAX, at(0)), i64::MAX as u64);
    }
}
