//! Verdicts as JUnit XML, as CI systems read it: one suite, one case a test.
//!
//! There is no standard; the elements and attributes are those that Jenkins, GitLab and GitHub's
//! reporters read alike.

use std::io;

use quick_xml::Writer;
use quick_xml::events::{BytesDecl, BytesText, Event};

use super::{Judged, Verdict};

/// The document.
pub(super) fn document(all: &[Judged], seconds: f64) -> io::Result<Vec<u8>> {
    let count = |verdict| {
        let same = all.iter().filter(|judged| judged.verdict() == verdict);
        same.count().to_string()
    };
    let counts = [
        ("tests", all.len().to_string()),
        ("failures", count(Verdict::Fail)),
        ("errors", count(Verdict::Error)),
        ("time", format!("{seconds:.3}")),
    ];
    let counts = || counts.iter().map(|(name, value)| (*name, value.as_str()));
    let mut writer = Writer::new_with_indent(Vec::new(), b' ', 2);
    writer.write_event(Event::Decl(BytesDecl::new("1.0", Some("UTF-8"), None)))?;
    writer
        .create_element("testsuites")
        .with_attributes([("name", "ironboot")])
        .with_attributes(counts())
        .write_inner_content(|writer| {
            writer
                .create_element("testsuite")
                .with_attributes([("name", "ironboot test")])
                .with_attributes(counts())
                .write_inner_content(|writer| {
                    all.iter().try_for_each(|judged| case(writer, judged))
                })?;
            Ok(())
        })?;
    let mut document = writer.into_inner();
    document.push(b'\n');
    Ok(document)
}

fn case(writer: &mut Writer<Vec<u8>>, judged: &Judged) -> io::Result<()> {
    let name = clean(&judged.case.name);
    let class = clean(&judged.case.image.to_string());
    let course = judged.result.as_ref().ok().map(|tested| &tested.course);
    let time = course.map_or(0.0, |course| course.decided.as_secs_f64());
    let time = format!("{time:.3}");
    let element = writer.create_element("testcase").with_attributes([
        ("classname", class.as_str()),
        ("name", name.as_str()),
        ("time", time.as_str()),
    ]);
    let Some(why) = judged.why() else {
        element.write_empty()?;
        return Ok(());
    };
    let tag = match judged.verdict() {
        Verdict::Error => "error",
        Verdict::Fail | Verdict::Pass => "failure",
    };
    let causes = why.causes.iter().map(String::as_str);
    let details = [why.message].into_iter().chain(causes);
    let details: Vec<&str> = details.chain(why.line).chain(why.hint).collect();
    element.write_inner_content(|writer| {
        let message = clean(why.message);
        writer
            .create_element(tag)
            .with_attributes([("type", why.kind), ("message", message.as_str())])
            .write_text_content(BytesText::new(&clean(&details.join("\n"))))?;
        if let Some(course) = course {
            writer
                .create_element("system-out")
                .write_text_content(BytesText::new(&clean(&course.tail.join("\n"))))?;
        }
        Ok(())
    })?;
    Ok(())
}

/// The text without what XML 1.0 has no characters for.
fn clean(text: &str) -> String {
    let is_char = |c: char| {
        matches!(c, '\t' | '\n' | '\r' | '\u{20}'..='\u{d7ff}' | '\u{e000}'..='\u{fffd}')
            || c >= '\u{10000}'
    };
    let chars = text.chars();
    chars
        .map(|c| if is_char(c) { c } else { '\u{fffd}' })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_that_xml_has_not_are_replaced() {
        assert_eq!(
            clean("a\u{1b}[0m\0é\u{ffff}\t𝄞"),
            "a\u{fffd}[0m\u{fffd}é\u{fffd}\t𝄞"
        );
    }
}
