//! What is in a backup: records one after the other, each with its kind and its length. First what the backup is, then files,
//! then the tables with their rows, and an end that counts them.

use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use zeroize::Zeroizing;

use crate::store::{Cell, CellKind, Shape};

/// The largest record, in bytes: a row is one at most.
const MAX_RECORD: usize = 64 << 20;
/// How many bytes of rows are gathered before they are written.
const BATCH: usize = 256 * 1024;
/// The most columns of a table.
const MAX_COLUMNS: usize = 256;
/// The most tables.
const MAX_TABLES: usize = 256;

/// Why the records cannot be read.
#[derive(Debug, Error)]
pub enum RecordError {
    /// They are not what this program writes.
    #[error(
        "the backup holds something that this program does not know ({0}): use the program that made it, or a newer one"
    )]
    Unknown(&'static str),
    /// A row or a file is too large.
    #[error("{what} is larger than a backup can hold (64 MiB)")]
    TooLarge {
        /// What.
        what: String,
    },
    /// The file is damaged, or cannot be read.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// What a backup is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// When it was made: what came later is not in it.
    pub made: jiff::Timestamp,
    /// The version of the program that made it.
    pub program: String,
    /// The version of the database's schema.
    pub schema: i64,
    /// The engine of the database: `sqlite` or `postgres`.
    pub engine: String,
    /// The organisation's root, which tokens and personal keys pin.
    pub root: String,
    /// The newest KeySet.
    pub keyset: u64,
    /// Where resources are declared: `files` or `kubernetes`.
    pub source: String,
}

/// Where a file belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Section {
    /// The file of settings.
    Settings,
    /// Among the declared resources.
    Resources,
    /// Among the organisation's keys.
    Keys,
}

/// The end of a backup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Totals {
    /// How many files there are.
    pub files: u64,
    /// How many tables.
    pub tables: u64,
    /// How many rows.
    pub rows: u64,
}

/// A part of a backup.
#[derive(Debug)]
pub enum Part {
    /// What the backup is; comes first.
    Manifest(Manifest),
    /// A file.
    File {
        /// Where it belongs.
        section: Section,
        /// Its path there.
        path: String,
        /// Its content.
        content: Zeroizing<Vec<u8>>,
    },
    /// The rows that follow are of this table.
    Table(Shape),
    /// Some rows of the last table.
    Rows(Vec<Vec<Cell>>),
    /// Nothing follows.
    End(Totals),
}

const MANIFEST: u8 = 1;
const FILE: u8 = 2;
const TABLE: u8 = 3;
const ROWS: u8 = 4;
const END: u8 = 5;

#[derive(Serialize, Deserialize)]
struct FileName {
    section: Section,
    path: String,
}

/// Writes records.
pub struct Writer<W> {
    out: W,
    batch: Zeroizing<Vec<u8>>,
    totals: Totals,
}

impl<W: Write> Writer<W> {
    /// Begins with what the backup is.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn new(out: W, manifest: &Manifest) -> Result<Self, RecordError> {
        let mut writer = Self { out, batch: Zeroizing::default(), totals: Totals::default() };
        writer.put(MANIFEST, &json(manifest)?)?;
        Ok(writer)
    }

    fn put(&mut self, kind: u8, content: &[u8]) -> io::Result<()> {
        let length = u32::try_from(content.len()).unwrap_or(u32::MAX);
        self.out.write_all(&[kind])?;
        self.out.write_all(&length.to_be_bytes())?;
        self.out.write_all(content)
    }

    /// Writes a file.
    ///
    /// # Errors
    /// When it cannot be written, or is too large.
    pub fn file(&mut self, section: Section, path: &str, content: &[u8]) -> Result<(), RecordError> {
        let name = json(&FileName { section, path: path.to_owned() })?;
        let mut record = Zeroizing::new(Vec::with_capacity(4 + name.len() + content.len()));
        string(&mut record, &name);
        record.extend_from_slice(content);
        if record.len() > MAX_RECORD {
            return Err(RecordError::TooLarge { what: path.to_owned() });
        }
        self.totals.files += 1;
        Ok(self.put(FILE, &record)?)
    }

    /// Says which table the rows that follow are of.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn table(&mut self, shape: &Shape) -> Result<(), RecordError> {
        self.flush()?;
        self.totals.tables += 1;
        Ok(self.put(TABLE, &json(shape)?)?)
    }

    /// Writes a row of the last table.
    ///
    /// # Errors
    /// When it cannot be written, or is too large.
    pub fn row(&mut self, cells: &[Cell]) -> Result<(), RecordError> {
        let before = self.batch.len();
        for cell in cells {
            write_cell(&mut self.batch, cell);
        }
        if self.batch.len() - before > MAX_RECORD - BATCH {
            return Err(RecordError::TooLarge { what: "a row of the database".into() });
        }
        self.totals.rows += 1;
        if self.batch.len() >= BATCH { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), RecordError> {
        if !self.batch.is_empty() {
            let batch = std::mem::take(&mut self.batch);
            self.put(ROWS, &batch)?;
        }
        Ok(())
    }

    /// How many rows were written so far.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// Writes the end.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn finish(mut self) -> Result<(W, Totals), RecordError> {
        self.flush()?;
        self.put(END, &json(&self.totals)?)?;
        Ok((self.out, self.totals))
    }
}

fn json(value: &impl Serialize) -> Result<Vec<u8>, RecordError> {
    Ok(serde_json::to_vec(value).map_err(io::Error::from)?)
}

fn string(out: &mut Vec<u8>, text: &[u8]) {
    // No text is longer than a record, which is checked as a whole.
    out.extend_from_slice(&u32::try_from(text.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.extend_from_slice(text);
}

fn write_cell(out: &mut Vec<u8>, cell: &Cell) {
    match cell {
        Cell::Null => out.push(0),
        Cell::Int(value) => {
            out.push(1);
            out.extend_from_slice(&value.to_be_bytes());
        }
        Cell::Text(text) => {
            out.push(2);
            string(out, text.as_bytes());
        }
        Cell::Bytes(bytes) => {
            out.push(3);
            string(out, bytes);
        }
        Cell::Flag(value) => out.push(4 + u8::from(*value)),
    }
}

/// Takes from the front of a record.
struct Taker<'a>(&'a [u8]);

impl<'a> Taker<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn string(&mut self) -> Option<&'a [u8]> {
        let length = self.take(4)?.try_into().map(u32::from_be_bytes).ok()?;
        self.take(usize::try_from(length).ok()?)
    }

    fn cell(&mut self, kind: CellKind) -> Option<Cell> {
        let [tag] = self.take(1)? else { return None };
        Some(match (tag, kind) {
            (0, _) => Cell::Null,
            (1, CellKind::Int) => Cell::Int(self.take(8)?.try_into().map(i64::from_be_bytes).ok()?),
            (2, CellKind::Text) => Cell::Text(std::str::from_utf8(self.string()?).ok()?.to_owned()),
            (3, CellKind::Bytes) => Cell::Bytes(self.string()?.to_vec()),
            (4 | 5, CellKind::Flag) => Cell::Flag(*tag == 5),
            _ => return None,
        })
    }
}

/// Reads records, one at a time.
pub struct Reader<R> {
    input: R,
    shape: Option<Shape>,
    totals: Totals,
    begun: bool,
}

impl<R: Read> Reader<R> {
    /// Reads from the start of a stream.
    pub fn new(input: R) -> Self {
        Self { input, shape: None, totals: Totals::default(), begun: false }
    }

    /// The next part. After the end nothing may follow, which is looked for.
    ///
    /// # Errors
    /// When the stream is damaged, or holds what this program does not know.
    pub fn part(&mut self) -> Result<Part, RecordError> {
        let mut head = [0; 5];
        self.input.read_exact(&mut head).map_err(ended)?;
        let [kind, length @ ..] = head;
        let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        if length > MAX_RECORD {
            return Err(RecordError::Unknown("a record that is too large"));
        }
        // It grows with what is really there, not with what is announced.
        let mut content = Zeroizing::new(Vec::new());
        self.input.by_ref().take(length as u64).read_to_end(&mut content)?;
        if content.len() < length {
            return Err(ended(io::ErrorKind::UnexpectedEof.into()));
        }
        if (kind == MANIFEST) == self.begun {
            return Err(RecordError::Unknown("records in another order"));
        }
        self.begun = true;
        match kind {
            MANIFEST => Ok(Part::Manifest(parse(&content, "another manifest")?)),
            FILE => self.file(&content),
            TABLE => {
                let shape: Shape = parse(&content, "another table")?;
                self.totals.tables += 1;
                if shape.columns.is_empty()
                    || shape.columns.len() > MAX_COLUMNS
                    || self.totals.tables > MAX_TABLES as u64
                {
                    return Err(RecordError::Unknown("more tables or columns than there can be"));
                }
                self.shape = Some(shape.clone());
                Ok(Part::Table(shape))
            }
            ROWS => self.rows(&content),
            END => self.end(&content),
            _ => Err(RecordError::Unknown("a record of another kind")),
        }
    }

    fn file(&mut self, content: &[u8]) -> Result<Part, RecordError> {
        let mut taker = Taker(content);
        let name = taker.string().ok_or(RecordError::Unknown("a file without a name"))?;
        let FileName { section, path } = parse(name, "a file of another kind")?;
        self.totals.files += 1;
        Ok(Part::File { section, path, content: Zeroizing::new(taker.0.to_vec()) })
    }

    fn rows(&mut self, content: &[u8]) -> Result<Part, RecordError> {
        let shape = self.shape.as_ref().ok_or(RecordError::Unknown("rows without a table"))?;
        let mut taker = Taker(content);
        let mut rows = Vec::new();
        while !taker.0.is_empty() {
            let cells = shape.columns.iter().map(|column| taker.cell(column.kind));
            let row = cells.collect::<Option<Vec<Cell>>>();
            rows.push(row.ok_or(RecordError::Unknown("a row that is none"))?);
        }
        self.totals.rows += rows.len() as u64;
        Ok(Part::Rows(rows))
    }

    fn end(&mut self, content: &[u8]) -> Result<Part, RecordError> {
        let totals: Totals = parse(content, "another end")?;
        let more = self.input.read(&mut [0])?;
        if totals != self.totals || more > 0 {
            return Err(RecordError::Unknown("another count of what is in it"));
        }
        Ok(Part::End(totals))
    }
}

fn parse<'a, T: Deserialize<'a>>(content: &'a [u8], what: &'static str) -> Result<T, RecordError> {
    serde_json::from_slice(content).map_err(|_| RecordError::Unknown(what))
}

/// A stream whose last chunk was read and whose records go on was not finished by a backup.
fn ended(error: io::Error) -> RecordError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => RecordError::Unknown("no end"),
        _ => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::store::Column;

    fn manifest() -> Manifest {
        Manifest {
            made: jiff::Timestamp::UNIX_EPOCH,
            program: "0.1.0".into(),
            schema: 9,
            engine: "sqlite".into(),
            root: "root".into(),
            keyset: 1,
            source: "files".into(),
        }
    }

    fn shape() -> Shape {
        let column = |name: &str, kind| Column { name: name.into(), kind };
        let columns = vec![
            column("a", CellKind::Int),
            column("b", CellKind::Text),
            column("c", CellKind::Bytes),
            column("d", CellKind::Flag),
        ];
        Shape { table: "t".into(), columns }
    }

    fn rows() -> impl Strategy<Value = Vec<Vec<Cell>>> {
        let or_null = |some: BoxedStrategy<Cell>| prop_oneof![Just(Cell::Null), some];
        let row = (
            or_null(any::<i64>().prop_map(Cell::Int).boxed()),
            or_null(".{0,20}".prop_map(Cell::Text).boxed()),
            or_null(prop::collection::vec(any::<u8>(), 0..20).prop_map(Cell::Bytes).boxed()),
            or_null(any::<bool>().prop_map(Cell::Flag).boxed()),
        );
        prop::collection::vec(row.prop_map(|(a, b, c, d)| vec![a, b, c, d]), 0..50)
    }

    fn written(rows: &[Vec<Cell>]) -> Vec<u8> {
        let mut writer = Writer::new(Vec::new(), &manifest()).unwrap();
        writer.file(Section::Keys, "envelope.key", b"secret").unwrap();
        writer.table(&shape()).unwrap();
        rows.iter().for_each(|row| writer.row(row).unwrap());
        writer.finish().unwrap().0
    }

    fn read(bytes: &[u8]) -> Result<Vec<Vec<Cell>>, RecordError> {
        let mut reader = Reader::new(bytes);
        let mut found = Vec::new();
        loop {
            match reader.part()? {
                Part::Rows(rows) => found.extend(rows),
                Part::End(_) => return Ok(found),
                _ => {}
            }
        }
    }

    proptest! {
        #[test]
        fn rows_read_back(rows in rows()) {
            prop_assert_eq!(read(&written(&rows)).unwrap(), rows);
        }

        /// What opens may still have been made by somebody else: nothing of it breaks the reader.
        #[test]
        fn foreign_records_never_panic(rows in rows(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let mut bytes = written(&rows);
            let at = at.index(bytes.len());
            bytes[at] = byte;
            let _ = read(&bytes);
        }

        #[test]
        fn records_without_their_end_are_refused(rows in rows(), at in any::<prop::sample::Index>()) {
            let bytes = written(&rows);
            prop_assert!(read(&bytes[..at.index(bytes.len())]).is_err());
        }
    }

    #[test]
    fn announced_sizes_reserve_nothing() {
        let mut bytes = written(&[]);
        bytes.truncate(5);
        bytes[1..5].copy_from_slice(&u32::MAX.to_be_bytes());
        assert!(read(&bytes).unwrap_err().to_string().contains("too large"));
        let length = u32::try_from(MAX_RECORD).unwrap().to_be_bytes();
        assert!(read(&[&[MANIFEST][..], &length].concat()).unwrap_err().to_string().contains("no end"));
    }

    #[test]
    fn nothing_follows_the_end() {
        let twice = [written(&[]), written(&[])].concat();
        assert!(read(&twice).is_err());
    }
}
