//! Every table has a production writer and a production reader.

use std::{fs, path::Path};

use sqlx::Row as _;

use super::kit::Kit;
use crate::store::dialect;

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

#[tokio::test]
async fn every_table_has_a_writer_and_a_reader() {
    let kit = Kit::new().await;
    let rows = sqlx::query(dialect::TABLES).fetch_all(kit.store.readers()).await.unwrap();
    let tables: Vec<String> = rows.iter().map(|row| row.try_get("name").unwrap()).collect();
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
            let deletes = text.matches(&format!("DELETE FROM {table}")).count();
            let all = text.matches(&format!("{verb} {table}")).count();
            names(verb, table) && all > deletes
        });
        assert!(written, "nothing writes the table {table}");
        assert!(read, "nothing reads the table {table}");
    }
}

#[tokio::test]
async fn a_database_is_opened_again_with_its_own_key_only() {
    use crate::{
        metrics::Metrics,
        store::{EnvelopeKey, Store, StoreError},
    };
    let kit = Kit::with_basics().await;
    let path = kit.dir.path().join("horizon.db");
    for entry in std::fs::read_dir(kit.dir.path()).unwrap() {
        let entry = entry.unwrap();
        let mode = std::os::unix::fs::PermissionsExt::mode(&entry.metadata().unwrap().permissions());
        assert_eq!(mode & 0o077, 0, "others may read {:?}", entry.path());
    }
    kit.store.close().await;
    let wrong = EnvelopeKey(horizon_model::Secret::new([1; 32]));
    assert!(matches!(Store::open(&path, &wrong, Metrics::default()).await, Err(StoreError::Seal(_))));
    let again = Store::open(&path, &super::kit::envelope(), Metrics::default()).await.unwrap();
    again.ping().await.unwrap();
    assert_eq!(again.load_resources().await.unwrap().len(), 5);
}

#[tokio::test]
async fn other_schemas_are_refused() {
    use crate::{
        metrics::Metrics,
        store::{Store, StoreError},
    };
    for (change, newer) in [
        ("UPDATE schema_migrations SET digest = 'other'", false),
        ("INSERT INTO schema_migrations (version, digest, applied_at) VALUES (99, 'x', 0)", true),
    ] {
        let kit = Kit::new().await;
        let mut tx = kit.store.begin().await.unwrap();
        sqlx::query(change).execute(&mut *tx).await.unwrap();
        tx.commit().await.unwrap();
        kit.store.close().await;
        let path = kit.dir.path().join("horizon.db");
        let error = Store::open(&path, &super::kit::envelope(), Metrics::default()).await.unwrap_err();
        assert_eq!(matches!(error, StoreError::NewerSchema { found: 99, .. }), newer, "{error}");
        assert_eq!(matches!(error, StoreError::OtherSchema(1)), !newer, "{error}");
    }
}

#[tokio::test]
async fn what_was_acknowledged_survives_the_end_of_the_process() {
    use crate::{metrics::Metrics, store::Store};
    use horizon_model::PublicKey;
    let kit = Kit::with_basics().await;
    let secret = kit.token().await;
    let key = PublicKey([5; 32]);
    let registered = kit
        .store
        .register_server(&super::kit::request(secret.clone(), key), super::kit::at(1))
        .await
        .unwrap();
    // The files as a killed process leaves them: nothing was closed or written back.
    let left = tempfile::tempdir().unwrap();
    for file in ["horizon.db", "horizon.db-wal"] {
        std::fs::copy(kit.dir.path().join(file), left.path().join(file)).unwrap();
    }
    let after = Store::open(&left.path().join("horizon.db"), &super::kit::envelope(), Metrics::default())
        .await
        .unwrap();
    let again = after.register_server(&super::kit::request(secret, key), super::kit::at(2)).await.unwrap();
    assert_eq!((again.server, again.fresh), (registered.server, false));
    assert_eq!(again.secret.expose(), registered.secret.expose());
}
