//! What there is: the instances' records, merged with what QEMU's processes and libvirt's domains say,
//! and whatever only one side knows of.

use std::collections::BTreeMap;
use std::fmt;

use crate::domain::DomainName;
use crate::hypervisor::{DomainState, HypervisorError, Known, qemu};
use crate::instance::{InstanceError, Record};
use crate::ops::{Context, OpsError, Progress, users};
use crate::store::Store;

/// One VM, or what is left of it.
#[derive(Debug)]
pub struct Listed {
    /// What it is.
    pub subject: Subject,
    /// What it does; unknown as well where nobody could tell.
    pub state: DomainState,
    /// What is wrong with it, which `rm` mends.
    pub problem: Option<Problem>,
}

/// What is known of a VM.
#[derive(Debug)]
pub enum Subject {
    /// An instance.
    Instance(Box<Record>),
    /// An instance's directory, and no record that can be read.
    Directory(DomainName),
    /// A domain of this store's, of which there is no instance.
    Domain {
        /// The libvirt that has it.
        uri: String,
        /// It.
        known: Known,
    },
}

/// What is wrong with a VM.
#[derive(Debug)]
pub enum Problem {
    /// libvirt does not know it.
    NoDomain,
    /// It has no record.
    NoRecord,
    /// Its record can not be read.
    Record(InstanceError),
    /// Its hypervisor can not be asked.
    Unavailable(String),
}

impl Problem {
    /// The word in JSON.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::NoDomain => "no-domain",
            Self::NoRecord => "no-record",
            Self::Record(_) => "damaged-record",
            Self::Unavailable(_) => "unavailable",
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoDomain => f.write_str("libvirt has no domain of it"),
            Self::NoRecord => f.write_str("it has no record"),
            Self::Record(error) => error.fmt(f),
            Self::Unavailable(reason) => f.write_str(reason),
        }
    }
}

impl Subject {
    /// Its name. That of a domain is what somebody may have made of it.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Instance(record) => record.spec.name.as_str(),
            Self::Directory(name) => name.as_str(),
            Self::Domain { known, .. } => &known.name,
        }
    }
}

/// All instances, the directories that have no record, and this store's domains that are no
/// instance's, sorted by name. Each libvirt is asked once; one that does not answer is reported.
pub async fn list(context: &Context<'_>) -> Result<Vec<Listed>, OpsError> {
    let mut records = Vec::new();
    let mut directories = Vec::new();
    for name in context.instances.names()? {
        match context.instances.find(&name) {
            Ok(Some(record)) => records.push(record),
            // Unless it has been removed since.
            Ok(None) if !context.instances.directory(&name).exists() => {}
            Ok(None) => directories.push((name, Problem::NoRecord)),
            Err(error) => directories.push((name, Problem::Record(error))),
        }
    }
    let mut asked = BTreeMap::new();
    for (uri, has_instances) in users::libvirts(context, &records) {
        let answer = users::ask(context, &uri).await;
        // A caller without instances there need not have a libvirt.
        if let Err(error) = &answer
            && (has_instances || matches!(error, HypervisorError::Listing { .. }))
        {
            (context.report)(Progress::StatesUnknown(error.to_string()));
        }
        asked.insert(uri, answer);
    }
    let mut listed: Vec<Listed> = Vec::new();
    for record in records {
        let (state, problem) = state(&record, &mut asked);
        listed.push(Listed {
            subject: Subject::Instance(Box::new(record)),
            state,
            problem,
        });
    }
    let mut orphans: Vec<(String, Known)> = Vec::new();
    for (uri, answer) in asked {
        let known = answer.unwrap_or_default().into_iter();
        let ours = known.filter(|known| is_ours(&context.store, known));
        orphans.extend(ours.map(|known| (uri.clone(), known)));
    }
    for (name, problem) in directories {
        let directory = context.instances.directory(&name);
        let own = orphans
            .iter()
            .position(|(_, known)| is_of(&context.store, known, &name));
        let state = match own {
            Some(at) => orphans.swap_remove(at).1.state,
            None => qemu::orphan::state(&directory).unwrap_or(DomainState::Unknown),
        };
        listed.push(Listed {
            subject: Subject::Directory(name),
            state,
            problem: Some(problem),
        });
    }
    listed.extend(orphans.into_iter().map(|(uri, known)| Listed {
        state: known.state,
        subject: Subject::Domain { uri, known },
        problem: Some(Problem::NoRecord),
    }));
    listed.sort_by(|a, b| a.subject.name().cmp(b.subject.name()));
    Ok(listed)
}

type Asked = BTreeMap<String, Result<Vec<Known>, HypervisorError>>;

/// What an instance does. Its domain is taken out of those that were told of.
fn state(record: &Record, asked: &mut Asked) -> (DomainState, Option<Problem>) {
    let unavailable = |error: &dyn fmt::Display| {
        let problem = Problem::Unavailable(error.to_string());
        (DomainState::Unknown, Some(problem))
    };
    match record.hypervisor.as_deref() {
        None => (DomainState::Unknown, None),
        Some(qemu::NAME) => match qemu::orphan::state(&record.spec.directory) {
            Ok(state) => (state, None),
            Err(error) => unavailable(&error),
        },
        Some(uri) => match asked.get_mut(uri) {
            Some(Ok(known)) => {
                let uuid = record.spec.uuid.as_str();
                let own = known
                    .iter()
                    .position(|known| known.uuid.eq_ignore_ascii_case(uuid));
                match own {
                    Some(at) => (known.swap_remove(at).state, None),
                    None => (DomainState::Unknown, Some(Problem::NoDomain)),
                }
            }
            Some(Err(error)) => unavailable(error),
            None => unavailable(&"it was not asked"),
        },
    }
}

/// Tells whether a domain is this store's: it has notes of ironboot's, and opens what is here.
pub(super) fn is_ours(store: &Store, known: &Known) -> bool {
    let mut texts = known.texts.iter();
    known.notes.is_some() && texts.any(|text| store.named_in(text).is_some())
}

/// Tells whether a domain is this store's and opens a file of the directory that the instance `name`
/// has or had.
pub(super) fn is_of(store: &Store, known: &Known, name: &DomainName) -> bool {
    let directory = format!("/instances/{name}/");
    let mut texts = known.texts.iter();
    known.notes.is_some()
        && texts.any(|text| text.contains(&directory) && store.named_in(text).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hypervisor::Notes;

    #[test]
    fn a_domain_is_of_an_instance_by_its_notes_and_a_path_into_this_store() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("store");
        std::fs::create_dir(&root).unwrap();
        let store = Store::at(root.clone());
        let of = |text: String, notes: Option<Notes>| {
            let known = Known {
                name: "x".to_owned(),
                uuid: String::new(),
                state: DomainState::Stopped,
                texts: vec!["/elsewhere".to_owned(), text],
                notes,
            };
            let name = "vm".parse().unwrap();
            (is_ours(&store, &known), is_of(&store, &known, &name))
        };
        let root = root.display();
        let notes = Some(Notes::default());
        let log = |name: &str| format!("{root}/instances/{name}/console.log");
        assert_eq!(of(log("vm"), notes.clone()), (true, true));
        assert_eq!(of(log("vm2"), notes.clone()), (true, false));
        assert_eq!(of(log("vm"), None), (false, false));
        let other = format!("{}/instances/vm/disk", directory.path().display());
        assert_eq!(of(other, notes.clone()), (false, false));
        assert_eq!(of("/instances/vm/disk".to_owned(), notes), (false, false));
    }
}
