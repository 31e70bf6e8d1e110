//! A stream of sealed chunks (the STREAM construction of Hoang, Reyhanitabar, Rogaway and Vizár, 2015, as `age` uses it): each
//! chunk is sealed with AES-256-GCM under a nonce of its number and of whether it is the last. So a chunk that was changed,
//! moved, left out or repeated does not open, and a stream that was cut has no last chunk. The key is used for one stream alone.

use std::io::{self, Read, Write};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use thiserror::Error;
use zeroize::Zeroizing;

/// Bytes of a chunk before it is sealed; only the last may have fewer.
pub(super) const CHUNK: usize = 64 * 1024;
/// By how much sealing makes a chunk longer.
pub(super) const TAG: usize = 16;

/// Why a stream does not open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Broken {
    /// A chunk is not what was written; they are counted from 1.
    #[error("its chunk {0} is not what was written there: the file is damaged, was cut short or was altered")]
    Altered(u64),
    /// The end is missing.
    #[error("it ends after chunk {0}, which is not its last: the rest of the file is missing")]
    Cut(u64),
}

impl From<Broken> for io::Error {
    fn from(broken: Broken) -> Self {
        Self::new(io::ErrorKind::InvalidData, broken)
    }
}

/// The key of one stream.
pub struct StreamKey(LessSafeKey);

impl StreamKey {
    /// A key that seals no other stream.
    pub fn new(key: &[u8; 32]) -> Self {
        let key = UnboundKey::new(&AES_256_GCM, key).expect("an AES-256 key has 32 bytes");
        Self(LessSafeKey::new(key))
    }

    pub(super) fn seal(&self, number: u64, last: bool, chunk: &mut Vec<u8>) {
        // Sealing fails only for texts of many gibibytes.
        let sealed = self.0.seal_in_place_append_tag(nonce(number, last), Aad::empty(), chunk);
        sealed.expect("a chunk can be sealed");
    }

    pub(super) fn open<'a>(&self, number: u64, last: bool, chunk: &'a mut [u8]) -> Option<&'a mut [u8]> {
        self.0.open_in_place(nonce(number, last), Aad::empty(), chunk).ok()
    }
}

fn nonce(number: u64, last: bool) -> Nonce {
    let mut nonce = [0; NONCE_LEN];
    nonce[3..11].copy_from_slice(&number.to_be_bytes());
    nonce[11] = u8::from(last);
    Nonce::assume_unique_for_key(nonce)
}

/// Seals what is written to it. Without [`Sealing::finish`] the stream is one that was cut.
pub struct Sealing<W> {
    out: W,
    key: StreamKey,
    number: u64,
    chunk: Zeroizing<Vec<u8>>,
}

impl<W: Write> Sealing<W> {
    /// A stream that begins here.
    pub fn new(out: W, key: StreamKey) -> Self {
        Self { out, key, number: 0, chunk: Zeroizing::new(Vec::with_capacity(CHUNK + TAG)) }
    }

    /// Writes the last chunk.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn finish(mut self) -> io::Result<W> {
        self.put(true)?;
        Ok(self.out)
    }

    fn put(&mut self, last: bool) -> io::Result<()> {
        // The text is overwritten in its place by what it is sealed to.
        self.key.seal(self.number, last, &mut self.chunk);
        self.out.write_all(&self.chunk)?;
        self.chunk.clear();
        self.number += 1;
        Ok(())
    }
}

impl<W: Write> Write for Sealing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.chunk.len() == CHUNK {
            self.put(false)?;
        }
        let taken = bytes.len().min(CHUNK - self.chunk.len());
        self.chunk.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Opens what is read from it, a chunk at a time: nothing is given out that was not verified.
pub struct Opening<R> {
    input: R,
    key: StreamKey,
    number: u64,
    /// The chunk after the open one, still sealed.
    ahead: Vec<u8>,
    open: Zeroizing<Vec<u8>>,
    at: usize,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Start,
    Within,
    Last,
}

impl<R: Read> Opening<R> {
    /// A stream that begins here.
    pub fn new(input: R, key: StreamKey) -> Self {
        let (ahead, open) = (Vec::new(), Zeroizing::new(Vec::new()));
        Self { input, key, number: 0, ahead, open, at: 0, state: State::Start }
    }

    fn sealed(&mut self) -> io::Result<Vec<u8>> {
        let mut chunk = Vec::new();
        self.input.by_ref().take((CHUNK + TAG) as u64).read_to_end(&mut chunk)?;
        Ok(chunk)
    }

    fn next(&mut self) -> io::Result<()> {
        if self.state == State::Start {
            self.ahead = self.sealed()?;
        }
        let mut chunk = Zeroizing::new(std::mem::take(&mut self.ahead));
        self.ahead = if chunk.len() == CHUNK + TAG { self.sealed()? } else { Vec::new() };
        if chunk.is_empty() {
            return Err(Broken::Cut(self.number).into());
        }
        let last = self.ahead.is_empty();
        // What does not open is wiped, so the copy by which a cut is told from an altered chunk is made before.
        let copy = last.then(|| chunk.clone());
        match self.key.open(self.number, last, &mut chunk).map(|open| open.len()) {
            Some(length) => chunk.truncate(length),
            None => {
                let whole =
                    copy.is_some_and(|mut copy| self.key.open(self.number, false, &mut copy).is_some());
                let number = self.number + 1;
                let broken = if whole { Broken::Cut(number) } else { Broken::Altered(number) };
                return Err(broken.into());
            }
        }
        (self.open, self.at) = (chunk, 0);
        self.state = if last { State::Last } else { State::Within };
        self.number += 1;
        Ok(())
    }
}

impl<R: Read> Read for Opening<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.at == self.open.len() && self.state != State::Last {
            self.next()?;
        }
        let taken = into.len().min(self.open.len() - self.at);
        into[..taken].copy_from_slice(&self.open[self.at..self.at + taken]);
        self.at += taken;
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key() -> StreamKey {
        StreamKey::new(&[7; 32])
    }

    fn sealed(text: &[u8]) -> Vec<u8> {
        let mut stream = Sealing::new(Vec::new(), key());
        stream.write_all(text).unwrap();
        stream.finish().unwrap()
    }

    fn opened(stream: &[u8]) -> Result<Vec<u8>, Broken> {
        let mut text = Vec::new();
        match Opening::new(stream, key()).read_to_end(&mut text) {
            Ok(_) => Ok(text),
            Err(error) => Err(*error.get_ref().unwrap().downcast_ref().unwrap()),
        }
    }

    fn text(length: usize) -> Vec<u8> {
        (0..length).map(|n| (n / 7) as u8).collect()
    }

    #[test]
    fn what_was_written_is_read_whatever_its_length() {
        for length in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 3 * CHUNK + 5] {
            assert_eq!(opened(&sealed(&text(length))).unwrap(), text(length), "{length}");
        }
        assert_eq!(sealed(&text(CHUNK)).len(), CHUNK + TAG, "no empty chunk follows a full one");
    }

    #[test]
    fn chunks_that_are_swapped_repeated_left_out_or_cut_off_show() {
        let whole = sealed(&text(3 * CHUNK + 5));
        let chunks: Vec<&[u8]> = whole.chunks(CHUNK + TAG).collect();
        let [a, b, c, d] = chunks[..] else { panic!("four chunks") };
        assert_eq!(opened(&[b, a, c, d].concat()), Err(Broken::Altered(1)));
        assert_eq!(opened(&[a, c, b, d].concat()), Err(Broken::Altered(2)));
        assert_eq!(opened(&[a, a, b, c, d].concat()), Err(Broken::Altered(2)));
        assert_eq!(opened(&[a, b, d].concat()), Err(Broken::Altered(3)));
        assert_eq!(opened(&[a, b, c].concat()), Err(Broken::Cut(3)));
        assert_eq!(opened(&[a, b, c, d, d].concat()), Err(Broken::Altered(4)));
        assert_eq!(opened(&[]), Err(Broken::Cut(0)));
        let full = sealed(&text(2 * CHUNK));
        assert_eq!(
            opened(&[&full[..], &full[..]].concat()),
            Err(Broken::Altered(2)),
            "nothing follows the last"
        );
        let other = Sealing::new(Vec::new(), StreamKey::new(&[8; 32])).finish().unwrap();
        assert_eq!(opened(&other), Err(Broken::Altered(1)));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_change_shows(length in 0usize..2 * CHUNK + 100, at in any::<prop::sample::Index>(), bit in 0u8..8) {
            let mut stream = sealed(&text(length));
            let at = at.index(stream.len());
            stream[at] ^= 1 << bit;
            prop_assert_eq!(opened(&stream), Err(Broken::Altered((at / (CHUNK + TAG)) as u64 + 1)));
        }

        #[test]
        fn any_cut_shows(length in 0usize..2 * CHUNK + 100, at in any::<prop::sample::Index>()) {
            let stream = sealed(&text(length));
            prop_assert!(opened(&stream[..at.index(stream.len())]).is_err());
        }
    }
}
