use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::Path,
    sync::Arc,
    time::Duration,
};

use tempfile::TempDir;
use tokio::sync::mpsc;

use super::{Changes, Directory, MAX_DEPTH, Source, SourceOptions, read_directory, read_file};

fn user(name: &str) -> String {
    format!("apiVersion = \"horizon.dev/v1alpha1\"\nkind = \"User\"\nmetadata.name = \"{name}\"\n[spec]\n")
}

fn write(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// The changed files, `-` before those that are gone.
fn names(changes: &Changes) -> Vec<String> {
    let name =
        |(path, file): &(Arc<str>, Option<_>)| format!("{}{path}", if file.is_some() { "" } else { "-" });
    let mut names: Vec<_> = changes.files.iter().map(name).collect();
    names.sort();
    names
}

fn problems(changes: &Changes) -> Vec<String> {
    let files = changes.files.iter().filter_map(|(_, file)| file.as_ref()).flat_map(|file| &file.problems);
    changes.problems.iter().chain(files).map(ToString::to_string).collect()
}

#[test]
fn documents_are_found_wherever_they_are() {
    let dir = TempDir::new().unwrap();
    let root = dir.path();
    for path in
        ["a.toml", "sub/b.toml", "sub/deeper/c.toml", "a.toml~", ".git/x.toml", ".a.toml.swp", "README.md"]
    {
        write(root, path, &user("x"));
    }
    let mut directory = Directory::new(root);
    let first = directory.look();
    assert_eq!(names(&first), ["a.toml", "sub/b.toml", "sub/deeper/c.toml"]);
    assert!(first.complete && first.problems.is_empty());
    assert!(names(&directory.look()).is_empty(), "nothing changed");

    write(root, "a.toml", &user("y"));
    write(root, "sub/new.toml", &user("z"));
    assert_eq!(names(&directory.look()), ["a.toml", "sub/new.toml"]);
    // The same bytes again are no change.
    write(root, "a.toml", &user("y"));
    assert!(names(&directory.look()).is_empty());
}

#[test]
fn what_is_missing_once_may_be_on_its_way() {
    let dir = TempDir::new().unwrap();
    write(dir.path(), "a.toml", &user("a"));
    write(dir.path(), "b.toml", &user("b"));
    let mut directory = Directory::new(dir.path());
    directory.look();
    fs::remove_file(dir.path().join("a.toml")).unwrap();
    assert!(names(&directory.look()).is_empty() && directory.is_settling());
    write(dir.path(), "a.toml", &user("c"));
    assert_eq!(names(&directory.look()), ["a.toml"]);
    assert!(!directory.is_settling());
    fs::remove_file(dir.path().join("a.toml")).unwrap();
    directory.look();
    assert_eq!(names(&directory.look()), ["-a.toml"]);
}

#[test]
fn a_directory_that_vanished_takes_nothing_with_it() {
    let dir = TempDir::new().unwrap();
    let root = dir.path().join("resources");
    write(&root, "a.toml", &user("a"));
    let mut directory = Directory::new(&root);
    directory.look();
    fs::rename(&root, dir.path().join("elsewhere")).unwrap();
    for _ in 0..3 {
        let changes = directory.look();
        assert!(!changes.complete && changes.files.is_empty());
        assert!(problems(&changes)[0].contains("it does not exist"), "{:?}", changes.problems);
    }
    fs::rename(dir.path().join("elsewhere"), &root).unwrap();
    let back = directory.look();
    assert!(back.complete && back.files.is_empty());
    fs::remove_dir_all(&root).unwrap();
    fs::write(&root, "").unwrap();
    assert!(problems(&directory.look())[0].contains("not a directory"));
}

#[test]
fn loops_depth_and_strange_files_are_told() {
    let dir = TempDir::new().unwrap();
    let root = dir.path();
    write(root, "sub/a.toml", &user("a"));
    symlink(root, root.join("sub/loop")).unwrap();
    symlink(root.join("sub"), root.join("twice")).unwrap();
    symlink("nowhere.toml", root.join("lost.toml")).unwrap();
    let changes = Directory::new(root).look();
    assert_eq!(names(&changes), ["sub/a.toml"]);
    let told = problems(&changes).join("\n");
    assert!(told.contains("sub/loop: the symbolic link leads back"), "{told}");
    assert!(told.contains("twice: the directory is reached a second time"), "{told}");
    assert!(told.contains("lost.toml: the symbolic link leads nowhere"), "{told}");
    assert!(!changes.complete, "what the lost link led to may come back");

    let deep = (0..=MAX_DEPTH).map(|_| "d").collect::<Vec<_>>().join("/");
    write(root, &format!("{deep}/x.toml"), &user("x"));
    assert!(problems(&Directory::new(root).look()).join("\n").contains("levels deep"));
}

#[test]
fn files_that_are_no_documents_are_told() {
    let dir = TempDir::new().unwrap();
    let root = dir.path();
    fs::write(root.join("big.toml"), vec![b'#'; 50 << 20]).unwrap();
    fs::write(root.join("bytes.toml"), [0xff, 0xfe, 0x00]).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, root.join("pipe.toml"), rustix::fs::FileType::Fifo, 0o600.into(), 0)
        .unwrap();
    let changes = Directory::new(root).look();
    assert_eq!(names(&changes), ["big.toml", "bytes.toml", "pipe.toml"]);
    let told = problems(&changes).join("\n");
    assert!(told.contains("big.toml: the file has 52428800 bytes"), "{told}");
    assert!(told.contains("bytes.toml:1:1: the file is not UTF-8"), "{told}");
    assert!(told.contains("pipe.toml: this is not a regular file"), "{told}");
    assert!(changes.files.iter().all(|(_, file)| !file.as_ref().unwrap().complete));

    let listing = read_directory(root).unwrap();
    assert_eq!((listing.files.len(), listing.problems.len()), (1, 2));
    assert!(read_directory(&root.join("none")).is_err());
    assert_eq!(read_file(&root.join("bytes.toml"), "b").unwrap().files[0].1.len(), 3);
}

/// Does something without the superuser's rights, in a thread of its own.
fn unprivileged<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    const NOBODY: u32 = 65_534;
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            if rustix::process::geteuid().is_root() {
                rustix::thread::set_thread_uid(rustix::process::Uid::from_raw(NOBODY)).unwrap();
            }
            work()
        });
        thread.join().unwrap()
    })
}

#[test]
fn what_may_not_be_read_keeps_what_it_held() {
    let dir = TempDir::new().unwrap();
    write(dir.path(), "closed/a.toml", &user("a"));
    write(dir.path(), "b.toml", &user("b"));
    write(dir.path(), "c.toml", &user("c"));
    let mode = |path: &str, mode| {
        fs::set_permissions(dir.path().join(path), fs::Permissions::from_mode(mode)).unwrap();
    };
    mode("", 0o755);
    mode("closed", 0o000);
    mode("b.toml", 0o000);
    let mut directory = Directory::new(dir.path());
    let changes = unprivileged(|| directory.look());
    let listing = unprivileged(|| read_directory(dir.path()).unwrap());
    mode("closed", 0o755);
    mode("b.toml", 0o644);
    assert!(!changes.complete);
    let told = problems(&changes).join("\n");
    assert!(told.contains("closed: the directory cannot be listed: permission is denied"), "{told}");
    assert!(told.contains("b.toml: the file cannot be read: permission is denied"), "{told}");
    assert_eq!((names(&changes).len(), listing.files.len(), listing.problems.len()), (2, 1, 2));
    // It is tried again, although nothing about the file but its mode changed.
    let changes = unprivileged(|| directory.look());
    assert!(changes.complete && problems(&changes).is_empty());
    assert_eq!(names(&changes), ["b.toml", "closed/a.toml"]);
}

#[test]
fn single_files_are_looked_at_alone() {
    let dir = TempDir::new().unwrap();
    let root = dir.path().canonicalize().unwrap();
    write(&root, "a.toml", &user("a"));
    write(&root, "sub/b.toml", &user("b"));
    let mut directory = Directory::new(&root);
    directory.look();
    let mut at = |paths: &[&str]| {
        let paths: BTreeSet<_> = paths.iter().map(|path| root.join(path)).collect();
        directory.look_at(&paths).map(|changes| names(&changes))
    };
    write(&root, "a.toml", &user("c"));
    assert_eq!(at(&["a.toml", "a.toml~", ".a.toml.swp", "4913"]), Some(vec!["a.toml".into()]));
    assert_eq!(at(&["a.toml"]), Some(vec![]));
    assert_eq!(at(&[".git/index.toml", ".git/objects"]), Some(vec![]));
    for path in ["new.toml", "sub", "..data", ""] {
        assert_eq!(at(&[path]), None, "{path}");
    }
    fs::rename(root.join("sub"), root.join("../moved-away")).ok();
    assert_eq!(at(&["sub"]), None, "files were below it");
    fs::remove_file(root.join("a.toml")).unwrap();
    assert_eq!(at(&["a.toml"]), None, "it is gone");
    let _ = fs::remove_dir_all(root.join("../moved-away"));
}

#[test]
fn many_files_are_read_in_their_order() {
    let dir = TempDir::new().unwrap();
    for i in 0..600 {
        write(dir.path(), &format!("{i:03}.toml"), &user(&format!("u{i}")));
    }
    let changes = Directory::new(dir.path()).look();
    assert_eq!(changes.files.len(), 600);
    for (path, file) in &changes.files {
        let resource = &file.as_ref().unwrap().resources[0].resource;
        assert_eq!(format!("u{}", path[..3].parse::<usize>().unwrap()), resource.name().as_str());
    }
}

async fn next(changes: &mut mpsc::Receiver<Changes>) -> Changes {
    tokio::time::timeout(Duration::from_secs(20), changes.recv()).await.expect("a change is noticed").unwrap()
}

/// The next changes that say something of a file.
async fn news(changes: &mut mpsc::Receiver<Changes>) -> Changes {
    loop {
        let found = next(changes).await;
        if !found.files.is_empty() {
            return found;
        }
    }
}

fn watch(root: &Path) -> (Source, mpsc::Receiver<Changes>) {
    let options = SourceOptions { rescan: Duration::from_secs(3600), ..SourceOptions::new(root) };
    Source::start(options).unwrap()
}

#[tokio::test]
async fn edits_are_noticed() {
    let dir = TempDir::new().unwrap();
    let root = dir.path();
    write(root, "a.toml", &user("a"));
    let (_source, mut changes) = watch(root);
    assert_eq!(names(&next(&mut changes).await), ["a.toml"]);

    write(root, "a.toml", &user("b"));
    assert_eq!(names(&news(&mut changes).await), ["a.toml"]);
    // As editors do it: a new file takes the old one's place.
    write(root, "a.toml.tmp", &user("c"));
    fs::rename(root.join("a.toml.tmp"), root.join("a.toml")).unwrap();
    assert_eq!(names(&news(&mut changes).await), ["a.toml"]);
    write(root, "deep/er/b.toml", &user("d"));
    assert_eq!(names(&news(&mut changes).await), ["deep/er/b.toml"]);
    write(root, "deep/er/b.toml", &user("e"));
    assert_eq!(names(&news(&mut changes).await), ["deep/er/b.toml"]);
    fs::remove_file(root.join("a.toml")).unwrap();
    assert_eq!(names(&news(&mut changes).await), ["-a.toml"]);
    fs::remove_dir_all(root.join("deep")).unwrap();
    assert_eq!(names(&news(&mut changes).await), ["-deep/er/b.toml"]);
}

#[tokio::test]
async fn a_mounted_config_map_is_swapped() {
    let dir = TempDir::new().unwrap();
    let root = dir.path();
    write(root, "..2026_01/a.toml", &user("a"));
    symlink("..2026_01", root.join("..data")).unwrap();
    symlink("..data/a.toml", root.join("a.toml")).unwrap();
    let (_source, mut changes) = watch(root);
    assert_eq!(names(&next(&mut changes).await), ["a.toml"]);

    write(root, "..2026_02/a.toml", &user("b"));
    symlink("..2026_02", root.join("..data_tmp")).unwrap();
    fs::rename(root.join("..data_tmp"), root.join("..data")).unwrap();
    fs::remove_dir_all(root.join("..2026_01")).unwrap();
    let swapped = news(&mut changes).await;
    assert_eq!(names(&swapped), ["a.toml"]);
    let file = swapped.files[0].1.as_ref().unwrap();
    assert_eq!(file.resources[0].resource.name().as_str(), "b");
}

#[tokio::test]
async fn a_directory_may_come_later_and_come_back() {
    let dir = TempDir::new().unwrap();
    let root = dir.path().join("resources");
    let (source, mut changes) = watch(&root);
    assert!(!next(&mut changes).await.complete);
    write(&root, "a.toml", &user("a"));
    source.look();
    assert_eq!(names(&news(&mut changes).await), ["a.toml"]);
    fs::remove_dir_all(&root).unwrap();
    source.look();
    while next(&mut changes).await.complete {}
    write(&root, "a.toml", &user("b"));
    source.look();
    assert_eq!(names(&news(&mut changes).await), ["a.toml"]);
    // It is watched again.
    write(&root, "a.toml", &user("c"));
    assert_eq!(names(&news(&mut changes).await), ["a.toml"]);
}

#[tokio::test]
async fn a_directory_may_be_exchanged_as_a_whole() {
    let dir = TempDir::new().unwrap();
    let root = dir.path().join("resources");
    write(dir.path(), "one/a.toml", &user("a"));
    write(dir.path(), "two/a.toml", &user("b"));
    symlink("one", &root).unwrap();
    let (_source, mut changes) = watch(&root);
    assert_eq!(names(&next(&mut changes).await), ["a.toml"]);
    symlink("two", dir.path().join("next")).unwrap();
    fs::rename(dir.path().join("next"), &root).unwrap();
    assert_eq!(names(&news(&mut changes).await), ["a.toml"]);
    write(dir.path(), "two/a.toml", &user("c"));
    assert_eq!(names(&news(&mut changes).await), ["a.toml"]);
}

#[tokio::test]
async fn the_watching_ends_with_its_handle() {
    let dir = TempDir::new().unwrap();
    let (source, mut changes) = watch(dir.path());
    next(&mut changes).await;
    drop(source);
    let end = tokio::time::timeout(Duration::from_secs(20), changes.recv()).await.unwrap();
    assert!(end.is_none());
}
