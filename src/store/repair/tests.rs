use std::os::unix::fs::chown;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use super::*;
use crate::oci::{Descriptor, Reference};

fn store() -> (tempfile::TempDir, Store) {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::at(directory.path().join("store"));
    store.create().unwrap();
    (directory, store)
}

/// A blob that is in the store, and a lease of it.
fn blob(store: &Store, content: &[u8]) -> (Lease, Digest, PathBuf) {
    let blob = Descriptor::of("x", content);
    let lease = store.lease([blob.digest]).unwrap();
    let path = lease.put(&blob, content).unwrap().path().to_owned();
    (lease, blob.digest, path)
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn names(store: &Store, directory: &str) -> Vec<String> {
    files::names(&store.path(directory)).unwrap()
}

#[test]
fn a_blob_whose_file_is_mended_has_its_name_all_the_while() {
    let (_directory, store) = store();
    let content = [vec![1; 3 << 20], vec![0; 3 << 20]].concat();
    let (lease, digest, path) = blob(&store, &content);
    let (is_over, was_gone) = (AtomicBool::new(false), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::SeqCst) {
                was_gone.fetch_or(!path.exists(), Ordering::SeqCst);
            }
        });
        for _ in 0..5 {
            set_mode(&path, 0o666);
            let before = fs::metadata(&path).unwrap().ino();
            let place = store.mend_file(&lease, digest);
            assert!(matches!(place, Ok(Place::Right)), "{place:?}");
            let metadata = fs::metadata(&path).unwrap();
            assert_eq!(metadata.mode() & 0o7777, 0o444);
            assert_ne!(metadata.ino(), before);
            assert!(metadata.blocks() * 512 <= 4 << 20, "zeros are holes");
        }
        is_over.store(true, Ordering::SeqCst);
    });
    assert!(!was_gone.into_inner());
    assert_eq!(fs::read(&path).unwrap(), content);
    assert_eq!(names(&store, "tmp"), Vec::<String>::new());
}

#[test]
fn a_copy_of_other_content_does_not_replace_a_blob() {
    let (_directory, store) = store();
    let (_lease, digest, path) = blob(&store, b"content");
    set_mode(&path, 0o644);
    fs::write(&path, b"CONTENT").unwrap();
    let renewed = store.renew(digest);
    assert!(matches!(renewed, Err(StoreError::Content { .. })));
    assert_eq!(fs::read(&path).unwrap(), b"CONTENT");
    assert_eq!(names(&store, "tmp"), Vec::<String>::new());
}

#[test]
fn a_blob_that_is_right_by_now_stays_where_it_is() {
    let (_directory, store) = store();
    let (lease, digest, path) = blob(&store, b"content");
    let before = fs::metadata(&path).unwrap().ino();
    let place = store.mend_file(&lease, digest);
    assert!(matches!(place, Ok(Place::Right)), "{place:?}");
    assert_eq!(fs::metadata(&path).unwrap().ino(), before);
}

#[test]
fn what_was_moved_out_is_collected_by_nobody_until_it_is_settled() {
    let (_directory, store) = store();
    let (_, other, other_path) = blob(&store, b"other");
    let (lease, digest, path) = blob(&store, b"content");
    set_mode(&path, 0o644);
    fs::write(&path, b"CONTENT").unwrap();
    let moved = match store.mend_file(&lease, digest).unwrap() {
        Place::Empty(Some(moved)) => moved,
        place => panic!("{place:?}"),
    };
    assert!(!path.exists());
    assert_eq!(store.remove_unneeded([other], &[]).unwrap().len(), 1);
    assert!(!other_path.exists());
    store
        .prune(
            &Default::default(),
            Some(&[]),
            9_999_999_999,
            super::super::Act::Remove,
        )
        .unwrap();
    assert_eq!(fs::read(&moved.path).unwrap(), b"CONTENT");
    // As a repair that was killed leaves it; the next one finds another name.
    lease
        .put(&Descriptor::of("x", b"content"), b"content")
        .unwrap();
    set_mode(&path, 0o644);
    fs::write(&path, b"again").unwrap();
    let second = match store.mend_file(&lease, digest).unwrap() {
        Place::Empty(second) => second,
        place => panic!("{place:?}"),
    };
    assert_eq!(names(&store, "damaged").len(), 2);
    store.settle(digest, second).unwrap();
    assert_eq!(fs::read(&moved.path).unwrap(), b"CONTENT");
    store.settle(digest, Some(moved)).unwrap();
    assert_eq!(names(&store, "damaged"), Vec::<String>::new());
}

#[test]
fn no_two_mend_at_the_same_time() {
    let (_directory, store) = store();
    let lock = store.lock_repairs().unwrap();
    let other = Lock::exclusive(&store.path("repair.lock"), Wait::No).unwrap();
    assert!(other.is_none());
    drop(lock);
    store.lock_repairs().unwrap();
}

#[test]
fn a_record_that_is_right_by_now_is_not_put_away() {
    let (_directory, store) = store();
    let reference: Reference = "registry.example/os:1".parse().unwrap();
    let top = Descriptor::of("x", b"x");
    let put = || store.put_reference(&reference, &top, &[], &Default::default(), 1);
    put().unwrap();
    let record = store.path("refs").join(&names(&store, "refs")[0]);
    let whole = fs::read(&record).unwrap();
    fs::write(&record, "garbage").unwrap();
    let found = store.look_at_records().unwrap();
    let finding = found.iter().find(|finding| finding.path == record).unwrap();
    fs::write(&record, whole).unwrap();
    assert!(store.mend_record(finding).unwrap());
    assert!(record.exists());
    fs::write(&record, "garbage").unwrap();
    assert!(store.mend_record(finding).unwrap());
    assert!(!record.exists());
}

#[test]
fn what_root_mends_belongs_to_the_stores_owner() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let (_directory, store) = store();
    let (lease, digest, path) = blob(&store, b"content");
    chown(store.root(), Some(64055), Some(64055)).unwrap();
    drop(store.lock_repairs().unwrap());
    let place = store.mend_file(&lease, digest);
    assert!(matches!(place, Ok(Place::Right)), "{place:?}");
    let owner = |path: &Path| fs::metadata(path).unwrap().uid();
    assert_eq!(owner(&path), 64055);
    assert_eq!(owner(&store.path("repair.lock")), 64055);
    // And so does what was fetched again.
    chown(&path, Some(0), None).unwrap();
    store.settle(digest, None).unwrap();
    assert_eq!(owner(&path), 64055);
}
