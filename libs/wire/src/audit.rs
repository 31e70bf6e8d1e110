//! The chain over the audit trail: each link covers some rows and the link before it; a checkpoint is how far the chain reached,
//! signed, and kept by appliances. Whoever changes a row has to change every link after it, and every appliance's memory.

use aws_lc_rs::digest::{Context, SHA256};
use data_encoding::BASE64;
use horizon_model::PublicKey;
use prost::Message;

use crate::{
    envelope::{self, EnvelopeError},
    key::SigningKey,
    proto,
};

/// A SHA-256.
pub type Hash = [u8; 32];

/// How many bytes of each row's hash a link keeps, to tell which row it was.
pub const MARK: usize = 8;

/// One row of the audit trail, as it is hashed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Its number.
    pub id: i64,
    /// When, in milliseconds since the Unix epoch.
    pub time: i64,
    /// Its texts in a fixed order; `None` where there is none.
    pub texts: Vec<Option<String>>,
}

impl Row {
    /// The hash of the row. No two rows that differ have the same bytes under it.
    pub fn hash(&self) -> Hash {
        let mut hash = Context::new(&SHA256);
        hash.update(b"horizon audit row v1\0");
        hash.update(&self.id.to_be_bytes());
        hash.update(&self.time.to_be_bytes());
        for text in &self.texts {
            match text {
                None => hash.update(&[0]),
                Some(text) => {
                    hash.update(&[1]);
                    hash.update(&(text.len() as u64).to_be_bytes());
                    hash.update(text.as_bytes());
                }
            }
        }
        finish(hash)
    }
}

/// What a link says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Its number, 1 or above.
    pub number: u64,
    /// The digest of the link before it; zeros for the first.
    pub previous: Hash,
    /// The numbers of the rows that it covers, as ranges with both ends.
    pub ranges: Vec<(i64, i64)>,
    /// The hash over the hashes of those rows, in their order.
    pub rows: Hash,
    /// The first bytes of each of them.
    pub marks: Vec<u8>,
    /// The month that all of them are of: their times, divided by the length of a partition.
    pub month: i64,
    /// Rows of months before this one were let go, as their time was over; 0 when none were.
    pub dropped: i64,
    /// When it was made, in milliseconds since the Unix epoch.
    pub time: i64,
}

impl Link {
    /// A link over rows, which come in the order of their numbers.
    pub fn over(number: u64, previous: Hash, month: i64, time: i64, rows: &[Row]) -> Self {
        let mut ranges: Vec<(i64, i64)> = Vec::new();
        let mut marks = Vec::with_capacity(rows.len() * MARK);
        let mut hash = Context::new(&SHA256);
        for row in rows {
            match ranges.last_mut() {
                Some((_, last)) if *last + 1 == row.id => *last = row.id,
                _ => ranges.push((row.id, row.id)),
            }
            let of_row = row.hash();
            hash.update(&of_row);
            marks.extend_from_slice(&of_row[..MARK]);
        }
        Self { number, previous, ranges, rows: finish(hash), marks, month, dropped: 0, time }
    }

    /// The digest of the link, which the next one carries.
    pub fn digest(&self) -> Hash {
        let mut hash = Context::new(&SHA256);
        hash.update(b"horizon audit link v1\0");
        hash.update(&self.number.to_be_bytes());
        hash.update(&self.previous);
        hash.update(&(self.ranges.len() as u64).to_be_bytes());
        for (first, last) in &self.ranges {
            hash.update(&first.to_be_bytes());
            hash.update(&last.to_be_bytes());
        }
        hash.update(&self.rows);
        hash.update(&(self.marks.len() as u64).to_be_bytes());
        hash.update(&self.marks);
        for number in [self.month, self.dropped, self.time] {
            hash.update(&number.to_be_bytes());
        }
        finish(hash)
    }

    /// How many rows it covers.
    pub fn count(&self) -> u64 {
        self.ids().count() as u64
    }

    /// The numbers of its rows.
    pub fn ids(&self) -> impl Iterator<Item = i64> + '_ {
        self.ranges.iter().flat_map(|(first, last)| *first..=*last)
    }

    /// What differs between the rows that the link covers and those that are there, which come in the order of their numbers.
    pub fn compare(&self, found: &[Row]) -> Vec<Difference> {
        let mut differences = Vec::new();
        let mut found = found.iter().peekable();
        let mut hash = Context::new(&SHA256);
        for (index, id) in self.ids().enumerate() {
            while let Some(row) = found.next_if(|row| row.id < id) {
                differences.push(Difference::Inserted(row.id));
            }
            match found.next_if(|row| row.id == id) {
                None => differences.push(Difference::Missing(id)),
                Some(row) => {
                    let of_row = row.hash();
                    hash.update(&of_row);
                    if self.marks.get(index * MARK..(index + 1) * MARK) != Some(&of_row[..MARK]) {
                        differences.push(Difference::Changed(id));
                    }
                }
            }
        }
        differences.extend(found.map(|row| Difference::Inserted(row.id)));
        // The marks are short; the whole hash has the last word.
        if differences.is_empty() && finish(hash) != self.rows {
            differences.push(Difference::Changed(self.ranges.first().map_or(0, |(first, _)| *first)));
        }
        differences
    }
}

/// A row that is not as its link says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Difference {
    /// It says something else.
    Changed(i64),
    /// It is not there.
    Missing(i64),
    /// It was not there.
    Inserted(i64),
}

/// A checkpoint, signed.
pub fn checkpoint(state_key: &SigningKey, content: &proto::AuditCheckpoint) -> proto::Envelope {
    envelope::seal(envelope::Context::Audit, state_key, content.encode_to_vec())
}

/// What a checkpoint says, if one of the keys that `trusted` accepts signed it.
///
/// # Errors
/// When none did, or it cannot be read.
pub fn open_checkpoint(
    envelope: &proto::Envelope,
    trusted: impl Fn(&PublicKey) -> bool,
) -> Result<proto::AuditCheckpoint, EnvelopeError> {
    let payload = envelope::open(envelope::Context::Audit, envelope, trusted)?;
    let content = proto::AuditCheckpoint::decode(payload).map_err(|_| EnvelopeError::BadSignature)?;
    if content.digest.len() == size_of::<Hash>() { Ok(content) } else { Err(EnvelopeError::BadSignature) }
}

/// A checkpoint as a line of text.
pub fn to_line(checkpoint: &proto::Envelope) -> String {
    BASE64.encode(&checkpoint.encode_to_vec())
}

/// The checkpoint of a line, of which it is the last word.
pub fn from_line(line: &str) -> Option<proto::Envelope> {
    let bytes = BASE64.decode(line.split_whitespace().last()?.as_bytes()).ok()?;
    proto::Envelope::decode(&bytes[..]).ok()
}

fn finish(hash: Context) -> Hash {
    let mut out = [0; 32];
    out.copy_from_slice(hash.finish().as_ref());
    out
}

#[cfg(test)]
mod tests {
    use horizon_model::Secret;
    use proptest::prelude::*;

    use super::*;

    fn row(id: i64, text: &str) -> Row {
        Row { id, time: id * 10, texts: vec![Some(text.into()), None, Some("ana".into())] }
    }

    fn rows() -> Vec<Row> {
        [1, 2, 3, 5, 9, 10].map(|id| row(id, &format!("row {id}"))).to_vec()
    }

    #[test]
    fn a_link_covers_its_rows_and_no_others() {
        let link = Link::over(1, [0; 32], 4, 100, &rows());
        assert_eq!((link.ranges.clone(), link.count()), (vec![(1, 3), (5, 5), (9, 10)], 6));
        assert!(link.compare(&rows()).is_empty());
        let mut edited = rows();
        edited[2].texts[0] = Some("other".into());
        assert_eq!(link.compare(&edited), [Difference::Changed(3)]);
        let mut shorter = rows();
        shorter.remove(4);
        assert_eq!(link.compare(&shorter), [Difference::Missing(9)]);
        let mut longer = rows();
        longer.insert(3, row(4, "new"));
        assert_eq!(link.compare(&longer), [Difference::Inserted(4)]);
        let mut swapped = rows();
        let text = swapped[0].texts.clone();
        swapped[0].texts = std::mem::replace(&mut swapped[1].texts, text);
        assert_eq!(link.compare(&swapped), [Difference::Changed(1), Difference::Changed(2)]);
    }

    #[test]
    fn every_part_of_a_link_is_in_its_digest() {
        let link = Link::over(7, [1; 32], 4, 100, &rows());
        let changes: [fn(&mut Link); 8] = [
            |link| link.number += 1,
            |link| link.previous[0] ^= 1,
            |link| link.ranges[0].1 += 1,
            |link| link.rows[0] ^= 1,
            |link| link.marks[0] ^= 1,
            |link| link.month += 1,
            |link| link.dropped += 1,
            |link| link.time += 1,
        ];
        for (index, change) in changes.iter().enumerate() {
            let mut other = link.clone();
            change(&mut other);
            assert_ne!(other.digest(), link.digest(), "{index}");
        }
    }

    #[test]
    fn checkpoints_are_signed_for_what_they_are() {
        let key = SigningKey::from_seed(Secret::new([1; 32]));
        let content = proto::AuditCheckpoint { link: 3, digest: vec![7; 32], last_row: 9, rows: 8, time: 5 };
        let signed = checkpoint(&key, &content);
        assert_eq!(open_checkpoint(&signed, |k| *k == key.public()), Ok(content.clone()));
        assert_eq!(from_line(&format!("3 seen {}\n", to_line(&signed))), Some(signed.clone()));
        assert!(from_line("").is_none() && from_line("no base64!").is_none());
        assert!(open_checkpoint(&signed, |_| false).is_err());
        let as_state = envelope::seal(envelope::Context::State, &key, content.encode_to_vec());
        assert!(open_checkpoint(&as_state, |_| true).is_err());
        let short = proto::AuditCheckpoint { digest: vec![7; 31], ..content };
        assert!(open_checkpoint(&checkpoint(&key, &short), |_| true).is_err());
    }

    proptest! {
        #[test]
        fn rows_that_differ_have_other_hashes(
            a in prop::collection::vec(prop::option::of("[ab]{0,3}"), 3),
            b in prop::collection::vec(prop::option::of("[ab]{0,3}"), 3),
        ) {
            let row = |texts: &Vec<Option<String>>| Row { id: 1, time: 2, texts: texts.clone() };
            prop_assert_eq!(a == b, row(&a).hash() == row(&b).hash());
        }
    }
}
