//! The chain over the audit trail: what is done to the database behind the controller's back is found, and said where.

use horizon_model::Secret;
use horizon_wire::{audit, key::SigningKey, proto};
use jiff::SignedDuration;

use super::{
    kit::{Kit, REPLICA, at, conformance},
    place::Place,
};
use crate::{
    keys::{self, Keys},
    sealing::Sealing,
    store::{
        Actor, AuditReport, Database, LeaderEpoch, Retention,
        audit::{self as trail, Record},
        dialect::{self, query},
        row::Columns as _,
        verify_audit,
    },
};

/// A trail that is sealed, and the witnesses of it.
struct Sealed {
    kit: Kit,
    epoch: LeaderEpoch,
    sealing: Sealing,
    state_key: SigningKey,
}

impl Sealed {
    async fn start() -> Self {
        let kit = Kit::new().await;
        let epoch = kit.store.take_leadership(REPLICA, "one", at(0)).await.unwrap();
        let keys = Keys::read(&Keys::fresh(at(0)), std::path::Path::new("test"), at(0)).unwrap();
        keys::follow(&kit.store, &keys, at(0)).await.unwrap();
        let state_key = keys.state.clone();
        let leadership = crate::replica::Leadership::always(epoch);
        let sealing =
            Sealing { store: kit.store.clone(), keys: std::sync::Arc::new(keys).into(), leadership };
        Self { kit, epoch, sealing, state_key }
    }

    async fn write(&self, seconds: i64, count: usize) {
        let mut tx = self.kit.store.begin().await.unwrap();
        let records: Vec<_> = (0..count)
            .map(|n| {
                Record::new("update", "User", n, format!("user {n}")).notes(format!("note {n} of {seconds}"))
            })
            .collect();
        trail::write(&mut tx, &Actor::Admin("ana".into()), at(seconds), &records).await.unwrap();
        tx.commit().await.unwrap();
    }

    async fn seal(&self, seconds: i64) {
        self.sealing.seal(self.epoch, at(seconds)).await.unwrap();
    }

    /// The newest checkpoint, as an appliance keeps it.
    async fn witness(&self) -> proto::Envelope {
        self.kit.store.newest_checkpoint().await.unwrap().unwrap().1
    }

    async fn verify(&self, witnesses: &[proto::Envelope]) -> AuditReport {
        verify_audit(self.database(), witnesses, at(100_000)).await.unwrap()
    }

    fn database(&self) -> Database {
        self.kit.place.database()
    }

    /// Does something to the database as whoever owns it.
    async fn tamper(&self, sql: &[&str]) {
        let owner = self.kit.place.owned();
        let pool = dialect::open_for_migration(&owner).await.unwrap();
        let mut tx = pool.begin().await.unwrap();
        for sql in sql {
            tx.script((*sql).to_owned()).await.unwrap();
        }
        tx.commit().await.unwrap();
        pool.close().await;
    }
}

/// Three batches of rows under links, each witnessed.
async fn sealed() -> (Sealed, Vec<proto::Envelope>) {
    let sealed = Sealed::start().await;
    let mut witnesses = Vec::new();
    for batch in 1..=3 {
        sealed.write(batch * 100, 5).await;
        sealed.seal(batch * 100).await;
        witnesses.push(sealed.witness().await);
    }
    (sealed, witnesses)
}

fn kinds(report: &AuditReport) -> Vec<&'static str> {
    let mut kinds: Vec<_> = report.findings.iter().map(|finding| finding.kind).collect();
    kinds.sort_unstable();
    kinds.dedup();
    kinds
}

async fn an_intact_trail_passes() {
    let (sealed, witnesses) = sealed().await;
    let report = sealed.verify(&witnesses).await;
    assert!(report.findings.is_empty(), "{:?}", report.findings);
    assert_eq!((report.rows, report.witnesses, report.checkpoints, report.unsealed), (15, 3, 3, 0));
    // What came since waits for its seal, and is no fault.
    sealed.write(400, 2).await;
    let report = sealed.verify(&witnesses).await;
    assert_eq!((report.found, report.unsealed), (0, 2));
    // A trail without anything is one too.
    let empty = Sealed::start().await;
    assert_eq!(empty.verify(&[]).await.found, 0);
    // Sealing again changes nothing.
    let before = sealed.kit.store.audit_head().await.unwrap();
    sealed.seal(400).await;
    let after = sealed.kit.store.audit_head().await.unwrap();
    assert_eq!(after.rows, before.rows + 2);
    sealed.seal(401).await;
    assert_eq!(sealed.kit.store.audit_head().await.unwrap(), after);
}

async fn every_kind_of_tampering_is_found_where_it_was_done() {
    let cases: [(&[&str], &[&str], Option<i64>); 10] = [
        (&["UPDATE audit_logs SET actor_name = 'eve' WHERE log_id = 7"], &["edited"], Some(7)),
        (&["UPDATE audit_logs SET notes = NULL WHERE log_id = 3"], &["edited"], Some(3)),
        (&["UPDATE audit_logs SET timestamp = timestamp + 1 WHERE log_id = 9"], &["edited"], Some(9)),
        (&["DELETE FROM audit_logs WHERE log_id = 8"], &["deleted"], Some(8)),
        (
            // Two rows change places.
            &[
                "UPDATE audit_logs SET notes = (SELECT MIN(b.notes) FROM audit_logs b WHERE b.log_id = 2) WHERE log_id = 4",
                "UPDATE audit_logs SET notes = 'note 3 of 100' WHERE log_id = 2",
            ],
            &["edited"],
            Some(2),
        ),
        (&["DELETE FROM audit_links WHERE link = 2"], &["broken"], None),
        (&["UPDATE audit_links SET rows_digest = previous WHERE link = 2"], &["broken", "edited"], None),
        // The end is cut off, with its links and its checkpoints.
        (
            &[
                "DELETE FROM audit_logs WHERE log_id > 10",
                "DELETE FROM audit_links WHERE link > 2",
                "DELETE FROM audit_checkpoints WHERE link > 2",
            ],
            &["cut"],
            None,
        ),
        (
            &["DELETE FROM audit_logs", "DELETE FROM audit_links", "DELETE FROM audit_checkpoints"],
            &["cut"],
            None,
        ),
        (&["UPDATE audit_links SET dropped = 1000000 WHERE link = 3"], &["broken", "dropped"], None),
    ];
    for (sql, expected, row) in cases {
        let (sealed, witnesses) = sealed().await;
        sealed.tamper(sql).await;
        let report = sealed.verify(&witnesses).await;
        let found = kinds(&report);
        for kind in expected {
            assert!(found.contains(kind), "{sql:?}: {:?}", report.findings);
        }
        if row.is_some() {
            assert_eq!(report.findings[0].row, row, "{sql:?}: {:?}", report.findings);
        }
    }
    // A row is put among the others, where one never was.
    let sealed = Sealed::start().await;
    sealed.write(100, 3).await;
    sealed.tamper(&["DELETE FROM audit_logs WHERE log_id = 2"]).await;
    sealed.seal(100).await;
    sealed.write(5000, 3).await;
    sealed.seal(5000).await;
    assert_eq!(sealed.verify(&[]).await.found, 0);
    let columns = "timestamp, actor_type, actor_name, action, target_type, target_name";
    let insert = match &sealed.kit.place {
        Place::Sqlite(_) => format!(
            "INSERT INTO audit_logs (log_id, {columns}) SELECT 2, {columns} FROM audit_logs WHERE log_id = 1"
        ),
        Place::Postgres(_) => format!(
            "INSERT INTO audit_logs (log_id, {columns}) OVERRIDING SYSTEM VALUE SELECT 2, {columns} FROM audit_logs \
             WHERE log_id = 1"
        ),
    };
    sealed.tamper(&[&insert]).await;
    let report = sealed.verify(&[]).await;
    assert_eq!((kinds(&report), report.findings[0].row), (vec!["inserted"], Some(2)));
}

/// A forged last link that lets go of everything, as if it were made when all of it is old.
async fn a_link_of_the_future_hides_no_deletion() {
    let (sealed, witnesses) = sealed().await;
    let head = sealed.kit.store.audit_head().await.unwrap();
    let time = at(400 * 24 * 3600).as_millisecond();
    let mut link = audit::Link::over(head.link + 1, head.digest, time / 2_592_000_000, time, &[]);
    link.dropped = at(100_000).as_millisecond() / 2_592_000_000 + 1;
    let hex = |bytes: &[u8]| data_encoding::HEXLOWER.encode(bytes);
    let blob = |bytes: &[u8]| match &sealed.kit.place {
        Place::Sqlite(_) => format!("x'{}'", hex(bytes)),
        Place::Postgres(_) => format!("'\\x{}'::bytea", hex(bytes)),
    };
    let forged = format!(
        "INSERT INTO audit_links (link, previous, digest, row_ranges, rows_digest, row_marks, month, dropped, sealed_date, \
         last_row, row_total, gaps) VALUES ({}, {}, {}, '[]', {}, {}, {}, {}, {time}, {}, {}, '[]')",
        link.number,
        blob(&link.previous),
        blob(&link.digest()),
        blob(&link.rows),
        blob(&[]),
        link.month,
        link.dropped,
        head.last_row,
        head.rows,
    );
    sealed.tamper(&[&forged, "DELETE FROM audit_logs"]).await;
    let report = sealed.verify(&witnesses).await;
    assert_eq!(kinds(&report), ["broken"], "{:?}", report.findings);
    assert!(report.findings[0].message.contains("in the future"), "{:?}", report.findings);
}

async fn a_chain_that_was_computed_anew_is_found_by_its_witnesses() {
    let (sealed, witnesses) = sealed().await;
    // Whoever has the database and the key that signs states writes another history, with links and checkpoints to it.
    sealed
        .tamper(&[
            "UPDATE audit_logs SET actor_name = 'eve' WHERE log_id = 1",
            "DELETE FROM audit_links",
            "DELETE FROM audit_checkpoints",
        ])
        .await;
    sealed.seal(1000).await;
    let report = sealed.verify(&[]).await;
    assert_eq!(report.found, 0, "by itself it looks right: {:?}", report.findings);
    let report = sealed.verify(&witnesses[..1]).await;
    assert_eq!(kinds(&report), ["recomputed"]);
    // Without that key the checkpoints tell.
    let (sealed, witnesses) = self::sealed().await;
    let forged = {
        let head = sealed.kit.store.audit_head().await.unwrap();
        let content = proto::AuditCheckpoint { link: head.link, digest: vec![9; 32], ..Default::default() };
        audit::checkpoint(&SigningKey::from_seed(Secret::new([66; 32])), &content)
    };
    let report = sealed.verify(&[forged]).await;
    assert_eq!(kinds(&report), ["signature"]);
    assert!(!sealed.kit.store.has_link(1, &[9; 32]).await.unwrap());
    let said = audit::open_checkpoint(&witnesses[0], |key| *key == sealed.state_key.public()).unwrap();
    assert!(sealed.kit.store.has_link(said.link, &said.digest).await.unwrap());
}

async fn a_row_that_comes_late_is_sealed_too() {
    let sealed = Sealed::start().await;
    // On Postgres a transaction may take a number, and end after others with higher ones.
    if matches!(sealed.kit.place, Place::Sqlite(_)) {
        return;
    }
    sealed.write(100, 1).await;
    let mut slow = sealed.kit.store.begin().await.unwrap();
    let record = Record::new("update", "User", 1, "late");
    trail::write(&mut slow, &Actor::Admin("ana".into()), at(101), &[record]).await.unwrap();
    sealed.write(102, 2).await;
    sealed.seal(102).await;
    slow.commit().await.unwrap();
    let report = sealed.verify(&[]).await;
    assert_eq!((report.found, report.rows, report.unsealed), (0, 3, 1));
    sealed.seal(104).await;
    let report = sealed.verify(&[]).await;
    assert_eq!((report.found, report.rows, report.unsealed), (0, 4, 0));
}

async fn what_is_let_go_in_its_time_is_recorded() {
    let sealed = Sealed::start().await;
    let long_ago = -200 * 24 * 3600;
    sealed.write(long_ago, 4).await;
    sealed.seal(long_ago).await;
    let witness = sealed.witness().await;
    sealed.write(0, 3).await;
    sealed.seal(0).await;
    let retention = Retention { audit: SignedDuration::from_hours(100 * 24), ..Retention::default() };
    sealed.kit.store.maintain(at(0), &retention).await.unwrap();
    if let Place::Sqlite(_) = sealed.kit.place {
        let left = query("SELECT COUNT(*) AS n FROM audit_logs")
            .fetch_one(sealed.kit.store.readers())
            .await
            .unwrap();
        assert_eq!(left.count("n").unwrap(), 3);
    }
    sealed.seal(100).await;
    let report = sealed.verify(&[witness]).await;
    assert!(report.findings.is_empty(), "{:?}", report.findings);
    assert_eq!(report.witnesses, 1);
    // Deleted without a word of it, the same is found.
    sealed.tamper(&["DELETE FROM audit_logs"]).await;
    let report = sealed.verify(&[]).await;
    assert_eq!(report.found, 3, "{:?}", report.findings);
}

async fn only_the_leader_seals() {
    let sealed = Sealed::start().await;
    sealed.write(1, 1).await;
    let newer = sealed.kit.store.take_leadership(REPLICA, "two", at(2)).await.unwrap();
    assert!(sealed.sealing.seal(sealed.epoch, at(3)).await.is_err());
    assert!(sealed.kit.store.audit_waits().await.unwrap());
    sealed.sealing.seal(newer, at(3)).await.unwrap();
    assert!(!sealed.kit.store.audit_waits().await.unwrap());
}

async fn verification_is_fast() {
    let sealed = Sealed::start().await;
    let rows = 20_000;
    sealed.write(1, rows).await;
    for second in 0..4 {
        sealed.seal(second).await;
    }
    let report = sealed.verify(&[sealed.witness().await]).await;
    assert_eq!((report.found, report.rows), (0, rows as u64));
    println!("audit verify: {:.0} rows/s", report.rows as f64 / report.seconds);
}

conformance!(
    an_intact_trail_passes,
    every_kind_of_tampering_is_found_where_it_was_done,
    a_link_of_the_future_hides_no_deletion,
    a_chain_that_was_computed_anew_is_found_by_its_witnesses,
    a_row_that_comes_late_is_sealed_too,
    what_is_let_go_in_its_time_is_recorded,
    only_the_leader_seals,
    verification_is_fast,
);
