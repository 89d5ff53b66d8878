use super::*;
use crate::oci::Descriptor;

const SIZE_BYTES: u64 = 1 << 20;

struct Case {
    _directory: tempfile::TempDir,
    store: Store,
    lease: Lease,
    source: Digest,
}

impl Case {
    /// A blob, and raw bytes that were made of it, of which the first `length` are no zeros.
    fn new(length: usize) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::at(directory.path().join("store"));
        let blob = Descriptor::of("x", b"x");
        let lease = store.lease([blob.digest]).unwrap();
        lease.put(&blob, b"x").unwrap();
        let case = Self {
            _directory: directory,
            store,
            lease,
            source: blob.digest,
        };
        case.make(length);
        case
    }

    #[track_caller]
    fn claim(&self, when: MakeRaw) -> RawDraft {
        match self.lease.claim_raw(self.source, when).unwrap() {
            RawClaim::Missing(raw) => *raw,
            RawClaim::Present => panic!("it is there"),
        }
    }

    #[track_caller]
    fn make(&self, length: usize) {
        let mut raw = self.claim(MakeRaw::IfMissing);
        raw.write(0, &vec![1; length]).unwrap();
        raw.commit(SIZE_BYTES).unwrap();
    }

    fn problem(&self) -> Option<Problem> {
        let owner = fs::metadata(&self.store.root).unwrap().uid();
        self.store.look_at_raw(&self.source, owner).unwrap()
    }
}

#[test]
fn what_ends_inside_a_piece_is_found_right_again() {
    let whole = usize::try_from(SIZE_BYTES).unwrap();
    for length in [0, 1, 512, 65_536, 65_536 + 512, whole - 1, whole] {
        assert_eq!(Case::new(length).problem(), None, "{length}");
    }
}

#[test]
fn what_is_made_anew_takes_the_place_of_what_is_there_when_it_is_whole() {
    let case = Case::new(512);
    let path = case.store.raw_path(&case.source);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
    let opened = File::open(&path).unwrap();
    let mut given_up = case.claim(MakeRaw::Anew);
    given_up.write(0, &[2; 512]).unwrap();
    given_up.discard().unwrap();
    assert_eq!(case.problem(), Some(Problem::Mode(0o666)));

    let mut raw = case.claim(MakeRaw::Anew);
    raw.write(0, &[3; 512]).unwrap();
    assert_eq!(fs::read(&path).unwrap()[..512], [1; 512]);
    raw.commit(SIZE_BYTES).unwrap();
    assert_eq!(case.problem(), None);
    assert_eq!(fs::read(&path).unwrap()[..512], [3; 512]);
    let mut old = [0; 512];
    opened.read_exact_at(&mut old, 0).unwrap();
    assert_eq!(old, [1; 512]);
}

#[test]
fn a_directory_without_the_bytes_is_replaced() {
    let case = Case::new(512);
    fs::remove_file(case.store.raw_path(&case.source)).unwrap();
    case.make(512);
    assert_eq!(case.problem(), None);
    for directory in ["ingest", "tmp"] {
        let left = files::names(&case.store.path(directory)).unwrap();
        assert_eq!(left, Vec::<String>::new());
    }
}

#[test]
fn a_record_must_be_of_these_bytes_and_one_of_an_older_version_has_them_made_again() {
    let case = Case::new(512);
    let path = case.store.derived_path(&case.source).join("record.json");
    let right = case.store.raw_record(&case.source).unwrap().unwrap();
    let changes: [fn(&mut RawRecord); 4] = [
        |record| record.source = Digest::of(b"other"),
        |record| record.form = "z".to_owned(),
        |record| record.schema_version = 7,
        |record| record.schema_version = 1,
    ];
    for change in changes {
        let mut record = right.clone();
        change(&mut record);
        case.store.write_record(&path, &record).unwrap();
        assert!(matches!(case.problem(), Some(Problem::Record(_))));
        match case.lease.claim_raw(case.source, MakeRaw::IfMissing) {
            Err(StoreError::Damaged { .. }) => assert_ne!(record.schema_version, 1),
            Ok(RawClaim::Missing(raw)) => {
                assert_eq!(record.schema_version, 1);
                raw.discard().unwrap();
            }
            other => panic!("{record:?}: {other:?}"),
        }
    }
    case.make(512);
    assert_eq!(case.problem(), None);
    assert!(matches!(
        case.lease
            .claim_raw(case.source, MakeRaw::IfMissing)
            .unwrap(),
        RawClaim::Present
    ));
}
