//! A tree of XML elements, the only thing that domain XML is made of: a value gets into the
//! document as an attribute's value or an element's text, escaped, or not at all.

use std::path::Path;

use quick_xml::Writer;
use quick_xml::events::{BytesEnd, BytesStart, BytesText, Event};

use crate::hypervisor::HypervisorError;
use crate::oci::Printable;

/// An element with its attributes and either children or text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Element {
    name: &'static str,
    attributes: Vec<(&'static str, String)>,
    children: Vec<Element>,
    text: String,
}

impl Element {
    /// Returns `<name/>`.
    pub(super) fn new(name: &'static str) -> Self {
        Self {
            name,
            attributes: Vec::new(),
            children: Vec::new(),
            text: String::new(),
        }
    }

    /// Returns `<name>text</name>`.
    pub(super) fn of_text(name: &'static str, text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            ..Self::new(name)
        }
    }

    /// Adds an attribute.
    pub(super) fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.attributes.push((name, value.into()));
        self
    }

    /// Adds children; an `Option` adds one or none.
    pub(super) fn holding(mut self, children: impl IntoIterator<Item = Self>) -> Self {
        self.children.extend(children);
        self
    }

    /// Writes the document whose root this is.
    ///
    /// Errors if a value has a character that XML does not have or that a reader may change:
    /// escaping does not help those.
    pub(super) fn to_document(&self) -> Result<String, HypervisorError> {
        let mut writer = Writer::new_with_indent(Vec::new(), b' ', 2);
        self.write(&mut writer)?;
        let mut document =
            String::from_utf8(writer.into_inner()).expect("all that was written was a str");
        document.push('\n');
        Ok(document)
    }

    fn write(&self, writer: &mut Writer<Vec<u8>>) -> Result<(), HypervisorError> {
        let Self {
            name,
            attributes,
            children,
            text,
        } = self;
        let mut start = BytesStart::new(*name);
        for (attribute, value) in attributes {
            start.push_attribute((*attribute, checked(attribute, value)?));
        }
        if children.is_empty() && text.is_empty() {
            write_event(writer, Event::Empty(start));
            return Ok(());
        }
        write_event(writer, Event::Start(start));
        if !text.is_empty() {
            write_event(writer, Event::Text(BytesText::new(checked(name, text)?)));
        }
        for child in children {
            child.write(writer)?;
        }
        write_event(writer, Event::End(BytesEnd::new(*name)));
        Ok(())
    }
}

/// Returns a path as the text that libvirt passes on to QEMU.
pub(super) fn path_text(path: &Path) -> Result<String, HypervisorError> {
    path.to_str()
        .filter(|text| path.is_absolute() && text.chars().all(is_plain))
        .map(str::to_owned)
        .ok_or_else(|| HypervisorError::Path {
            path: path.to_owned(),
        })
}

fn checked<'text>(place: &'static str, text: &'text str) -> Result<&'text str, HypervisorError> {
    // A tab is white space between the words of a command line; libvirt keeps it.
    if text.chars().all(|c| c == '\t' || is_plain(c)) {
        Ok(text)
    } else {
        Err(HypervisorError::Text {
            place,
            text: Printable(text).to_string(),
        })
    }
}

/// Tells whether XML 1.0 has the character (section 2.2, `Char`) and no reader normalizes it.
fn is_plain(c: char) -> bool {
    !c.is_control() && !matches!(c, '\u{FFFE}' | '\u{FFFF}')
}

fn write_event(writer: &mut Writer<Vec<u8>>, event: Event<'_>) {
    writer
        .write_event(event)
        .expect("writing to memory does not fail");
}

#[cfg(test)]
pub(super) mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    use quick_xml::{Reader, XmlVersion};

    use super::*;

    /// An element without its children.
    #[derive(Debug, PartialEq, Eq)]
    pub(in super::super) struct Flat {
        /// How many others it lies within.
        pub(in super::super) depth: usize,
        pub(in super::super) name: String,
        pub(in super::super) attributes: Vec<(String, String)>,
        pub(in super::super) text: String,
    }

    /// Reads a document back into its elements, in document order.
    pub(in super::super) fn read(document: &str) -> Vec<Flat> {
        let mut reader = Reader::from_str(document);
        let mut elements: Vec<Flat> = Vec::new();
        let mut open = Vec::new();
        loop {
            let event = reader.read_event().unwrap();
            match &event {
                Event::Start(start) | Event::Empty(start) => {
                    let depth = open.len();
                    if matches!(event, Event::Start(_)) {
                        open.push(elements.len());
                    }
                    let attributes = start
                        .attributes()
                        .map(|attribute| {
                            let attribute = attribute.unwrap();
                            let value = attribute.normalized_value(XmlVersion::Implicit1_0);
                            (attribute.key.as_ref().into(), value.unwrap().into_owned())
                        })
                        .collect();
                    elements.push(Flat {
                        depth,
                        name: start.name().as_ref().into(),
                        attributes,
                        text: String::new(),
                    });
                }
                Event::End(_) => {
                    open.pop().unwrap();
                }
                Event::Text(text) => {
                    if let Some(&at) = open.last() {
                        elements[at].text += &text.xml10_content();
                    }
                }
                Event::GeneralRef(reference) => {
                    let text = quick_xml::escape::unescape(&format!("&{};", &**reference))
                        .unwrap()
                        .into_owned();
                    elements[*open.last().unwrap()].text += &text;
                }
                Event::Eof => break,
                other => panic!("{other:?}"),
            }
        }
        for Flat { text, .. } in &mut elements {
            // Indentation, not text.
            if text.starts_with('\n') && text.trim().is_empty() {
                text.clear();
            }
        }
        elements
    }

    /// What [`read`] should give for an element that was written.
    pub(in super::super) fn written(element: &Element) -> Vec<Flat> {
        written_at(0, element)
    }

    fn written_at(depth: usize, element: &Element) -> Vec<Flat> {
        let attributes = element.attributes.iter();
        let flat = Flat {
            depth,
            name: element.name.to_owned(),
            attributes: attributes
                .map(|(name, value)| ((*name).to_owned(), value.clone()))
                .collect(),
            text: element.text.clone(),
        };
        let children = element.children.iter();
        std::iter::once(flat)
            .chain(children.flat_map(|child| written_at(depth + 1, child)))
            .collect()
    }

    #[test]
    fn markup_in_values_comes_back_as_it_went_in() {
        let hostile = "a'b\"c&d<e>f]]>g&amp;h--i\tj  ä\u{10FFFF}";
        let element = Element::new("a")
            .with("b", hostile)
            .holding([Element::of_text("c", hostile), Element::new("d")]);
        let document = element.to_document().unwrap();
        assert_eq!(read(&document), written(&element));
    }

    #[test]
    fn characters_that_xml_does_not_have_are_refused() {
        for text in [
            "\0",
            "\u{1}",
            "a\nb",
            "\r",
            "\u{1b}[2J",
            "\u{7f}",
            "\u{85}",
            "\u{FFFE}",
            "\u{FFFF}",
        ] {
            let attribute = Element::new("a").with("b", text).to_document();
            assert!(
                matches!(attribute, Err(HypervisorError::Text { place: "b", .. })),
                "{text:?}"
            );
            let content = Element::of_text("a", text).to_document();
            assert!(
                matches!(content, Err(HypervisorError::Text { place: "a", .. })),
                "{text:?}"
            );
        }
    }

    #[test]
    fn paths_that_are_relative_or_not_text_are_refused() {
        assert_eq!(path_text(Path::new("/a b/ä'")).unwrap(), "/a b/ä'");
        for bytes in [
            &b"disk"[..],
            b"",
            b"nbd:127.0.0.1:1",
            b"json:{}",
            b"/a\nb",
            b"/a\tb",
            b"/\xff",
            b"/\xed\xa0\x80",
        ] {
            let path = Path::new(OsStr::from_bytes(bytes));
            assert!(path_text(path).is_err(), "{path:?}");
        }
    }
}
