//! Where an address is, as a database file in MaxMind's format says (<https://maxmind.github.io/MaxMind-DB/>). What it does
//! not know is unknown, and never guessed.

#[cfg(test)]
pub(crate) mod mmdb;
mod place;
mod watch;

pub use place::Place;

use std::{
    fmt,
    fs::{self, File},
    io::Read as _,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::SystemTime,
};

use maxminddb::Reader;
use thiserror::Error;

/// The largest database file, in bytes.
const MAX_BYTES: u64 = 1 << 30;

/// Why a database of places cannot be used.
#[derive(Debug, Error)]
pub enum GeoError {
    /// It cannot be read.
    #[error("the database of places {} cannot be read: {error}; set geoip_database to a file in MaxMind's format (.mmdb)", .path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// It is too large.
    #[error("the database of places {} is larger than 1 GiB", .0.display())]
    TooLarge(PathBuf),
    /// It is something else.
    #[error("{} is no database of places in MaxMind's format: {why}", .path.display())]
    Invalid {
        /// Which.
        path: PathBuf,
        /// Why.
        why: String,
    },
}

type Database = Reader<Vec<u8>>;

/// What tells one version of a file from another.
type Stamp = Option<(SystemTime, u64)>;

/// Looks addresses up. A clone is the same; the default one knows nothing.
#[derive(Clone, Default)]
pub struct Geo(Option<Arc<Files>>);

struct Files {
    paths: Vec<PathBuf>,
    stamps: Mutex<Vec<Stamp>>,
    databases: RwLock<Arc<[Database]>>,
}

impl fmt::Debug for Geo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().flat_map(|files| &files.paths)).finish()
    }
}

impl Geo {
    /// Reads database files, which are asked in this order: what one does not say the next may. No files know nothing.
    ///
    /// # Errors
    /// The first that cannot be used.
    pub fn open(paths: Vec<PathBuf>) -> Result<Self, GeoError> {
        if paths.is_empty() {
            return Ok(Self::default());
        }
        let stamps = paths.iter().map(|path| stamp(path)).collect();
        let databases = read_all(&paths)?;
        Ok(Self(Some(Arc::new(Files {
            paths,
            stamps: Mutex::new(stamps),
            databases: RwLock::new(databases),
        }))))
    }

    /// Where an address is; `None` when nothing is known of it.
    pub fn lookup(&self, address: IpAddr) -> Option<Place> {
        let files = self.0.as_ref()?;
        // It is replaced in one step, so it is whole whatever thread panics.
        let databases = files.databases.read().unwrap_or_else(PoisonError::into_inner).clone();
        let address = address.to_canonical();
        let mut place = Place::default();
        for database in databases.iter() {
            // An entry that cannot be read is as good as none.
            let Ok(found) = database.lookup(address) else { continue };
            if let Ok(Some(record)) = found.decode::<place::Record>() {
                place.fill(record);
            }
        }
        (place != Place::default()).then_some(place)
    }

    /// Reads the files again if one of them changed. Whether it did. While one cannot be used, what was read before stays.
    ///
    /// # Errors
    /// Why a changed file cannot be used.
    pub fn refresh(&self) -> Result<bool, GeoError> {
        let Some(files) = &self.0 else { return Ok(false) };
        let stamps: Vec<_> = files.paths.iter().map(|path| stamp(path)).collect();
        {
            let mut known = files.stamps.lock().unwrap_or_else(PoisonError::into_inner);
            if *known == stamps {
                return Ok(false);
            }
            *known = stamps;
        }
        let databases = read_all(&files.paths)?;
        *files.databases.write().unwrap_or_else(PoisonError::into_inner) = databases;
        Ok(true)
    }
}

fn stamp(path: &Path) -> Stamp {
    let meta = fs::metadata(path).ok()?;
    Some((meta.modified().ok()?, meta.len()))
}

fn read_all(paths: &[PathBuf]) -> Result<Arc<[Database]>, GeoError> {
    paths.iter().map(|path| read(path)).collect()
}

fn read(path: &Path) -> Result<Database, GeoError> {
    let unreadable = |error| GeoError::Unreadable { path: path.to_owned(), error };
    let mut bytes = Vec::new();
    File::open(path).map_err(unreadable)?.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(GeoError::TooLarge(path.to_owned()));
    }
    Reader::from_source(bytes)
        .map_err(|error| GeoError::Invalid { path: path.to_owned(), why: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::{mmdb::Entry, *};

    fn berlin() -> Entry {
        Entry { country: Some("DE"), city: Some("Berlin"), position: Some((52.5, 13.4)), asn: None }
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn addresses_are_looked_up_in_all_files() {
        let dir = tempfile::tempdir().unwrap();
        let (cities, providers) = (dir.path().join("c.mmdb"), dir.path().join("a.mmdb"));
        let asn = Entry { asn: Some((64500, "Example")), ..Entry::default() };
        fs::write(&cities, mmdb::write(&[("192.0.2.0/24", berlin()), ("2001:db8::/32", berlin())])).unwrap();
        fs::write(&providers, mmdb::write(&[("192.0.2.0/25", asn)])).unwrap();
        let geo = Geo::open(vec![cities, providers]).unwrap();
        let place = geo.lookup(address("192.0.2.7")).unwrap();
        assert_eq!((place.country.as_deref(), place.city.as_deref()), (Some("DE"), Some("Berlin")));
        assert_eq!((place.lat, place.lon, place.asn), (Some(52.5), Some(13.4), Some(64500)));
        assert_eq!(geo.lookup(address("192.0.2.200")).unwrap().asn, None);
        assert_eq!(geo.lookup(address("::ffff:192.0.2.7")), Some(place));
        assert_eq!(geo.lookup(address("2001:db8::1")).unwrap().country.as_deref(), Some("DE"));
        assert_eq!(geo.lookup(address("198.51.100.1")), None, "never a guess");
        assert_eq!(Geo::default().lookup(address("192.0.2.7")), None);
    }

    #[test]
    fn a_changed_file_is_read_again_and_a_wrong_one_is_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("geo.mmdb");
        assert!(matches!(Geo::open(vec![path.clone()]), Err(GeoError::Unreadable { .. })));
        fs::write(&path, b"no database").unwrap();
        assert!(matches!(Geo::open(vec![path.clone()]), Err(GeoError::Invalid { .. })));
        fs::write(&path, mmdb::write(&[("192.0.2.0/24", berlin())])).unwrap();
        let geo = Geo::open(vec![path.clone()]).unwrap();
        assert!(!geo.refresh().unwrap());
        fs::write(&path, b"cut").unwrap();
        assert!(geo.refresh().is_err());
        assert!(geo.lookup(address("192.0.2.7")).is_some(), "the last good one holds");
        assert!(!geo.refresh().unwrap(), "it is said once");
        let paris = Entry { country: Some("FR"), city: Some("Paris"), ..Entry::default() };
        fs::write(&path, mmdb::write(&[("192.0.2.0/24", paris)])).unwrap();
        assert!(geo.refresh().unwrap());
        assert_eq!(geo.lookup(address("192.0.2.7")).unwrap().city.as_deref(), Some("Paris"));
    }

    #[test]
    fn a_damaged_file_never_does_harm() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("geo.mmdb");
        let whole = mmdb::write(&[("192.0.2.0/24", berlin()), ("198.51.100.0/24", berlin())]);
        for at in 0..whole.len() {
            for bit in [0x01, 0x80] {
                let mut damaged = whole.clone();
                damaged[at] ^= bit;
                fs::write(&path, damaged).unwrap();
                if let Ok(geo) = Geo::open(vec![path.clone()]) {
                    let _ = geo.lookup(address("192.0.2.7"));
                    let _ = geo.lookup(address("198.51.100.7"));
                }
            }
        }
    }
}
