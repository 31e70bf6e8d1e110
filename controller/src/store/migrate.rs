//! Migrations: SQL files in order, each applied once and remembered with its digest.
//!
//! A migration only adds (expand); what is no longer needed goes in a later one (contract), once no program that is still
//! deployed needs it. So each says the oldest schema a program must know to work with it, and programs of two versions
//! work side by side during an update.

use jiff::Timestamp;

use super::{
    StoreError,
    dialect::{Connection, Engine, query},
    row::{Columns as _, millis},
};

/// One step of the schema.
#[derive(Clone, Copy, Debug)]
pub(super) struct Migration {
    /// Its number; they are counted from 1.
    pub(super) version: i64,
    /// The oldest version that a program must know to work with the schema after it.
    pub(super) compatible_from: i64,
    /// The text for every engine.
    pub(super) text: &'static str,
    /// What follows it on SQLite.
    pub(super) sqlite: &'static str,
    /// What follows it on Postgres.
    pub(super) postgres: &'static str,
}

/// The migrations, by number. A released one is never edited.
pub(super) const MIGRATIONS: [Migration; 12] = [
    Migration {
        version: 1,
        compatible_from: 1,
        text: include_str!("../../migrations/0001_first.sql"),
        sqlite: "",
        postgres: "",
    },
    Migration {
        version: 2,
        compatible_from: 2,
        text: include_str!("../../migrations/0002_replicas.sql"),
        sqlite: include_str!("../../migrations/0002_replicas.sqlite.sql"),
        postgres: include_str!("../../migrations/0002_replicas.postgres.sql"),
    },
    Migration {
        version: 3,
        compatible_from: 2,
        text: include_str!("../../migrations/0003_identity.sql"),
        sqlite: "",
        postgres: "",
    },
    Migration {
        version: 4,
        compatible_from: 2,
        text: include_str!("../../migrations/0004_rotation.sql"),
        sqlite: "",
        postgres: "",
    },
    Migration {
        version: 5,
        compatible_from: 2,
        text: include_str!("../../migrations/0005_keysets.sql"),
        sqlite: "",
        postgres: "",
    },
    Migration {
        version: 6,
        compatible_from: 2,
        text: include_str!("../../migrations/0006_devices.sql"),
        sqlite: "",
        postgres: "",
    },
    Migration {
        version: 7,
        compatible_from: 2,
        text: include_str!("../../migrations/0007_detection.sql"),
        sqlite: "",
        postgres: include_str!("../../migrations/0007_detection.postgres.sql"),
    },
    Migration {
        version: 8,
        compatible_from: 2,
        text: include_str!("../../migrations/0008_admins.sql"),
        sqlite: "",
        postgres: "",
    },
    Migration {
        version: 9,
        compatible_from: 2,
        text: include_str!("../../migrations/0009_audit.sql"),
        sqlite: "",
        postgres: "",
    },
    Migration {
        version: 10,
        compatible_from: 2,
        text: include_str!("../../migrations/0010_sealing.sql"),
        sqlite: "",
        postgres: "",
    },
    Migration {
        version: 11,
        compatible_from: 2,
        text: include_str!("../../migrations/0011_retention.sql"),
        sqlite: "",
        postgres: include_str!("../../migrations/0011_retention.postgres.sql"),
    },
    Migration {
        version: 12,
        compatible_from: 2,
        text: include_str!("../../migrations/0012_looks.sql"),
        sqlite: "",
        postgres: "",
    },
];

/// What a migration run did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MigrationReport {
    /// The versions that were applied, oldest first; empty when the schema was up to date.
    pub applied: Vec<i64>,
    /// The version of the schema now.
    pub version: i64,
    /// Roles for which there are rules but which do not exist and could not be made. Whoever connects as the owner of the
    /// tables needs none of them.
    pub missing_roles: Vec<String>,
}

const REGISTER: &str = "CREATE TABLE IF NOT EXISTS schema_migrations (
    version BIGINT PRIMARY KEY, digest TEXT NOT NULL, applied_at BIGINT NOT NULL)";

/// What `schema_migrations` says.
struct Found {
    version: i64,
    digest: String,
    compatible_from: i64,
}

/// Applies, inside the caller's transaction, what is not applied yet. Returns the versions that were.
pub(super) async fn run(
    db: &mut Connection,
    migrations: &[Migration],
    now: Timestamp,
) -> Result<Vec<i64>, StoreError> {
    // One at a time, and nothing of it is seen before all of it is done.
    db.serialise("horizon migrations").await?;
    db.script(REGISTER.to_owned()).await?;
    let found = found(db).await?;
    check(&found, migrations, db.engine())?;
    let known = found.last().map_or(0, |newest| newest.version);
    let mut applied = Vec::new();
    for migration in migrations.iter().filter(|m| m.version > known) {
        let mut sql = text_of(migration, db.engine());
        for (word, meaning) in db.engine().words() {
            sql = sql.replace(word, meaning);
        }
        db.script(sql).await?;
        let insert = query("INSERT INTO schema_migrations (version, digest, applied_at) VALUES ($1, $2, $3)");
        insert
            .bind(migration.version)
            .bind(digest_of(migration, db.engine()))
            .bind(millis(now))
            .execute(&mut *db)
            .await?;
        // The column came with the second migration, and those before are compatible with themselves.
        if migration.version > 1 {
            query("UPDATE schema_migrations SET compatible_from = $1 WHERE version = $2")
                .bind(migration.compatible_from)
                .bind(migration.version)
                .execute(&mut *db)
                .await?;
        }
        applied.push(migration.version);
    }
    Ok(applied)
}

/// The migrations up to a version.
pub(super) fn up_to(version: i64) -> &'static [Migration] {
    let end = MIGRATIONS.iter().take_while(|migration| migration.version <= version).count();
    &MIGRATIONS[..end]
}

/// The version of the schema; 0 when there is none.
pub(super) async fn version(db: &mut Connection) -> Result<i64, StoreError> {
    let table = match db.engine() {
        Engine::Sqlite => {
            query("SELECT name FROM sqlite_master WHERE type = 'table' AND name = 'schema_migrations'")
        }
        Engine::Postgres => query("SELECT CAST(to_regclass('schema_migrations') AS TEXT) AS name"),
    };
    let row = table.fetch_optional(&mut *db).await?;
    if row.map(|row| row.maybe_text("name")).transpose()?.flatten().is_none() {
        return Ok(0);
    }
    Ok(found(db).await?.last().map_or(0, |newest| newest.version))
}

/// The roles that have rules.
const ROLES: [&str; 3] = ["horizon_run", "horizon_reader", "horizon_backup"];

/// States anew who may do what. Returns the roles that are not there.
pub(super) async fn grant(db: &mut Connection) -> Result<Vec<String>, StoreError> {
    if db.engine() == Engine::Sqlite {
        return Ok(Vec::new());
    }
    db.script(include_str!("../../migrations/grants.postgres.sql").to_owned()).await?;
    let mut missing = Vec::new();
    for role in ROLES {
        let row = query("SELECT rolname FROM pg_roles WHERE rolname = $1")
            .bind(role)
            .fetch_optional(&mut *db)
            .await?;
        missing.extend(row.is_none().then(|| role.to_owned()));
    }
    Ok(missing)
}

/// Whether this program works with the schema of the database: the one it knows, or a newer one that only added to it.
pub(super) async fn verify(db: &mut Connection, migrations: &[Migration]) -> Result<(), StoreError> {
    let wanted = migrations.last().map_or(0, |newest| newest.version);
    if version(db).await? == 0 {
        return Err(StoreError::OldSchema { found: 0, wanted });
    }
    let found = found(db).await?;
    check(&found, migrations, db.engine())?;
    let version = found.last().map_or(0, |newest| newest.version);
    if version < wanted { Err(StoreError::OldSchema { found: version, wanted }) } else { Ok(()) }
}

async fn found(db: &mut Connection) -> Result<Vec<Found>, StoreError> {
    let rows = query("SELECT * FROM schema_migrations ORDER BY version").once().fetch_all(&mut *db).await?;
    rows.iter()
        .map(|row| {
            let version = row.int("version")?;
            let compatible_from = row.int("compatible_from").unwrap_or(version);
            Ok(Found { version, digest: row.text("digest")?, compatible_from })
        })
        .collect()
}

fn check(found: &[Found], migrations: &[Migration], engine: Engine) -> Result<(), StoreError> {
    let newest = migrations.last().map_or(0, |newest| newest.version);
    for row in found {
        match migrations.iter().find(|m| m.version == row.version) {
            Some(migration) if digest_of(migration, engine) != row.digest => {
                return Err(StoreError::OtherSchema(row.version));
            }
            None if row.compatible_from > newest => {
                return Err(StoreError::NewerSchema { found: row.version, newest });
            }
            _ => {}
        }
    }
    Ok(())
}

fn text_of(migration: &Migration, engine: Engine) -> String {
    let own = match engine {
        Engine::Sqlite => migration.sqlite,
        Engine::Postgres => migration.postgres,
    };
    [migration.text, own].concat()
}

fn digest_of(migration: &Migration, engine: Engine) -> String {
    horizon_wire::key::sha256(text_of(migration, engine).as_bytes()).to_string()
}
