//! Copies of whole databases, from each engine into each.

use horizon_model::{Digest, PublicKey};
use jiff::Timestamp;

use super::{
    kit::{Kit, at, conformance, device_info, envelope, request, who_leads},
    place::{ENGINE, On, Place},
};
use crate::{
    metrics::Metrics,
    store::{
        Actor, Cell, CellKind, Column, Database, EventFilter, LoadError, Loading, NewEvent, RegisterError,
        Renewal, Renewed, Retention, Severity, Shape, Snapshot, Source, StateNumbering, Store, StoreError,
        dialect::query, migrate::MIGRATIONS, row::Columns as _, verify_audit,
    },
};

conformance!(
    everything_is_copied_to_either_engine,
    a_copy_goes_on_where_the_original_ended,
    a_snapshot_shows_one_moment_while_others_write,
    a_database_with_anything_in_it_is_never_loaded,
    a_load_that_is_broken_off_leaves_nothing,
);

/// The rows of all tables, in an order of their own.
async fn rows(database: Database) -> Vec<(Shape, Vec<String>)> {
    let mut snapshot = Snapshot::take(database).await.unwrap();
    let mut all = Vec::new();
    for shape in snapshot.tables().to_vec() {
        let mut found = Vec::new();
        snapshot
            .rows(&shape, |row| {
                found.push(shown(&row));
                Ok::<_, StoreError>(())
            })
            .await
            .unwrap();
        found.sort();
        all.push((shape, found));
    }
    snapshot.close().await;
    all.sort_by(|a, b| a.0.table.cmp(&b.0.table));
    all
}

fn shown(row: &[Cell]) -> String {
    let cell = |cell: &Cell| match cell {
        Cell::Null => "NULL".to_owned(),
        Cell::Int(value) => value.to_string(),
        Cell::Text(text) => format!("{text:?}"),
        Cell::Bytes(bytes) => format!("{bytes:02x?}"),
        Cell::Flag(value) => value.to_string(),
    };
    row.iter().map(cell).collect::<Vec<_>>().join(" | ")
}

async fn copy(from: Database, into: Database, keep_tokens: bool) -> Result<Renewed, LoadError> {
    let mut snapshot = Snapshot::take(from).await?;
    let mut loading = Loading::begin(into, snapshot.schema(), "0", at(100)).await?;
    for shape in snapshot.tables().to_vec() {
        let mut found = Vec::new();
        snapshot
            .rows(&shape, |row| {
                found.push(row);
                Ok::<_, StoreError>(())
            })
            .await?;
        loading.table(&shape)?;
        loading.rows(found).await?;
    }
    snapshot.close().await;
    let renewal = Renewal { made: at(50), keep_tokens };
    loading.finish(&renewal, at(100), async || Ok(())).await
}

/// A database with something in many tables.
async fn world() -> Kit {
    let kit = Kit::with_basics().await;
    let server = kit.register(PublicKey([1; 32])).await.server;
    let attached = kit.attach(server).await;
    assert!(kit.answer(&attached, server, true, 5).await);
    let (key, secret) = kit.personal_key().await;
    let device = PublicKey([2; 32]);
    kit.store.enrol_device(key, &secret, device, &device_info("laptop"), at(6)).await.unwrap();
    let event = NewEvent {
        kind: "test",
        severity: Severity::Low,
        source: Source::Server(server),
        address: None,
        description: "ünïcödé 'quoted' \" and \\ backslashes".into(),
        data: serde_json::json!({ "n": 1 }),
    };
    kit.store.record_event(&event, at(7)).await.unwrap();
    kit.store.seal_audit(None, at(8)).await.unwrap();
    kit
}

async fn everything_is_copied_to_either_engine() {
    let kit = world().await;
    let before = rows(kit.place.database()).await;
    for engine in [On::Sqlite, On::Postgres] {
        let other = ENGINE.scope(engine, async { Place::new() }).await;
        copy(kit.place.database(), other.owned(), true).await.unwrap();
        let after = rows(other.owned()).await;
        let names =
            |all: &[(Shape, Vec<String>)]| all.iter().map(|(s, _)| s.table.clone()).collect::<Vec<_>>();
        assert_eq!(names(&after), names(&before));
        // What the renewal changes.
        let renewed =
            ["system_settings", "leadership", "servers", "audit_logs", "security_events", "idempotency_keys"];
        for ((shape, was), (other, is)) in before.iter().zip(&after) {
            let mut columns = [shape.columns.clone(), other.columns.clone()];
            columns.iter_mut().for_each(|c| c.sort_by(|a, b| a.name.cmp(&b.name)));
            assert_eq!(columns[0], columns[1], "{}", shape.table);
            match &*shape.table {
                "audit_logs" | "security_events" => {
                    assert_eq!(is.len(), was.len() + 1, "{}", shape.table);
                    assert!(shape.columns != other.columns || was.iter().all(|row| is.contains(row)));
                }
                table if renewed.contains(&table) => assert_eq!(is.len(), was.len(), "{table}"),
                table if shape.columns == other.columns => assert_eq!(is, was, "{table}"),
                table => assert_eq!(is.len(), was.len(), "{table}"),
            }
        }
        let store = Store::open(other.database(), &envelope(), Metrics::default()).await.unwrap();
        let report = verify_audit(other.owned(), &[], at(100)).await.unwrap();
        assert_eq!((report.found, report.unsealed), (0, 1), "{:?}", report.findings);
        assert!(report.rows > 0);
        // Numbers go on after those that were given.
        store.seal_audit(None, at(101)).await.unwrap();
        assert_eq!(store.list_audit(1).await.unwrap()[0].action, "restore");
        assert_eq!(verify_audit(other.owned(), &[], at(102)).await.unwrap().found, 0);
        store.close().await;
    }
}

async fn a_copy_goes_on_where_the_original_ended() {
    let kit = world().await;
    let server = kit.server().await;
    let old = kit.store.server(server).await.unwrap().unwrap();
    // A second token, which was not used by then.
    kit.put(
        "[[resource]]\napiVersion = \"horizon.dev/v1alpha1\"\nkind = \"Server\"\nmetadata.name = \"rome\"\n[resource.spec]\n\
         [[resource]]\napiVersion = \"horizon.dev/v1alpha1\"\nkind = \"RegistrationKey\"\nmetadata.name = \"rome-1\"\n\
         spec.serverRef = \"rome\"\n",
    )
    .await;
    let rome = kit.uid("RegistrationKey", "rome-1").await;
    let token = kit.store.issue_registration_secret(rome, at(9)).await.unwrap();
    let into = |_| Place::new();
    let (ended, kept) = (into(()), into(()));
    let done = copy(kit.place.database(), ended.owned(), false).await.unwrap();
    assert_eq!((done.servers, done.tokens), (1, 1));
    assert_eq!(copy(kit.place.database(), kept.owned(), true).await.unwrap().tokens, 0);
    assert!(done.epoch >= u64::try_from(at(100).as_second()).unwrap());

    let store = Store::open(ended.database(), &envelope(), Metrics::default()).await.unwrap();
    let mut ask = request(token.clone(), PublicKey([3; 32]));
    ask.key_name = "rome-1".into();
    let refused = store.register_server(&ask, at(101)).await.unwrap_err();
    assert!(
        matches!(&refused, RegisterError::Revoked(why) if why.contains("a backup was restored")),
        "{refused}"
    );
    let other = Store::open(kept.database(), &envelope(), Metrics::default()).await.unwrap();
    other.register_server(&ask, at(101)).await.unwrap();
    other.close().await;

    // The appliance attaches with its key, gets a new secret, and takes a state although it has seen newer ones.
    let copied = Kit { place: ended, store };
    let attached = copied.attach(server).await;
    assert!(attached.reissued);
    assert!(copied.answer(&attached, server, true, 102).await);
    assert!(!copied.attach(server).await.reissued, "once proved it stays");
    let lease = copied.lease(server).await;
    let revision = copied.store.load_resources().await.unwrap().1;
    let numbered = copied.store.number_state(server, lease, Digest([9; 32]), revision).await.unwrap();
    let StateNumbering::Numbered(number) = numbered else { panic!("{numbered:?}") };
    assert!(number.epoch > 1 && number.generation > old.applied_generation);
    let events = copied.store.list_security_events(&EventFilter::default()).await.unwrap();
    assert_eq!(events[0].kind, "backup_restored");
    copied.store.maintain(Timestamp::now(), &Retention::default()).await.unwrap();
}

async fn a_snapshot_shows_one_moment_while_others_write() {
    let kit = world().await;
    let mut snapshot = Snapshot::take(kit.place.database()).await.unwrap();
    kit.put("[[resource]]\napiVersion = \"horizon.dev/v1alpha1\"\nkind = \"User\"\nmetadata.name = \"late\"\n[resource.spec]\n")
        .await;
    let mut found = 0;
    for shape in snapshot.tables().to_vec() {
        snapshot
            .rows(&shape, |row| {
                found += usize::from(shown(&row).contains("\"late\""));
                Ok::<_, StoreError>(())
            })
            .await
            .unwrap();
    }
    assert_eq!(found, 0);
    snapshot.close().await;
    assert_eq!(kit.uid("User", "late").await.get_version_num(), 7);
}

async fn a_database_with_anything_in_it_is_never_loaded() {
    let (kit, other) = (world().await, Kit::with_basics().await);
    let before = rows(other.place.database()).await;
    let refused = copy(kit.place.database(), other.place.owned(), true).await.unwrap_err();
    assert!(matches!(refused, LoadError::NotEmpty(_)), "{refused}");
    assert_eq!(rows(other.place.database()).await, before);
}

async fn a_load_that_is_broken_off_leaves_nothing() {
    let kit = world().await;
    let other = Place::new();
    let newest = MIGRATIONS.last().unwrap().version;
    let snapshot = Snapshot::take(kit.place.database()).await.unwrap();
    let mut loading = Loading::begin(other.owned(), snapshot.schema(), "0", at(1)).await.unwrap();
    let foreign = Shape {
        table: "resources; DROP TABLE resources".into(),
        columns: vec![Column { name: "uid".into(), kind: CellKind::Text }],
    };
    assert!(matches!(loading.table(&foreign), Err(LoadError::Foreign { .. })));
    let column = Shape {
        table: "resources".into(),
        columns: vec![Column { name: "uid) SELECT (1".into(), kind: CellKind::Text }],
    };
    assert!(matches!(loading.table(&column), Err(LoadError::Foreign { .. })));
    let counters = snapshot.tables().iter().find(|shape| shape.table == "counters").unwrap();
    loading.table(counters).unwrap();
    loading.rows(vec![vec![Cell::Text("mine".into()), Cell::Int(1)]]).await.unwrap();
    drop(loading);
    snapshot.close().await;
    let renewed = Loading::begin(other.owned(), newest, "0", at(1)).await;
    drop(renewed.unwrap());
    let newer = Loading::begin(other.owned(), newest + 1, "9.9.9", at(1)).await.err().unwrap().to_string();
    assert!(
        newer.contains(&format!("schema version {}", newest + 1)) && newer.contains("9.9.9 or newer"),
        "{newer}"
    );
    // As if nothing had ever been there.
    copy(kit.place.database(), other.owned(), true).await.unwrap();
}

/// A backup of an older version is loaded into tables of that version, which are then brought up to date.
#[tokio::test]
async fn an_older_copy_is_migrated_when_it_is_loaded() {
    let place = Place::new();
    let mut loading = Loading::begin(place.owned(), 2, "0", at(1)).await.unwrap();
    let counters = Shape {
        table: "counters".into(),
        columns: vec![
            Column { name: "name".into(), kind: CellKind::Text },
            Column { name: "value".into(), kind: CellKind::Int },
        ],
    };
    loading.table(&counters).unwrap();
    let row = |name: &str, value| vec![Cell::Text(name.into()), Cell::Int(value)];
    loading.rows(vec![row("resources", 41), row("changed", 0)]).await.unwrap();
    let leadership = Shape {
        table: "leadership".into(),
        columns: vec![
            Column { name: "singleton".into(), kind: CellKind::Int },
            Column { name: "epoch".into(), kind: CellKind::Int },
        ],
    };
    loading.table(&leadership).unwrap();
    loading.rows(vec![vec![Cell::Int(1), Cell::Int(5)]]).await.unwrap();
    let later = Shape { table: "audit_links".into(), columns: counters.columns.clone() };
    let foreign = loading.table(&later).unwrap_err().to_string();
    assert!(foreign.contains("schema version 2 does not know: audit_links"), "{foreign}");
    let renewal = Renewal { made: at(0), keep_tokens: false };
    loading.finish::<LoadError>(&renewal, at(1), async || Ok(())).await.unwrap();

    let store = Store::open(place.database(), &envelope(), Metrics::default()).await.unwrap();
    let row = query("SELECT value FROM counters WHERE name = 'resources'").fetch_one(store.readers()).await;
    assert_eq!(row.unwrap().int("value").unwrap(), 41);
    assert!(who_leads(&store).await.0.0 > 5);
    let done = store.list_audit(1).await.unwrap();
    assert_eq!((&*done[0].action, &*done[0].actor), ("restore", &*Actor::System("restore").name()));
}
