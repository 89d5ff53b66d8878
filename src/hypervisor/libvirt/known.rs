//! What libvirt's domains name, whoever defined them: read out of their XML.

use quick_xml::events::Event;
use quick_xml::{Reader, XmlVersion};
use virt::domain::Domain;
use virt::error::{Error as VirtError, ErrorNumber};

use crate::hypervisor::libvirt::connection::Connection;
use crate::hypervisor::libvirt::xml::METADATA_NAMESPACE;
use crate::hypervisor::{HypervisorError, Known};
use crate::oci::Digest;

/// Reads the XML of all domains, those that do not run too. Of one that runs both forms are read:
/// what it has open, and what it will have at its next start.
pub(super) fn known(connection: &Connection) -> Result<Vec<Known>, HypervisorError> {
    let listed = connection.handle.list_all_domains(0);
    let listed = listed.map_err(|error| connection.unlisted(error.message()))?;
    let mut known = Vec::new();
    for domain in listed {
        known.extend(describe(connection, &domain)?);
    }
    Ok(known)
}

fn describe(connection: &Connection, domain: &Domain) -> Result<Option<Known>, HypervisorError> {
    let is_gone = |error: &VirtError| error.code().is(ErrorNumber::NoDomain);
    let failed = |error: VirtError| connection.unlisted(error.message());
    let mut known = Known {
        name: domain.name().map_err(failed)?,
        ..Known::default()
    };
    for form in [0, virt::sys::VIR_DOMAIN_XML_INACTIVE] {
        match domain.xml_desc(form) {
            Ok(document) => read(&document, &mut known)
                .map_err(|error| connection.unlisted(&error.to_string()))?,
            Err(error) if is_gone(&error) => return Ok(None),
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(Some(known))
}

/// Adds what a document has: each text and attribute with a slash in it, and the digests that
/// ironboot notes.
fn read(document: &str, known: &mut Known) -> Result<(), quick_xml::Error> {
    let mut reader = Reader::from_str(document);
    let mut open: Vec<String> = Vec::new();
    let mut texts = Vec::new();
    let mut is_ours = false;
    loop {
        let event = reader.read_event()?;
        match &event {
            Event::Start(start) | Event::Empty(start) => {
                for attribute in start.attributes() {
                    let value = attribute?.normalized_value(XmlVersion::Implicit1_0)?;
                    is_ours |= value == METADATA_NAMESPACE;
                    texts.push(value.into_owned());
                }
                if matches!(event, Event::Start(_)) {
                    open.push(String::new());
                }
            }
            Event::End(_) => texts.extend(open.pop()),
            Event::Text(text) => {
                if let Some(inner) = open.last_mut() {
                    *inner += &text.xml10_content();
                }
            }
            Event::CData(text) => {
                if let Some(inner) = open.last_mut() {
                    *inner += &text.xml10_content();
                }
            }
            Event::GeneralRef(reference) => {
                let text = format!("&{};", &**reference);
                if let Some(inner) = open.last_mut() {
                    *inner += &quick_xml::escape::unescape(&text)?;
                }
            }
            Event::Eof => break,
            _ => {}
        }
    }
    if is_ours {
        let digests = texts.iter().filter_map(|text| text.parse::<Digest>().ok());
        known.digests.extend(digests);
    }
    known
        .texts
        .extend(texts.into_iter().filter(|text| text.contains('/')));
    Ok(())
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
        let mut known = Known::default();
        read(&document, &mut known).unwrap();
        let provenance = &spec.provenance;
        let made_from = provenance.index_digest.iter();
        let made_from: Vec<Digest> = made_from
            .chain([&provenance.manifest_digest])
            .copied()
            .collect();
        assert_eq!(known.digests, made_from);
        let disk = &spec.disks[0];
        for path in [&disk.file, &disk.backing.as_ref().unwrap().file] {
            let path = path.to_str().unwrap();
            assert!(known.texts.iter().any(|text| text == path), "{path}");
        }
    }

    #[test]
    fn a_foreign_domain_is_read_and_its_digests_are_none_of_ours() {
        let digest = Digest::of(b"x");
        let document = format!(
            "<domain><metadata><a>{digest}</a></metadata><qemu:commandline>\
             <qemu:arg value='file=/s/blobs/sha256/1,if=none'/></qemu:commandline>\
             <kernel><![CDATA[/s/k]]></kernel><name>no path</name></domain>"
        );
        let mut known = Known::default();
        read(&document, &mut known).unwrap();
        assert_eq!(known.digests, []);
        assert_eq!(known.texts, ["file=/s/blobs/sha256/1,if=none", "/s/k"]);
        assert!(read("<domain><a></domain>", &mut known).is_err());
    }
}
