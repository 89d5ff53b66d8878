use super::*;
use crate::oci::{Descriptor, Reference};
use crate::store::{StoredImage, User};

const NOW: u64 = 100_000_000;
const DAY: u64 = 24 * 60 * 60;

struct Fixture {
    _directory: tempfile::TempDir,
    store: Store,
}

impl Fixture {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::at(directory.path().join("store"));
        store.create().unwrap();
        Self {
            _directory: directory,
            store,
        }
    }

    /// Puts an image whose one layer takes `blocks` of 4 KiB, last used `days` ago.
    fn image(&self, name: &str, blocks: usize, days: u64) -> StoredReference {
        let reference: Reference = format!("reg.io/{name}").parse().unwrap();
        let top = Descriptor::of("m", name.as_bytes());
        let content: Vec<u8> = name.bytes().cycle().take(blocks * 4096).collect();
        let layer = Descriptor::of("l", &content);
        let lease = self.store.lease([top.digest, layer.digest]).unwrap();
        lease.put(&layer, &content).unwrap();
        lease.put(&top, name.as_bytes()).unwrap();
        let image = StoredImage {
            manifest: top.clone(),
            indexes: Vec::new(),
            architecture: None,
            variant: None,
            blobs: vec![layer],
        };
        self.store
            .put_reference(&reference, &top, &[image], &BTreeSet::new(), NOW)
            .unwrap();
        let path = self.store.named_reference_path(&reference.to_string());
        set_age(&path, Duration::from_secs(days * DAY));
        self.store.reference(&reference).unwrap().unwrap()
    }

    fn prune(&self, policy: Policy, others: &[Use]) -> Vec<(ItemKind, String)> {
        let look = self.store.prune(&policy, Some(others), NOW, Act::Look);
        let pruned = self.store.prune(&policy, Some(others), NOW, Act::Remove);
        let (look, pruned) = (look.unwrap(), pruned.unwrap());
        assert_eq!(look, pruned, "what was said and what was done");
        let removed = pruned.removed.into_iter();
        removed.map(|item| (item.kind, item.name)).collect()
    }

    fn images(&self) -> Vec<String> {
        let references = self.store.references().unwrap().into_iter();
        references.map(|stored| stored.reference).collect()
    }
}

fn set_age(path: &Path, age: Duration) {
    let file = fs::File::options().append(true).open(path).unwrap();
    let at = UNIX_EPOCH + Duration::from_secs(NOW) - age;
    file.set_modified(at).unwrap();
}

fn image(reference: &StoredReference) -> (ItemKind, String) {
    (ItemKind::Image, reference.reference.clone())
}

#[test]
fn old_images_go_unless_somebody_needs_them() {
    let fixture = Fixture::new();
    let [old, used, opened] = [("old:1", 31), ("used:1", 40), ("opened:1", 50)]
        .map(|(name, days)| fixture.image(name, 1, days));
    fixture.image("young:1", 1, 29);
    fixture.image("future:1", 1, 0);
    let store = &fixture.store;
    let manifest = used.top.digest;
    store.pin("vm", BTreeSet::from([manifest])).unwrap();
    let domain = Use {
        user: User::Domain {
            name: "web".to_owned(),
            uri: "qemu:///system".to_owned(),
        },
        named: BTreeSet::new(),
        opened: BTreeSet::from([opened.images[0].blobs[0].digest]),
    };
    let others = [domain];
    assert_eq!(fixture.prune(Policy::default(), &others), []);
    let policy = Policy {
        older_than: Some(Duration::from_secs(30 * DAY)),
        keep_bytes: None,
    };
    let mut digests = [old.top.digest, old.images[0].blobs[0].digest];
    digests.sort();
    let blobs = digests.map(|digest| (ItemKind::Blob, digest.to_string()));
    let expected = [vec![image(&old)], blobs.to_vec()].concat();
    assert_eq!(fixture.prune(policy, &others), expected);
    let left = [
        "reg.io/future:1",
        "reg.io/opened:1",
        "reg.io/used:1",
        "reg.io/young:1",
    ];
    assert_eq!(fixture.images(), left);
    // Where not all who need something are known, nothing of it goes.
    let pruned = store.prune(&policy, None, NOW, Act::Remove).unwrap();
    assert_eq!(pruned.removed, []);
}

#[test]
fn the_least_recently_used_images_go_until_the_rest_fits() {
    let fixture = Fixture::new();
    let [oldest, needed, newer] =
        [("a:1", 9), ("b:1", 8), ("c:1", 7)].map(|(name, days)| fixture.image(name, 8, days));
    fixture.image("d:1", 8, 6);
    let manifest = needed.top.digest;
    fixture.store.pin("vm", BTreeSet::from([manifest])).unwrap();
    let total = fixture
        .store
        .prune(&Policy::default(), None, NOW, Act::Look);
    let total = total.unwrap().left_bytes;
    // A layer of 32 KiB and a manifest of one block: one of the four has to go.
    let keeping = |keep_bytes| Policy {
        older_than: None,
        keep_bytes: Some(keep_bytes),
    };
    assert_eq!(fixture.prune(keeping(total), &[]), []);
    assert_eq!(fixture.prune(keeping(total - 1), &[])[0], image(&oldest));
    assert_eq!(fixture.images().len(), 3);
    let gone = fixture.prune(keeping(total / 2), &[]);
    assert_eq!(gone[0], image(&newer));
    assert_eq!(fixture.images(), ["reg.io/b:1", "reg.io/d:1"]);
    fixture.prune(keeping(0), &[]);
    assert_eq!(fixture.images(), ["reg.io/b:1"]);
}

#[test]
fn partials_stay_a_day_and_what_can_not_be_resumed_goes() {
    let fixture = Fixture::new();
    let store = &fixture.store;
    let here = fixture.image("a:1", 1, 0);
    let there = here.images[0].blobs[0].digest;
    let [young, old, empty, held] = [&b"1"[..], b"2", b"3", b"4"].map(Digest::of);
    let partial = |digest: Digest, content: &str, hours: u64| {
        let directory = store
            .path("ingest")
            .join(digest.to_string().replace(':', "-"));
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join("data"), content).unwrap();
        set_age(&directory.join("data"), Duration::from_secs(hours * 3600));
        directory
    };
    partial(young, "data", 23);
    partial(old, "data", 24);
    partial(empty, "", 0);
    partial(there, "data", 0);
    let directory = partial(held, "data", 100);
    let lock = Lock::exclusive(&directory.join("lock"), Wait::No).unwrap();
    let mut expected = [old, empty, there].map(|digest| digest.to_string());
    expected.sort();
    let expected = expected.map(|name| (ItemKind::Partial, name));
    assert_eq!(fixture.prune(Policy::default(), &[]), expected);
    drop(lock);
    let policy = Policy {
        older_than: Some(Duration::from_secs(3600)),
        keep_bytes: None,
    };
    let mut expected = [young, held].map(|digest| digest.to_string());
    expected.sort();
    let expected = expected.map(|name| (ItemKind::Partial, name));
    assert_eq!(fixture.prune(policy, &[]), expected);
}

#[test]
fn what_killed_processes_left_goes_and_what_living_ones_have_stays() {
    let fixture = Fixture::new();
    let store = &fixture.store;
    let lease = store.lease([Digest::of(b"x")]).unwrap();
    fs::write(store.path("leases/lease-dead"), "").unwrap();
    for name in [".tmpdead", ".tmpheld", "removed-dead", "stranger"] {
        fs::write(store.path("tmp").join(name), "x").unwrap();
    }
    let held = Lock::exclusive(&store.path("tmp/.tmpheld"), Wait::No).unwrap();
    fs::create_dir_all(store.path("tmp/removed-full/ingest")).unwrap();
    let left = store.path("tmp/.tmpdir");
    fs::create_dir(&left).unwrap();
    fs::write(left.join("id_ed25519"), "private").unwrap();
    let (kept, lock) = files::scratch_dir(&store.path("tmp")).unwrap();
    let names = [".tmpdead", ".tmpdir", "removed-dead", "removed-full"];
    let leftovers = names.map(|name| (ItemKind::Leftover, name.to_owned()));
    let dead = [(ItemKind::Lease, "lease-dead".to_owned())];
    let expected = [leftovers.to_vec(), dead.to_vec()].concat();
    assert_eq!(fixture.prune(Policy::default(), &[]), expected);
    let left = files::names(&store.path("tmp")).unwrap();
    let kept_name = kept.path().file_name().unwrap().to_str().unwrap();
    let mut expected = [kept_name, ".tmpheld", "stranger"];
    expected.sort_unstable();
    assert_eq!(left, expected);
    drop((lease, held, lock));
}

#[test]
fn a_look_makes_no_store() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::at(directory.path().join("store"));
    for act in [Act::Look, Act::Remove] {
        let pruned = store.prune(&Policy::default(), Some(&[]), NOW, act);
        assert_eq!(pruned.unwrap(), Pruned::default());
        assert!(!store.root().exists());
    }
}
