//! Statements: a text with `$N` for values, the same for every engine, and the values.

use std::fmt::Write as _;

use futures_util::{
    StreamExt as _, TryStreamExt as _,
    stream::{self, BoxStream},
};
use sqlx::{
    Arguments as _, AssertSqlSafe, SqlSafeStr as _, SqlStr, postgres::PgArguments, sqlite::SqliteArguments,
};

use super::{Connection, Engine, Pool, Row};

/// The words of a statement that engines say differently: word, SQLite, Postgres.
const WORDS: [(&str, &str, &str); 5] = [
    // A row is read to be changed: nobody else changes it before this transaction ends. SQLite has one writer anyway.
    ("{lock}", "", "FOR UPDATE"),
    // What was read stays true until this transaction ends.
    ("{share}", "", "FOR SHARE"),
    // The same, but not against an update that changes no key: only who takes a `{lock}` first waits for this transaction.
    ("{keep}", "", "FOR KEY SHARE"),
    // The database's clock, in milliseconds since the Unix epoch.
    (
        "{now}",
        "CAST(unixepoch('subsec') * 1000 AS INTEGER)",
        "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)",
    ),
    // The mark that this transaction leaves on servers that it changes, see `changed.rs`.
    (
        "{change}",
        "(SELECT value FROM counters WHERE name = 'changed')",
        "CAST(CAST(pg_current_xact_id() AS TEXT) AS BIGINT)",
    ),
];

/// Where a value goes, in a text that is put together at run time.
const HOLE: char = '\u{1}';

/// A value of a statement. It may be sensitive, and shows nowhere.
#[derive(Clone)]
pub(in crate::store) enum Value {
    Int(Option<i64>),
    Text(Option<String>),
    Bytes(Option<Vec<u8>>),
    Flag(Option<bool>),
    /// Lists are for Postgres alone, which makes rows of them (`UNNEST`).
    Ints(Vec<i64>),
    Texts(Vec<String>),
    ByteStrings(Vec<Vec<u8>>),
}

macro_rules! values {
    ($($from:ty => $kind:ident, |$v:ident| $make:expr;)+) => {
        $(impl From<$from> for Value {
            fn from($v: $from) -> Self {
                Self::$kind($make)
            }
        })+
    };
}

values! {
    i64 => Int, |v| Some(v);
    u32 => Int, |v| Some(i64::from(v));
    Option<i64> => Int, |v| v;
    &str => Text, |v| Some(v.to_owned());
    String => Text, |v| Some(v);
    &String => Text, |v| Some(v.clone());
    Option<&str> => Text, |v| v.map(str::to_owned);
    Option<String> => Text, |v| v;
    &Option<String> => Text, |v| v.clone();
    &[u8] => Bytes, |v| Some(v.to_vec());
    Vec<u8> => Bytes, |v| Some(v);
    Option<Vec<u8>> => Bytes, |v| v;
    bool => Flag, |v| Some(v);
    Vec<i64> => Ints, |v| v;
    Vec<String> => Texts, |v| v;
    Vec<Vec<u8>> => ByteStrings, |v| v;
}

/// Where a statement runs.
pub(in crate::store) enum On<'a> {
    Pool(&'a Pool),
    Connection(&'a mut Connection),
}

impl<'a> From<&'a Pool> for On<'a> {
    fn from(pool: &'a Pool) -> Self {
        Self::Pool(pool)
    }
}

impl<'a> From<&'a mut Connection> for On<'a> {
    fn from(connection: &'a mut Connection) -> Self {
        Self::Connection(connection)
    }
}

/// What a statement did.
#[derive(Clone, Copy, Debug)]
pub(in crate::store) struct Done(u64);

impl Done {
    pub(in crate::store) fn rows_affected(self) -> u64 {
        self.0
    }
}

/// A statement.
#[must_use = "a statement does nothing until it is executed"]
pub(in crate::store) struct Query {
    sql: SqlStr,
    values: Vec<Value>,
    /// Whether connections keep it prepared.
    persistent: bool,
}

/// A statement of this program's text.
pub(in crate::store) fn query(sql: &'static str) -> Query {
    Query { sql: SqlStr::from_static(sql), values: Vec::new(), persistent: true }
}

macro_rules! run {
    ($self:ident, $on:expr, |$query:ident, $target:ident| $run:expr) => {
        match $on.into() {
            On::Pool(Pool::Sqlite($target)) => {
                let $query = $self.sqlite()?;
                $run
            }
            On::Connection(Connection::Sqlite(tx)) => {
                let ($query, $target) = ($self.sqlite()?, &mut **tx);
                $run
            }
            On::Pool(Pool::Postgres($target)) => {
                let $query = $self.postgres()?;
                $run
            }
            On::Connection(Connection::Postgres(tx)) => {
                let ($query, $target) = ($self.postgres()?, &mut **tx);
                $run
            }
        }
    };
}

impl Query {
    pub(in crate::store) fn bind(mut self, value: impl Into<Value>) -> Self {
        self.values.push(value.into());
        self
    }

    /// Connections do not keep it prepared: the tables that it is about change.
    pub(in crate::store) fn once(self) -> Self {
        Self { persistent: false, ..self }
    }

    pub(in crate::store) async fn execute<'a>(self, on: impl Into<On<'a>>) -> Result<Done, sqlx::Error> {
        Ok(Done(run!(self, on, |query, target| query.execute(target).await?.rows_affected())))
    }

    pub(in crate::store) async fn fetch_all<'a>(
        self,
        on: impl Into<On<'a>>,
    ) -> Result<Vec<Row>, sqlx::Error> {
        Ok(run!(self, on, |query, target| query
            .fetch_all(target)
            .await?
            .into_iter()
            .map(Row::from)
            .collect()))
    }

    pub(in crate::store) async fn fetch_optional<'a>(
        self,
        on: impl Into<On<'a>>,
    ) -> Result<Option<Row>, sqlx::Error> {
        Ok(run!(self, on, |query, target| query.fetch_optional(target).await?.map(Row::from)))
    }

    pub(in crate::store) async fn fetch_one<'a>(self, on: impl Into<On<'a>>) -> Result<Row, sqlx::Error> {
        self.fetch_optional(on).await?.ok_or(sqlx::Error::RowNotFound)
    }

    /// Rows one at a time, for results that are too many to hold.
    pub(in crate::store) fn fetch<'a>(
        self,
        on: impl Into<On<'a>>,
    ) -> BoxStream<'a, Result<Row, sqlx::Error>> {
        let on = on.into();
        let rows = move || Ok(run!(self, on, |query, target| query.fetch(target).map_ok(Row::from).boxed()));
        rows().unwrap_or_else(|error| stream::once(async { Err(error) }).boxed())
    }

    fn sqlite(self) -> Result<sqlx::query::Query<'static, sqlx::Sqlite, SqliteArguments>, sqlx::Error> {
        let mut arguments = SqliteArguments::default();
        for value in self.values {
            let added = match value {
                Value::Int(v) => arguments.add(v),
                Value::Text(v) => arguments.add(v),
                Value::Bytes(v) => arguments.add(v),
                Value::Flag(v) => arguments.add(v),
                Value::Ints(_) | Value::Texts(_) | Value::ByteStrings(_) => Err("SQLite has no lists".into()),
            };
            added.map_err(sqlx::Error::Encode)?;
        }
        let sql = spell(self.sql, Engine::Sqlite);
        Ok(sqlx::query_with(sql, arguments).persistent(self.persistent))
    }

    fn postgres(self) -> Result<sqlx::query::Query<'static, sqlx::Postgres, PgArguments>, sqlx::Error> {
        let mut arguments = PgArguments::default();
        for value in self.values {
            let added = match value {
                Value::Int(v) => arguments.add(v),
                Value::Text(v) => arguments.add(v),
                Value::Bytes(v) => arguments.add(v),
                Value::Flag(v) => arguments.add(v),
                Value::Ints(v) => arguments.add(v),
                Value::Texts(v) => arguments.add(v),
                Value::ByteStrings(v) => arguments.add(v),
            };
            added.map_err(sqlx::Error::Encode)?;
        }
        let sql = spell(self.sql, Engine::Postgres);
        Ok(sqlx::query_with(sql, arguments).persistent(self.persistent))
    }
}

/// The text in the words of an engine.
fn spell(sql: SqlStr, engine: Engine) -> SqlStr {
    if !sql.as_str().contains(['{', HOLE]) {
        return sql;
    }
    let mut text = String::with_capacity(sql.as_str().len());
    // SQLite looks for names of values one by one, which takes long where there are thousands: there they have none.
    let mut values = 0;
    for (i, piece) in sql.as_str().split(HOLE).enumerate() {
        if i > 0 && engine == Engine::Sqlite {
            text.push('?');
        } else if i > 0 {
            values += 1;
            // Writing to a string cannot fail.
            let _ = write!(text, "${values}");
        }
        text.push_str(piece);
    }
    for (word, sqlite, postgres) in WORDS {
        let meaning = match engine {
            Engine::Sqlite => sqlite,
            Engine::Postgres => postgres,
        };
        if text.contains(word) {
            text = text.replace(word, meaning);
        }
    }
    // Words of constants, and places of values, were put into a text of this program.
    AssertSqlSafe(text).into_sql_str()
}

/// A statement that is put together at run time, of texts of this program and of values.
pub(in crate::store) struct Builder {
    sql: String,
    values: Vec<Value>,
    persistent: bool,
}

impl Builder {
    pub(in crate::store) fn new(sql: &'static str) -> Self {
        Self { sql: sql.to_owned(), values: Vec::new(), persistent: true }
    }

    /// A statement with names that the database's own catalogue gave, quoted. Connections do not keep it prepared.
    pub(super) fn named(sql: String) -> Self {
        Self { sql, values: Vec::new(), persistent: false }
    }

    pub(in crate::store) fn push(&mut self, sql: &'static str) -> &mut Self {
        self.sql.push_str(sql);
        self
    }

    pub(in crate::store) fn push_bind(&mut self, value: impl Into<Value>) -> &mut Self {
        self.values.push(value.into());
        self.sql.push(HOLE);
        self
    }

    /// `VALUES (…), (…)`, one pair of brackets for each item. Such a statement is not kept prepared: the next has another
    /// number of items.
    pub(in crate::store) fn push_values<T>(
        &mut self,
        items: impl IntoIterator<Item = T>,
        mut row: impl FnMut(&mut Tuple<'_>, T),
    ) -> &mut Self {
        self.persistent = false;
        self.sql.push_str("VALUES ");
        for (i, item) in items.into_iter().enumerate() {
            self.sql.push_str(if i == 0 { "(" } else { ", (" });
            row(&mut Tuple { builder: self, first: true }, item);
            self.sql.push(')');
        }
        self
    }

    /// `($1, $2, …)`, for `IN`. The list must not be empty.
    pub(in crate::store) fn push_list(
        &mut self,
        items: impl IntoIterator<Item = impl Into<Value>>,
    ) -> &mut Self {
        self.persistent = false;
        self.sql.push('(');
        for (i, item) in items.into_iter().enumerate() {
            if i > 0 {
                self.sql.push_str(", ");
            }
            self.push_bind(item);
        }
        self.sql.push(')');
        self
    }

    pub(in crate::store) fn build(self) -> Query {
        let sql = AssertSqlSafe(self.sql).into_sql_str();
        Query { sql, values: self.values, persistent: self.persistent }
    }
}

/// The values of one row.
pub(in crate::store) struct Tuple<'a> {
    builder: &'a mut Builder,
    first: bool,
}

impl Tuple<'_> {
    pub(in crate::store) fn push_bind(&mut self, value: impl Into<Value>) -> &mut Self {
        if !std::mem::take(&mut self.first) {
            self.builder.sql.push_str(", ");
        }
        self.builder.push_bind(value);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_numbered_and_words_spelt() {
        let mut builder = Builder::new("INSERT INTO t (a, b) ");
        builder.push_values([1_i64, 2], |row, n| {
            row.push_bind(n).push_bind("x");
        });
        builder.push(" RETURNING ").push_bind(true);
        let query = builder.build();
        assert_eq!(query.values.len(), 5);
        let text = |sql: &SqlStr, engine| spell(sql.clone(), engine).as_str().trim().to_owned();
        let [sqlite, postgres] = [Engine::Sqlite, Engine::Postgres].map(|engine| text(&query.sql, engine));
        assert_eq!(sqlite, "INSERT INTO t (a, b) VALUES (?, ?), (?, ?) RETURNING ?");
        assert_eq!(postgres, "INSERT INTO t (a, b) VALUES ($1, $2), ($3, $4) RETURNING $5");
        let locked = SqlStr::from_static("SELECT 1 {lock}");
        assert_eq!(text(&locked, Engine::Sqlite), "SELECT 1");
        assert_eq!(text(&locked, Engine::Postgres), "SELECT 1 FOR UPDATE");
    }
}
