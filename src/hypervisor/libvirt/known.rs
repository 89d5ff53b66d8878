//! What libvirt's domains name, whoever defined them: read out of their XML.

use quick_xml::events::Event;
use quick_xml::{Reader, XmlVersion};
use virt::domain::Domain;
use virt::error::{Error as VirtError, ErrorNumber};

use crate::hypervisor::libvirt::connection::Connection;
use crate::hypervisor::libvirt::state_of;
use crate::hypervisor::libvirt::xml::METADATA_NAMESPACE;
use crate::hypervisor::{DomainState, HypervisorError, Known, Notes};
use crate::oci::Digest;

/// Reads the XML of all domains, those that do not run too. Of one that runs both forms are read:
/// what it has open, and what it will have at its next start.
pub(super) fn known(connection: &Connection) -> Result<Vec<Known>, HypervisorError> {
    let listed = connection.handle.list_all_domains(0);
    let listed = listed.map_err(|error| connection.unlisted(&error))?;
    let mut known = Vec::new();
    for domain in listed {
        let described = describe(&domain).map_err(|failure| match failure {
            Failure::Libvirt(error) => connection.unlisted(&error),
            Failure::Document(error) => connection.unreadable(&error),
        })?;
        known.extend(described);
    }
    Ok(known)
}

/// Why a domain's description could not be read.
pub(super) enum Failure {
    Libvirt(VirtError),
    Document(quick_xml::Error),
}

impl From<VirtError> for Failure {
    fn from(error: VirtError) -> Self {
        Self::Libvirt(error)
    }
}

impl From<quick_xml::Error> for Failure {
    fn from(error: quick_xml::Error) -> Self {
        Self::Document(error)
    }
}

/// Describes a domain; none if it is gone by now.
fn describe(domain: &Domain) -> Result<Option<Known>, Failure> {
    match described(domain) {
        Err(Failure::Libvirt(error)) if error.code().is(ErrorNumber::NoDomain) => Ok(None),
        result => result.map(Some),
    }
}

fn described(domain: &Domain) -> Result<Known, Failure> {
    let (state, _) = state_of(domain)?;
    let inactive = domain.xml_desc(virt::sys::VIR_DOMAIN_XML_INACTIVE)?;
    let mut content = read(&inactive)?;
    if state != DomainState::Stopped {
        let active = read(&domain.xml_desc(0)?)?;
        content.texts.extend(active.texts);
        content.notes = match (content.notes, active.notes) {
            (Some(mut next), Some(now)) => {
                next.documents.extend(now.documents);
                Some(next)
            }
            (next, now) => next.or(now),
        };
    }
    Ok(Known {
        name: domain.name()?,
        uuid: domain.uuid_string()?,
        state,
        texts: content.texts,
        notes: content.notes,
    })
}

/// What ironboot has noted in the domain as it will be at its next start.
pub(super) fn notes(domain: &Domain) -> Result<Option<Notes>, Failure> {
    let document = domain.xml_desc(virt::sys::VIR_DOMAIN_XML_INACTIVE)?;
    Ok(read(&document)?.notes)
}

/// What is in a document.
#[derive(Default)]
struct Content {
    /// Each text and attribute with a slash in it.
    texts: Vec<String>,
    notes: Option<Notes>,
}

fn read(document: &str) -> Result<Content, quick_xml::Error> {
    let mut reader = Reader::from_str(document);
    // Of each element that is open its name, and its text as far as it is read.
    let mut open: Vec<(String, String)> = Vec::new();
    // How many are open around what ironboot notes.
    let mut around: Option<usize> = None;
    let mut content = Content::default();
    loop {
        let event = reader.read_event()?;
        match &event {
            Event::Start(start) | Event::Empty(start) => {
                let is_left_open = matches!(event, Event::Start(_));
                for attribute in start.attributes() {
                    let value = attribute?.normalized_value(XmlVersion::Implicit1_0)?;
                    if value == METADATA_NAMESPACE && around.is_none() {
                        content.notes.get_or_insert_default();
                        around = is_left_open.then_some(open.len());
                    }
                    content.texts.push(value.into_owned());
                }
                if is_left_open {
                    let name = start.local_name();
                    open.push((name.as_ref().to_owned(), String::new()));
                }
            }
            Event::End(_) => {
                let Some((name, text)) = open.pop() else {
                    continue;
                };
                match around {
                    Some(depth) if open.len() > depth => {
                        note(content.notes.get_or_insert_default(), &name, &text);
                    }
                    Some(depth) if open.len() == depth => around = None,
                    _ => {}
                }
                content.texts.push(text);
            }
            Event::Text(text) => {
                if let Some((_, inner)) = open.last_mut() {
                    *inner += &text.xml10_content();
                }
            }
            Event::CData(text) => {
                if let Some((_, inner)) = open.last_mut() {
                    *inner += &text.xml10_content();
                }
            }
            Event::GeneralRef(reference) => {
                let text = format!("&{};", &**reference);
                if let Some((_, inner)) = open.last_mut() {
                    *inner += &quick_xml::escape::unescape(&text)?;
                }
            }
            Event::Eof => break,
            _ => {}
        }
    }
    content.texts.retain(|text| text.contains('/'));
    Ok(content)
}

/// Takes in one of the elements that `xml` writes; what is damaged is as good as not there.
fn note(notes: &mut Notes, element: &str, text: &str) {
    match element {
        "reference" => text.clone_into(&mut notes.reference),
        "index-digest" | "manifest-digest" => notes.documents.extend(text.parse::<Digest>().ok()),
        "plan-digest" => notes.plan_digest = text.parse().ok(),
        "boot-method" => text.clone_into(&mut notes.method),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Machine;
    use crate::hypervisor::RunsAs;
    use crate::hypervisor::libvirt::xml::render;
    use crate::hypervisor::samples::direct;

    #[test]
    fn all_that_a_domain_of_ours_opens_and_was_made_from_is_found() {
        let mut spec = direct(Machine::Amd64);
        spec.disks[0].backing.as_mut().unwrap().file = "/st&re/'a'/blobs/sha256/x".into();
        let document = render(&spec, RunsAs::Caller).unwrap();
        let known = read(&document).unwrap();
        let provenance = &spec.provenance;
        let made_from = provenance.index_digest.iter();
        let made_from: Vec<Digest> = made_from
            .chain([&provenance.manifest_digest])
            .copied()
            .collect();
        let notes = Notes {
            reference: provenance.reference.clone(),
            documents: made_from,
            method: provenance.method.clone(),
            plan_digest: Some(spec.plan_digest().unwrap()),
        };
        assert_eq!(known.notes, Some(notes));
        let disk = &spec.disks[0];
        for path in [&disk.file, &disk.backing.as_ref().unwrap().file] {
            let path = path.to_str().unwrap();
            assert!(known.texts.iter().any(|text| text == path), "{path}");
        }
    }

    #[test]
    fn a_foreign_domain_is_read_and_has_no_notes_of_ours() {
        let digest = Digest::of(b"x");
        let document = format!(
            "<domain><metadata><a>{digest}</a></metadata><qemu:commandline>\
             <qemu:arg value='file=/s/blobs/sha256/1,if=none'/></qemu:commandline>\
             <kernel><![CDATA[/s/k]]></kernel><name>no path</name></domain>"
        );
        let known = read(&document).unwrap();
        assert_eq!(known.notes, None);
        assert_eq!(known.texts, ["file=/s/blobs/sha256/1,if=none", "/s/k"]);
        assert!(read("<domain><a></domain>").is_err());
    }
}
