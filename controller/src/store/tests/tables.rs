//! The schema: every table has a production writer and a production reader, and it moves on by migrations.

use std::{fs, path::Path};

use horizon_model::{PublicKey, Secret};

use super::{
    kit::{BASICS, Kit, at, conformance, envelope, request, who_leads},
    place::Place,
};
use crate::{
    metrics::Metrics,
    store::{
        EnvelopeKey, LeaderEpoch, Store, StoreError,
        dialect::{self, query},
        migrate::{self, MIGRATIONS, Migration},
        row::Columns as _,
    },
};

/// The sources of the store without its tests.
fn sources(directory: &Path, text: &mut String) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            continue;
        }
        let source = fs::read_to_string(&path).unwrap();
        let production = source.split("#[cfg(test)]\nmod tests {").next().unwrap();
        text.push_str(&production.split_whitespace().collect::<Vec<_>>().join(" ").replace("\\ ", ""));
    }
}

async fn every_table_has_a_writer_and_a_reader() {
    let kit = Kit::new().await;
    let rows = query(kit.store.readers().engine().tables()).fetch_all(kit.store.readers()).await.unwrap();
    let tables: Vec<String> = rows.iter().map(|row| row.text("name").unwrap()).collect();
    assert!(tables.len() > 15, "{tables:?}");
    let mut text = String::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src/store"), &mut text);
    let names = |verb: &str, table: &str| {
        text.match_indices(&format!("{verb} {table}")).any(|(at, found)| {
            !text[at + found.len()..].starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
        })
    };
    for table in &tables {
        let written = ["INSERT INTO", "UPDATE"].iter().any(|verb| names(verb, table));
        let read = ["FROM", "JOIN"].iter().any(|verb| {
            let deletes = text.matches(&format!("DELETE {verb} {table}")).count();
            let all = text.matches(&format!("{verb} {table}")).count();
            names(verb, table) && all > deletes
        });
        assert!(written, "nothing writes the table {table}");
        assert!(read, "nothing reads the table {table}");
    }
}

async fn a_database_is_opened_again_with_its_own_key_only() {
    let kit = Kit::with_basics().await;
    if let Place::Sqlite(dir) = &kit.place {
        for entry in std::fs::read_dir(dir.path()).unwrap() {
            let entry = entry.unwrap();
            let mode = std::os::unix::fs::PermissionsExt::mode(&entry.metadata().unwrap().permissions());
            assert_eq!(mode & 0o077, 0, "others may read {:?}", entry.path());
        }
    }
    kit.store.close().await;
    let wrong = EnvelopeKey(Secret::new([1; 32]));
    let opened = Store::open(kit.place.database(), &wrong, Metrics::default()).await;
    assert!(matches!(opened, Err(StoreError::OtherEnvelope { .. })), "{opened:?}");
    let again = kit.replica().await;
    again.ping().await.unwrap();
    assert_eq!(again.load_resources().await.unwrap().0.len(), 5);
}

async fn other_schemas_are_refused() {
    for (change, newer) in [
        ("UPDATE schema_migrations SET digest = 'other' WHERE version = 1", false),
        (
            "INSERT INTO schema_migrations (version, digest, applied_at, compatible_from) VALUES (99, 'x', 0, 99)",
            true,
        ),
    ] {
        let kit = Kit::new().await;
        kit.store.close().await;
        kit.place.admin(change).await;
        let error = Store::open(kit.place.database(), &envelope(), Metrics::default()).await.unwrap_err();
        assert_eq!(matches!(error, StoreError::NewerSchema { found: 99, .. }), newer, "{error}");
        assert_eq!(matches!(error, StoreError::OtherSchema(1)), !newer, "{error}");
    }
}

async fn a_newer_schema_that_only_adds_is_good_enough() {
    let kit = Kit::with_basics().await;
    let newer = Migration {
        version: 99,
        compatible_from: 2,
        text: "ALTER TABLE servers ADD COLUMN of_tomorrow TEXT; CREATE TABLE tomorrow (a BIGINT);",
        sqlite: "",
        postgres: "",
    };
    let all: Vec<_> = MIGRATIONS.into_iter().chain([newer]).collect();
    assert_eq!(migrate(&kit.place, &all).await.unwrap(), [99]);
    assert_eq!(migrate(&kit.place, &all).await.unwrap(), [0; 0], "once");
    // The program of today goes on, and starts.
    kit.put(BASICS).await;
    let again = kit.replica().await;
    assert_eq!(again.load_resources().await.unwrap().0.len(), 5);
    kit.register(PublicKey([3; 32])).await;
}

/// The number of the migration after those of this program.
const NEXT: i64 = MIGRATIONS[MIGRATIONS.len() - 1].version + 1;

async fn a_migration_that_fails_leaves_everything_as_it_was() {
    let kit = Kit::with_basics().await;
    let good = Migration {
        version: 97,
        compatible_from: 97,
        text: "CREATE TABLE tomorrow (a BIGINT); DELETE FROM leadership;",
        sqlite: "",
        postgres: "",
    };
    let bad = Migration { version: NEXT + 1, text: "CREATE TABLE servers (a BIGINT);", ..good };
    let all: Vec<_> = MIGRATIONS.into_iter().chain([good, bad]).collect();
    let tables = async || {
        let store = &kit.store;
        let rows = query(store.readers().engine().tables()).fetch_all(store.readers()).await.unwrap();
        rows.iter().map(|row| row.text("name").unwrap()).collect::<Vec<_>>()
    };
    let before = tables().await;
    assert!(migrate(&kit.place, &all).await.is_err());
    assert_eq!(tables().await, before);
    assert_eq!(who_leads(&kit.store).await, (LeaderEpoch(0), None));
    kit.register(PublicKey([3; 32])).await;
    kit.replica().await.ping().await.unwrap();
}

async fn several_may_migrate_at_once() {
    let kit = Kit::new().await;
    let newer = Migration {
        version: NEXT,
        compatible_from: 2,
        text: "CREATE TABLE tomorrow (a BIGINT);",
        sqlite: "",
        postgres: "",
    };
    let all: Vec<_> = MIGRATIONS.into_iter().chain([newer]).collect();
    let (one, two, three) =
        tokio::join!(migrate(&kit.place, &all), migrate(&kit.place, &all), migrate(&kit.place, &all));
    let done: Vec<_> = [one, two, three].into_iter().flat_map(|applied| applied.unwrap()).collect();
    assert_eq!(done, [NEXT]);
}

async fn migrate(place: &Place, migrations: &[Migration]) -> Result<Vec<i64>, StoreError> {
    let pool = dialect::open_for_migration(&place.owned()).await?;
    let mut tx = pool.begin().await?;
    let applied = migrate::run(&mut tx, migrations, at(0)).await?;
    tx.commit().await?;
    Ok(applied)
}

#[tokio::test]
async fn what_was_acknowledged_survives_the_end_of_the_process() {
    let kit = Kit::with_basics().await;
    let Place::Sqlite(dir) = &kit.place else { panic!("a file") };
    let secret = kit.token().await;
    let key = PublicKey([5; 32]);
    let registered = kit.store.register_server(&request(secret.clone(), key), at(1)).await.unwrap();
    // The files as a killed process leaves them: nothing was closed or written back.
    let left = tempfile::tempdir().unwrap();
    for file in ["horizon.db", "horizon.db-wal"] {
        std::fs::copy(dir.path().join(file), left.path().join(file)).unwrap();
    }
    let after = Store::open(left.path().join("horizon.db"), &envelope(), Metrics::default()).await.unwrap();
    let again = after.register_server(&request(secret, key), at(2)).await.unwrap();
    assert_eq!((again.server, again.fresh), (registered.server, false));
    assert_eq!(again.secret.expose(), registered.secret.expose());
}

conformance!(
    every_table_has_a_writer_and_a_reader,
    a_database_is_opened_again_with_its_own_key_only,
    other_schemas_are_refused,
    a_newer_schema_that_only_adds_is_good_enough,
    a_migration_that_fails_leaves_everything_as_it_was,
    several_may_migrate_at_once,
);
