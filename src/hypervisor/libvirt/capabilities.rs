//! What libvirt's capabilities tell about the user that QEMU runs as.

use quick_xml::Reader;
use quick_xml::events::Event;

use crate::hypervisor::Owner;

/// Returns the user that libvirt runs QEMU as: the base label of security model `dac`.
///
/// None if libvirt does not tell, as one that changes no owners does.
pub(super) fn qemu_user(capabilities: &str) -> Option<Owner> {
    let mut reader = Reader::from_str(capabilities);
    // The models are listed one after the other, each with its name before its labels.
    let mut model = String::new();
    let mut element = String::new();
    loop {
        match reader.read_event().ok()? {
            Event::Start(start) => element = start.name().as_ref().to_owned(),
            Event::Text(text) if element == "model" => model = text.xml10_content().into_owned(),
            Event::Text(text) if element == "baselabel" && model == "dac" => {
                return owner(&text.xml10_content());
            }
            Event::End(_) => element.clear(),
            Event::Eof => return None,
            _ => {}
        }
    }
}

/// Parses `+UID:+GID`; the plus tells numbers from names.
fn owner(label: &str) -> Option<Owner> {
    let (uid, gid) = label.split_once(':')?;
    Some(Owner {
        uid: uid.strip_prefix('+')?.parse().ok()?,
        gid: gid.strip_prefix('+')?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn capabilities(models: &str) -> String {
        format!(
            "<capabilities>\n  <host>\n    <cpu>\n      <model>dac</model>\n    </cpu>\n{models}\n  </host>\n</capabilities>\n"
        )
    }

    #[test]
    fn the_user_is_the_base_label_of_dac() {
        let models = "<secmodel>\n<model>selinux</model>\n<baselabel type='kvm'>+1:+1</baselabel>\n</secmodel>\n\
            <secmodel>\n<model>dac</model>\n<doi>0</doi>\n<baselabel type='kvm'>+64055:+108</baselabel>\n</secmodel>";
        assert_eq!(
            qemu_user(&capabilities(models)),
            Some(Owner {
                uid: 64055,
                gid: 108
            })
        );
    }

    #[test]
    fn no_label_or_one_in_words_is_no_user() {
        for models in [
            "",
            "<secmodel><model>none</model></secmodel>",
            "<secmodel><model>dac</model></secmodel>",
            "<secmodel><model>dac</model><baselabel>qemu:qemu</baselabel></secmodel>",
            "<secmodel><model>dac</model><baselabel>+1:+99999999999</baselabel></secmodel>",
        ] {
            assert_eq!(qemu_user(&capabilities(models)), None, "{models}");
        }
    }
}
