//! Help texts and manual pages.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use crate::sandbox::{Sandbox, check};

/// The pages, in a directory of the sandbox.
fn pages(sandbox: &Sandbox) -> BTreeSet<String> {
    let directory = sandbox.path("man1");
    fs::create_dir(&directory).unwrap();
    let output = sandbox.run(format!("man {}", directory.display()));
    assert_eq!((output.status, output.stderr.as_str()), (0, ""));
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(&directory).unwrap() {
        names.insert(entry.unwrap().file_name().into_string().unwrap());
    }
    let printed: BTreeSet<String> = output
        .stdout
        .lines()
        .map(|line| line.replace("$TMP/man1/", ""))
        .collect();
    assert_eq!(printed, names);
    names
}

#[test]
fn every_verb_has_a_page_and_each_page_that_is_named_is_there() {
    let sandbox = Sandbox::new();
    let pages = pages(&sandbox);
    // Each verb of the help, by its line.
    for line in [sandbox.run("-h").stdout, sandbox.run("image -h").stdout]
        .concat()
        .lines()
    {
        let mut words = line.strip_prefix("  ").unwrap_or_default().split(' ');
        let Some(verb) = words
            .next()
            .filter(|verb| verb.starts_with(|c: char| c.is_ascii_lowercase()))
        else {
            continue;
        };
        let has_page = |name: String| pages.contains(&name);
        let is_there =
            has_page(format!("ironboot-{verb}.1")) || has_page(format!("ironboot-image-{verb}.1"));
        assert!(is_there || verb == "help", "{line}");
    }
    let mut named = 0;
    for page in &pages {
        let text = fs::read_to_string(sandbox.path("man1").join(page)).unwrap();
        let text = text
            .replace("\\-", "-")
            .replace("\\fB", "")
            .replace("\\fR", "");
        for (end, _) in text.match_indices("(1)") {
            let start = text[..end].rfind(|c: char| !c.is_ascii_alphanumeric() && c != '-');
            let name = &text[start.map_or(0, |start| start + 1)..end];
            if name.starts_with("ironboot") {
                named += 1;
                assert!(
                    pages.contains(&format!("{name}.1")),
                    "{page} names {name}(1)"
                );
            }
        }
    }
    assert!(named > pages.len());
}

#[test]
fn no_formatter_finds_anything_wrong_with_a_page() {
    let sandbox = Sandbox::new();
    for page in pages(&sandbox) {
        let path = sandbox.path("man1").join(&page);
        for (program, options) in [
            ("mandoc", &["-Tlint", "-Werror"][..]),
            ("groff", &["-k", "-ww", "-z", "-man", "-Tutf8"]),
        ] {
            let output = Command::new(program)
                .args(options)
                .arg(&path)
                .output()
                .unwrap();
            let said = [output.stdout, output.stderr].concat();
            assert_eq!(String::from_utf8(said).unwrap(), "", "{program}: {page}");
            assert!(output.status.success(), "{program}: {page}");
        }
    }
}

#[test]
fn the_page_names_every_variable_that_is_read() {
    let page = Sandbox::new().run("man").stdout;
    let page = page.replace("\\-", "-");
    let source = |file: &str| {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cli");
        fs::read_to_string(directory.join(file)).unwrap()
    };
    let is_name = |word: &str| {
        word.len() > 3
            && word
                .bytes()
                .all(|byte| byte.is_ascii_uppercase() || byte == b'_')
    };
    // Whatever is quoted where the environment is read, and what clap reads for an option.
    let (environment, arguments) = (source("environment.rs"), source("args.rs"));
    let read = environment.split('"').skip(1).step_by(2);
    let options = arguments.split("env = \"").skip(1);
    let options = options.filter_map(|rest| rest.split('"').next());
    let mut found = 0;
    for word in read.chain(options).filter(|word| is_name(word)) {
        found += 1;
        assert!(page.contains(word), "{word}");
    }
    assert!(found >= 15, "{found}");
    for heading in [
        "EXIT STATUS",
        "ENVIRONMENT",
        "FILES",
        "EXAMPLES",
        "SEE ALSO",
    ] {
        assert!(
            page.contains(&format!(".SH \"{heading}\""))
                || page.contains(&format!(".SH {heading}\n")),
            "{heading}"
        );
    }
}

#[test]
fn a_directory_that_is_not_there_is_named() {
    let sandbox = Sandbox::new();
    let none = sandbox.path("none").display().to_string();
    check(
        &sandbox.run_with("man", &none).text(),
        "
        ------- stderr -------
        error: can not write $TMP/none/ironboot.1: No such file or directory (os error 2)
        [exit status: 2]
        ",
    );
}

#[test]
fn a_typo_is_answered_with_what_was_meant() {
    let sandbox = Sandbox::new();
    for (typed, meant) in [
        ("plam", "a similar subcommand exists: 'plan'"),
        ("image inspekt x", "a similar subcommand exists: 'inspect'"),
        ("run --bot disk x", "a similar argument exists: '--boot'"),
        (
            "run --boot dsik r.example/os",
            "a similar value exists: 'disk'",
        ),
    ] {
        let output = sandbox.run(typed);
        assert_eq!(output.status, 2, "{typed}");
        assert!(output.stderr.contains(meant), "{typed}: {}", output.stderr);
    }
}
