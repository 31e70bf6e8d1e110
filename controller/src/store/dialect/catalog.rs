//! What tables there are, and their rows as they are: for copies of a whole database, whichever engine has it.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::Row as _;

use super::{Builder, Connection, Engine, Query, Row, Value, query};
use crate::store::{
    StoreError,
    copy::{Cell, CellKind, Column, Shape},
    row::Columns as _,
};

/// The register of migrations, which no copy holds: the schema is made by migrations.
const REGISTER: &str = "schema_migrations";

/// The tables that migrations made, those before others that refer to them.
pub(in crate::store) async fn tables(db: &mut Connection) -> Result<Vec<Shape>, StoreError> {
    let (names, columns, references) = match db.engine() {
        Engine::Sqlite => (
            "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY name",
            "SELECT name, type FROM pragma_table_info($1) ORDER BY cid",
            "SELECT \"table\" AS name FROM pragma_foreign_key_list($1)",
        ),
        Engine::Postgres => (
            "SELECT CAST(relname AS TEXT) AS name FROM pg_class WHERE relkind IN ('r', 'p') AND NOT relispartition \
             AND relnamespace = CAST(current_schema() AS regnamespace) ORDER BY relname",
            "SELECT CAST(attname AS TEXT) AS name, format_type(atttypid, NULL) AS type FROM pg_attribute \
             WHERE attrelid = CAST($1 AS regclass) AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
            "SELECT CAST(c.relname AS TEXT) AS name FROM pg_constraint f JOIN pg_class c ON c.oid = f.confrelid \
             WHERE f.conrelid = CAST($1 AS regclass) AND f.contype = 'f'",
        ),
    };
    let mut waiting: BTreeMap<String, (Vec<Column>, BTreeSet<String>)> = BTreeMap::new();
    for row in query(names).fetch_all(&mut *db).await? {
        let name = row.text("name")?;
        if name == REGISTER {
            continue;
        }
        let found = query(columns).bind(&name).fetch_all(&mut *db).await?;
        let shape = found.iter().map(|row| {
            let kind = kind_of(&row.text("type")?)?;
            Ok(Column { name: row.text("name")?, kind })
        });
        let shape = shape.collect::<Result<Vec<_>, StoreError>>()?;
        let before = query(references).bind(&name).fetch_all(&mut *db).await?;
        let before = before.iter().map(|row| row.text("name")).collect::<Result<BTreeSet<_>, _>>()?;
        waiting.insert(name, (shape, before));
    }
    let mut ordered: Vec<Shape> = Vec::with_capacity(waiting.len());
    while !waiting.is_empty() {
        let free: Vec<String> = waiting
            .iter()
            .filter(|(name, (_, before))| before.iter().all(|b| b == *name || !waiting.contains_key(b)))
            .map(|(name, _)| name.clone())
            .collect();
        // Tables that refer to each other in a circle come as they are named.
        let next = if free.is_empty() { waiting.keys().cloned().collect() } else { free };
        for name in next {
            if let Some((columns, _)) = waiting.remove(&name) {
                ordered.push(Shape { table: name, columns });
            }
        }
    }
    Ok(ordered)
}

fn kind_of(declared: &str) -> Result<CellKind, StoreError> {
    match declared.to_ascii_uppercase().as_str() {
        "TEXT" => Ok(CellKind::Text),
        "BIGINT" | "INTEGER" => Ok(CellKind::Int),
        "BLOB" | "BYTEA" => Ok(CellKind::Bytes),
        "BOOLEAN" => Ok(CellKind::Flag),
        other => Err(StoreError::Corrupt { column: "type", why: format!("is of the foreign type {other}") }),
    }
}

/// A name as a part of a statement.
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn list(columns: &[Column]) -> String {
    columns.iter().map(|column| quoted(&column.name)).collect::<Vec<_>>().join(", ")
}

/// All rows of a table of this database's own catalogue.
pub(in crate::store) fn select(shape: &Shape) -> Query {
    Builder::named(format!("SELECT {} FROM {}", list(&shape.columns), quoted(&shape.table))).build()
}

/// Whether a table has rows.
pub(in crate::store) async fn has_rows(db: &mut Connection, table: &str) -> Result<bool, StoreError> {
    let sql = Builder::named(format!("SELECT 1 FROM {} LIMIT 1", quoted(table)));
    Ok(sql.build().fetch_optional(db).await?.is_some())
}

/// Removes all rows of a table.
pub(in crate::store) async fn clear(db: &mut Connection, table: &str) -> Result<(), StoreError> {
    Builder::named(format!("DELETE FROM {}", quoted(table))).build().execute(db).await?;
    Ok(())
}

/// The cells of a row that [`select`] gave.
pub(in crate::store) fn cells(shape: &Shape, row: &Row) -> Result<Vec<Cell>, StoreError> {
    let cell = |(at, column): (usize, &Column)| -> Result<Cell, sqlx::Error> {
        macro_rules! get {
            ($type:ty, $cell:path) => {
                match row {
                    Row::Sqlite(row) => row.try_get::<Option<$type>, usize>(at)?,
                    Row::Postgres(row) => row.try_get::<Option<$type>, usize>(at)?,
                }
                .map_or(Cell::Null, $cell)
            };
        }
        Ok(match column.kind {
            CellKind::Int => get!(i64, Cell::Int),
            CellKind::Text => get!(String, Cell::Text),
            CellKind::Bytes => get!(Vec<u8>, Cell::Bytes),
            CellKind::Flag => get!(bool, Cell::Flag),
        })
    };
    Ok(shape.columns.iter().enumerate().map(cell).collect::<Result<_, _>>()?)
}

/// Adds rows to a table of this database's own catalogue, with the numbers that they have.
pub(in crate::store) async fn insert(
    db: &mut Connection,
    shape: &Shape,
    rows: Vec<Vec<Cell>>,
) -> Result<(), StoreError> {
    let own_numbers = match db.engine() {
        Engine::Sqlite => "",
        Engine::Postgres => " OVERRIDING SYSTEM VALUE",
    };
    let into = format!("INSERT INTO {} ({}){own_numbers} ", quoted(&shape.table), list(&shape.columns));
    let mut statement = Builder::named(into);
    statement.push_values(rows, |tuple, row| {
        for (cell, column) in row.into_iter().zip(&shape.columns) {
            tuple.push_bind(match (cell, column.kind) {
                (Cell::Int(value), _) => Value::Int(Some(value)),
                (Cell::Text(value), _) => Value::Text(Some(value)),
                (Cell::Bytes(value), _) => Value::Bytes(Some(value)),
                (Cell::Flag(value), _) => Value::Flag(Some(value)),
                (Cell::Null, CellKind::Int) => Value::Int(None),
                (Cell::Null, CellKind::Text) => Value::Text(None),
                (Cell::Null, CellKind::Bytes) => Value::Bytes(None),
                (Cell::Null, CellKind::Flag) => Value::Flag(None),
            });
        }
    });
    statement.build().execute(db).await?;
    Ok(())
}

/// Has the numbering of a table's rows go on after the highest that it has, and after `least`. SQLite does the former by itself.
pub(in crate::store) async fn number_on(
    db: &mut Connection,
    table: &str,
    least: i64,
) -> Result<(), StoreError> {
    match db.engine() {
        Engine::Sqlite if least > 0 => {
            query(
                "INSERT INTO sqlite_sequence (name, seq) SELECT $1, 0 \
                 WHERE NOT EXISTS (SELECT 1 FROM sqlite_sequence WHERE name = $1)",
            )
            .bind(table)
            .execute(&mut *db)
            .await?;
            query("UPDATE sqlite_sequence SET seq = MAX(seq, $2) WHERE name = $1")
                .bind(table)
                .bind(least)
                .execute(db)
                .await?;
        }
        Engine::Sqlite => {}
        Engine::Postgres => {
            let columns = query(
                "SELECT CAST(attname AS TEXT) AS name FROM pg_attribute \
                 WHERE attrelid = CAST($1 AS regclass) AND attidentity <> ''",
            );
            for row in columns.bind(table).fetch_all(&mut *db).await? {
                let column = row.text("name")?;
                let sql = format!(
                    "SELECT setval(pg_get_serial_sequence('{table}', '{column}'), \
                     GREATEST(COALESCE(MAX({}), 0), {least}) + 1, FALSE) AS n FROM {}",
                    quoted(&column),
                    quoted(table)
                );
                Builder::named(sql).build().fetch_one(&mut *db).await?;
            }
        }
    }
    Ok(())
}
