use std::os::unix::fs::PermissionsExt;

use horizon_model::{ApplianceState, EntryBody, EntryId, SettingsEntry};
use horizon_wire::state::Entries;
use uuid::Uuid;

use super::*;

fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("state")).unwrap();
    (dir, store)
}

fn numbered(generation: u64) -> Numbered {
    let settings = EntryBody::Settings(SettingsEntry { heartbeat_seconds: 5 });
    let state = ApplianceState { entries: [(EntryId::settings(), settings)].into() };
    Numbered { epoch: 1, generation, entries: Entries::encode(&state) }
}

#[test]
fn the_key_is_made_once_and_for_its_owner_only() {
    let (_dir, store) = store();
    assert!(store.key().unwrap().is_none());
    let made = store.key_or(Secret::new([1; 32])).unwrap();
    let again = store.key_or(Secret::new([2; 32])).unwrap();
    assert_eq!(made.public(), again.public());
    for entry in fs::read_dir(store.dir()).unwrap() {
        assert_eq!(entry.unwrap().metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }
    assert_eq!(fs::metadata(store.dir()).unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn a_state_returns_and_a_damaged_one_is_noticed() {
    let (_dir, store) = store();
    let server = ServerId(Uuid::from_u128(1));
    assert_eq!(store.state(server).unwrap(), Numbered::default());
    store.set_state(server, &numbered(4)).unwrap();
    store.set_state(server, &numbered(5)).unwrap();
    assert_eq!(store.state(server).unwrap(), numbered(5));
    // Another server's state is none.
    assert!(store.state(ServerId(Uuid::from_u128(2))).is_err());
    let path = store.dir().join(STATE);
    let mut bytes = fs::read(&path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&path, bytes).unwrap();
    let error = store.state(server).unwrap_err();
    assert!(error.to_string().contains("is damaged"), "{error}");
    store.set_state_aside().unwrap();
    assert_eq!(store.state(server).unwrap(), Numbered::default());
}

#[test]
fn a_crash_while_writing_leaves_the_old_file() {
    let (_dir, store) = store();
    let server = ServerId(Uuid::from_u128(1));
    store.set_state(server, &numbered(4)).unwrap();
    let left = store.dir().join("state.new");
    fs::write(&left, b"half").unwrap();
    fs::set_permissions(&left, fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(store.state(server).unwrap(), numbered(4));
    store.set_state(server, &numbered(5)).unwrap();
    assert_eq!(store.state(server).unwrap(), numbered(5));
    let mode = fs::metadata(store.dir().join(STATE)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "what was left does not decide who may read");
}

#[test]
fn secrets_return_with_and_without_a_previous_one() {
    let (_dir, store) = store();
    assert!(store.secrets().unwrap().is_none());
    let bytes = |s: &Secrets| (*s.current.expose(), s.previous.as_ref().map(|p| *p.expose()));
    for previous in [None, Some(Secret::new([2; 32]))] {
        let secrets = Secrets { current: Secret::new([1; 32]), previous };
        store.set_secrets(&secrets).unwrap();
        assert_eq!(bytes(&store.secrets().unwrap().unwrap()), bytes(&secrets));
    }
    fs::write(store.dir().join(SECRETS), [0; 33]).unwrap();
    assert!(store.secrets().is_err());
}

#[test]
fn one_process_at_a_time_and_no_others_hands() {
    let (_dir, store) = store();
    let lock = store.lock().unwrap();
    assert!(matches!(store.lock(), Err(StoreError::Busy(_))));
    drop(lock);
    store.lock().unwrap();
    fs::set_permissions(store.dir(), fs::Permissions::from_mode(0o777)).unwrap();
    assert!(matches!(Store::open(store.dir()), Err(StoreError::Exposed(_))));
    // A directory of the system's is root's; of a test that root runs, another's.
    if rustix::process::geteuid().is_root() {
        fs::set_permissions(store.dir(), fs::Permissions::from_mode(0o700)).unwrap();
        if std::os::unix::fs::chown(store.dir(), Some(65_534), None).is_ok() {
            assert!(matches!(Store::open(store.dir()), Err(StoreError::Foreign { owner: 65_534, .. })));
        }
    } else {
        assert!(matches!(Store::existing(Path::new("/usr")), Err(StoreError::Foreign { owner: 0, .. })));
    }
}

#[test]
fn originals_last_until_they_are_put_back() {
    let (_dir, store) = store();
    assert_eq!(store.originals().unwrap(), None);
    let settings = [("net/ipv4/ip_forward".to_owned(), "0".to_owned())].into();
    let originals = Originals { boot_id: "b".into(), settings };
    store.set_originals(&originals).unwrap();
    assert_eq!(store.originals().unwrap(), Some(originals));
    store.set_originals(&Originals::default()).unwrap();
    assert_eq!(store.originals().unwrap(), None);
}
