//! Migrations: SQL files in order, each applied once and remembered with its digest.

use jiff::Timestamp;
use sqlx::{AssertSqlSafe, Row as _};

use super::{
    StoreError,
    dialect::{self, Connection},
    row::millis,
};

/// The migrations, by number. A released one is never edited.
const MIGRATIONS: [(i64, &str); 1] = [(1, include_str!("../../migrations/0001_first.sql"))];

const REGISTER: &str = "CREATE TABLE IF NOT EXISTS schema_migrations (
    version BIGINT PRIMARY KEY, digest TEXT NOT NULL, applied_at BIGINT NOT NULL)";

/// Brings the schema up to date, inside the caller's transaction.
pub(super) async fn run(db: &mut Connection, now: Timestamp) -> Result<(), StoreError> {
    sqlx::raw_sql(REGISTER).execute(&mut *db).await?;
    let rows = sqlx::query("SELECT version, digest FROM schema_migrations ORDER BY version")
        .fetch_all(&mut *db)
        .await?;
    let newest = MIGRATIONS.last().map_or(0, |(version, _)| *version);
    for row in &rows {
        let (version, digest): (i64, String) = (row.try_get("version")?, row.try_get("digest")?);
        match MIGRATIONS.iter().find(|(v, _)| *v == version) {
            None => return Err(StoreError::NewerSchema { found: version, newest }),
            Some((_, text)) if digest_of(text) != digest => return Err(StoreError::OtherSchema(version)),
            Some(_) => {}
        }
    }
    let applied = rows.len();
    for (version, text) in MIGRATIONS.iter().skip(applied) {
        let mut sql = (*text).to_owned();
        for (word, meaning) in dialect::WORDS {
            sql = sql.replace(word, meaning);
        }
        // The text is a file of this program with two words filled in.
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *db).await?;
        sqlx::query("INSERT INTO schema_migrations (version, digest, applied_at) VALUES ($1, $2, $3)")
            .bind(version)
            .bind(digest_of(text))
            .bind(millis(now))
            .execute(&mut *db)
            .await?;
    }
    Ok(())
}

fn digest_of(text: &str) -> String {
    horizon_wire::key::sha256(text.as_bytes()).to_string()
}
