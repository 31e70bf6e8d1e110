//! A whole database as rows of typed values, whichever engine has it: for backups.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use futures_util::TryStreamExt as _;

use horizon_wire::proto;

use super::{
    AuditReport, Database, StoreError, audit_verify,
    dialect::{self, Connection, MAX_BINDS, Pool, Transaction, catalog},
    migrate, renewal,
};

pub use renewal::{Renewal, Renewed};

/// A value.
#[derive(Clone, PartialEq, Eq)]
pub enum Cell {
    /// None.
    Null,
    /// An integer, or a time in milliseconds.
    Int(i64),
    /// A text.
    Text(String),
    /// Bytes.
    Bytes(Vec<u8>),
    /// A truth.
    Flag(bool),
}

impl std::fmt::Debug for Cell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // It may be anything that the database keeps.
        f.write_str("Cell")
    }
}

/// What values a column has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum CellKind {
    /// Integers.
    Int,
    /// Texts.
    Text,
    /// Bytes.
    Bytes,
    /// Truths.
    Flag,
}

/// A column.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// Its values.
    pub kind: CellKind,
}

/// A table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    /// Its name.
    pub table: String,
    /// Its columns, in the order of the cells of its rows.
    pub columns: Vec<Column>,
}

/// What only processes that run have: who they are, and what they hold.
const OF_PROCESSES: [&str; 4] = ["replicas", "device_channels", "keyset_holders", "envelope_holders"];
/// Tables in which migrations put rows.
const SEEDED: [&str; 6] =
    ["counters", "leadership", "roles", "permissions", "role_permissions", "system_settings"];

/// Why a database cannot be loaded.
#[derive(Debug, Error)]
pub enum LoadError {
    /// Something is in it.
    #[error(
        "the database is not empty: its table {0} has rows. A backup is restored into an empty database only: give another, or remove what is there"
    )]
    NotEmpty(String),
    /// The backup is of a newer version.
    #[error(
        "the backup has schema version {found}, this program knows up to {newest}: restore it with horizon-controller {program} or newer"
    )]
    Newer {
        /// What was found.
        found: i64,
        /// What this program knows.
        newest: i64,
        /// The program that made the backup.
        program: String,
    },
    /// The tables are there already, of another version.
    #[error(
        "the backup has schema version {backup}, and the empty database has tables of version {found} already: remove these, so that those of the backup can be made first"
    )]
    OtherTables {
        /// That of the backup.
        backup: i64,
        /// That of the database.
        found: i64,
    },
    /// The backup has what the schema has not.
    #[error("the backup has a table or a column that its schema version {schema} does not know: {what}")]
    Foreign {
        /// The version.
        schema: i64,
        /// What.
        what: String,
    },
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<sqlx::Error> for LoadError {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

/// One state of a database, to be read while others go on to change it.
pub struct Snapshot {
    pool: Pool,
    tx: Transaction,
    tables: Vec<Shape>,
    schema: i64,
}

impl Snapshot {
    /// Takes the state of now. Nothing is written, and no schema is changed.
    ///
    /// # Errors
    /// When the database cannot be read, or its schema is another than this program's.
    pub async fn take(database: impl Into<Database>) -> Result<Self, StoreError> {
        let pool = dialect::open_for_copy(&database.into()).await?;
        let mut tx = pool.snapshot().await?;
        // The first statement fixes the state that is read.
        migrate::verify(&mut tx, &migrate::MIGRATIONS).await?;
        let schema = migrate::version(&mut tx).await?;
        let mut tables = catalog::tables(&mut tx).await?;
        tables.retain(|shape| !OF_PROCESSES.contains(&&*shape.table));
        Ok(Self { pool, tx, tables, schema })
    }

    /// The version of the schema.
    pub fn schema(&self) -> i64 {
        self.schema
    }

    /// `sqlite` or `postgres`.
    pub fn engine(&self) -> &'static str {
        self.tx.engine().name()
    }

    /// The tables, those before others that refer to them.
    pub fn tables(&self) -> &[Shape] {
        &self.tables
    }

    /// Reads all rows of a table, one at a time.
    ///
    /// # Errors
    /// When the database fails, or `each` does.
    pub async fn rows<E: From<StoreError>>(
        &mut self,
        shape: &Shape,
        mut each: impl FnMut(Vec<Cell>) -> Result<(), E>,
    ) -> Result<(), E> {
        let db: &mut Connection = &mut self.tx;
        let mut rows = catalog::select(shape).fetch(db);
        while let Some(row) = rows.try_next().await.map_err(StoreError::from)? {
            each(catalog::cells(shape, &row)?)?;
        }
        Ok(())
    }

    /// Ends the reading.
    pub async fn close(self) {
        drop(self.tx);
        self.pool.close().await;
    }
}

/// A database that is being loaded, all in one transaction: dropped without [`Loading::finish`] nothing was.
pub struct Loading {
    pool: Pool,
    tx: Transaction,
    tables: Vec<Shape>,
    /// The table that rows are for, with the columns in their order.
    current: Option<Shape>,
    schema: i64,
}

impl Loading {
    /// Begins with an empty database, in which the tables of schema version `schema` are made. `program` made the backup.
    ///
    /// # Errors
    /// When it is not empty, or that cannot be.
    pub async fn begin(
        database: impl Into<Database>,
        schema: i64,
        program: &str,
        now: Timestamp,
    ) -> Result<Self, LoadError> {
        let pool = dialect::open_for_migration(&database.into()).await?;
        Self::begin_in(pool, schema, program, now).await
    }

    async fn begin_in(pool: Pool, schema: i64, program: &str, now: Timestamp) -> Result<Self, LoadError> {
        let newest = migrate::MIGRATIONS.last().map_or(0, |newest| newest.version);
        if schema > newest {
            return Err(LoadError::Newer { found: schema, newest, program: program.to_owned() });
        }
        let mut tx = pool.begin().await?;
        let found = migrate::version(&mut tx).await?;
        if found != 0 {
            for shape in catalog::tables(&mut tx).await? {
                if !SEEDED.contains(&&*shape.table) && catalog::has_rows(&mut tx, &shape.table).await? {
                    return Err(LoadError::NotEmpty(shape.table));
                }
            }
            if found != schema {
                return Err(LoadError::OtherTables { backup: schema, found });
            }
        } else if let Some(other) = catalog::tables(&mut tx).await?.first() {
            return Err(LoadError::NotEmpty(other.table.clone()));
        }
        migrate::run(&mut tx, migrate::up_to(schema), now).await?;
        tx.refer_late().await?;
        let tables = catalog::tables(&mut tx).await?;
        for shape in tables.iter().rev() {
            catalog::clear(&mut tx, &shape.table).await?;
        }
        Ok(Self { pool, tx, tables, current: None, schema })
    }

    /// The same in memory, to look at a copy without a database.
    ///
    /// # Errors
    /// When the copy is of a newer version.
    pub async fn in_memory(schema: i64, program: &str, now: Timestamp) -> Result<Self, LoadError> {
        Self::begin_in(dialect::open_in_memory().await?, schema, program, now).await
    }

    /// Verifies the audit trail that was loaded, as [`verify_audit`](super::verify_audit) does, and forgets the rest.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn verify_audit(
        self,
        witnesses: &[proto::Envelope],
        now: Timestamp,
    ) -> Result<AuditReport, LoadError> {
        let Self { pool, mut tx, .. } = self;
        migrate::run(&mut tx, &migrate::MIGRATIONS, now).await?;
        tx.commit().await?;
        let report = audit_verify::verify(&pool, witnesses, now).await?;
        pool.close().await;
        Ok(report)
    }

    /// Says which table the rows that follow are of.
    ///
    /// # Errors
    /// When there is none like it.
    pub fn table(&mut self, shape: &Shape) -> Result<(), LoadError> {
        let foreign = |what: String| LoadError::Foreign { schema: self.schema, what };
        let own = self.tables.iter().find(|own| own.table == shape.table);
        let own = own.ok_or_else(|| foreign(shape.table.clone()))?;
        for column in &shape.columns {
            if !own.columns.contains(column) {
                return Err(foreign(format!("{}.{}", shape.table, column.name)));
            }
        }
        self.current = Some(shape.clone());
        Ok(())
    }

    /// Adds rows to the table.
    ///
    /// # Errors
    /// When the database does not take them.
    pub async fn rows(&mut self, mut rows: Vec<Vec<Cell>>) -> Result<(), LoadError> {
        let Some(shape) = &self.current else { return Ok(()) };
        let most = (MAX_BINDS / shape.columns.len().max(1)).max(1);
        while !rows.is_empty() {
            let rest = rows.split_off(rows.len().min(most));
            catalog::insert(&mut self.tx, shape, rows).await?;
            rows = rest;
        }
        Ok(())
    }

    /// Gives up: the database is as before once this returns.
    pub async fn abandon(self) {
        drop(self.tx);
        self.pool.close().await;
    }

    /// Brings the schema up to date, makes of the copy a database that goes on where the other ended, and commits once `ready`
    /// says that everything else is in its place.
    ///
    /// # Errors
    /// When that cannot be. The database is as before then.
    pub async fn finish<E: From<LoadError>>(
        self,
        renewal: &Renewal,
        now: Timestamp,
        ready: impl AsyncFnOnce() -> Result<(), E>,
    ) -> Result<Renewed, E> {
        let Self { pool, mut tx, .. } = self;
        let prepared = async {
            migrate::run(&mut tx, &migrate::MIGRATIONS, now).await?;
            migrate::grant(&mut tx).await?;
            renewal::renew(&mut tx, renewal, now).await
        };
        let done = async {
            let renewed = prepared.await.map_err(LoadError::from)?;
            ready().await?;
            Ok(renewed)
        };
        let done = match done.await {
            Ok(renewed) => tx.commit().await.map(|()| renewed).map_err(|error| LoadError::from(error).into()),
            Err(error) => {
                drop(tx);
                Err(error)
            }
        };
        pool.close().await;
        done
    }
}
