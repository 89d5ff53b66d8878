//! What the definitions of `args` can not say: examples, exit statuses, variables and files. For the
//! help texts and the manual pages.

/// When this was changed last, for the pages.
pub(super) const DATE: &str = "2026-11-25";

/// Words that lead to a verb, what an example does, and how it is typed.
pub(super) const EXAMPLES: &[(&str, &str, &str)] = &[
    (
        "",
        "Show what an image would boot, and why",
        "ironboot plan reg.example/os:1",
    ),
    (
        "",
        "Boot it, with its console here; Ctrl-] leaves it",
        "ironboot run reg.example/os:1",
    ),
    ("", "See what this host lacks", "ironboot doctor"),
    (
        "plan",
        "Why does it not boot by UEFI?",
        "ironboot plan --boot uki reg.example/os:1",
    ),
    (
        "plan",
        "The same for a program",
        "ironboot plan --json reg.example/os:1 | jq .alternatives",
    ),
    (
        "pull",
        "What this host needs of two images",
        "ironboot pull reg.example/os:1 reg.example/os:2",
    ),
    (
        "pull",
        "An image whole, as a mirror would have it",
        "ironboot pull --all reg.example/os:1",
    ),
    (
        "run",
        "Boot an image; its disk is gone when it stops",
        "ironboot run reg.example/os:1",
    ),
    (
        "run",
        "In the background, with the guest's SSH at port 2222 of this host",
        "ironboot run --detach --name web -p 2222:22 reg.example/os:1",
    ),
    (
        "run",
        "Its disk by UEFI firmware, with more of everything",
        "ironboot run --boot disk --cpus 4 -m 8G --disk-size 40G reg.example/os:1",
    ),
    (
        "run",
        "Print the command that would run it, and touch nothing",
        "ironboot run --dry-run oci:images:os",
    ),
    (
        "test",
        "Whether it comes up to a login prompt",
        "ironboot test reg.example/os:1",
    ),
    (
        "test",
        "Answer a prompt, and wait for what comes of it",
        "ironboot test reg.example/os:1 --expect login: --send root --expect '^Linux'",
    ),
    (
        "test",
        "Both ways to boot, for a CI job",
        "ironboot test reg.example/os:1 --matrix boot=direct,disk --junit boot.xml",
    ),
    (
        "test",
        "Execute a command in the guest; its exit status decides",
        "ironboot test reg.example/os:1 --exec /usr/lib/os/self-test",
    ),
    (
        "test",
        "Test again what failed there, as it was",
        "ironboot test --reproduce failed/reg.example_os_1_amd64_disk",
    ),
    (
        "ssh",
        "A shell in a guest that runs in the background",
        "ironboot ssh web",
    ),
    (
        "ssh",
        "One command; the exit status is the command's",
        "ironboot ssh web -- systemctl is-system-running --wait",
    ),
    (
        "prepare",
        "The paths of the files that a VM needs",
        "ironboot prepare --json --name vm-1 reg.example/os:1 | jq .staged",
    ),
    (
        "define",
        "A domain of libvirt's that runs from now on",
        "ironboot define --name web --start reg.example/os:1",
    ),
    (
        "define",
        "See its XML first",
        "ironboot define --name web --dry-run reg.example/os:1",
    ),
    (
        "list",
        "Those that run",
        "ironboot list --json | jq .instances",
    ),
    (
        "start",
        "Start one that was stopped, and look",
        "ironboot start web",
    ),
    (
        "stop",
        "Give it two minutes",
        "ironboot stop --timeout 120 web",
    ),
    ("rm", "Whether it runs or not", "ironboot rm --force web"),
    (
        "console",
        "Its console; Ctrl-] leaves it",
        "ironboot console web",
    ),
    (
        "logs",
        "All it has printed, and what it goes on to print",
        "ironboot logs --follow web",
    ),
    (
        "doctor",
        "What keeps this host from booting anything?",
        "ironboot doctor",
    ),
    (
        "doctor",
        "All that is not well, for a program",
        "ironboot doctor --json | jq '.checks[] | select(.status != \"ok\")'",
    ),
    ("completion", "For this shell", "ironboot completion bash"),
    ("man", "Read it", "ironboot man | man -l -"),
    (
        "man",
        "Install all pages",
        "ironboot man /usr/local/share/man/man1",
    ),
    (
        "image list",
        "The images here and what they take",
        "ironboot image list",
    ),
    (
        "image inspect",
        "Who has signed it, and what is in it",
        "ironboot image inspect reg.example/os:1",
    ),
    (
        "image rm",
        "Forget an image",
        "ironboot image rm reg.example/os:1",
    ),
    (
        "image prune",
        "What would go of images that were not used for a month",
        "ironboot image prune --dry-run --older-than 30d",
    ),
    (
        "image prune",
        "Keep the blobs below 20 GiB",
        "ironboot image prune --keep-bytes 20G",
    ),
    ("image verify", "Hash everything", "ironboot image verify"),
    (
        "image verify",
        "And fetch what is wrong again",
        "ironboot image verify --repair",
    ),
    (
        "image build",
        "An image of one disk",
        "ironboot image build -o oci:images:os -m arch=amd64,disk=disk.raw",
    ),
    (
        "image push",
        "To a registry",
        "ironboot image push oci:images:os reg.example/os:1",
    ),
];

/// Exit statuses and what they mean.
pub(super) const EXIT_STATUSES: &[(&str, &str)] = &[
    ("0", "Done."),
    ("1", "The guest failed its `test`."),
    ("2", "The command line is wrong."),
    (
        "69",
        "This host can not run it: ironboot-doctor(1) tells what is missing.",
    ),
    ("124", "It took too long."),
    (
        "125",
        "Anything else that ironboot could not do; the error says what.",
    ),
    ("128 + N", "Ended by signal N."),
];

/// Variables that are read, besides those of options.
pub(super) const ENVIRONMENT: &[(&str, &str)] = &[
    ("IRONBOOT_STORE", "The store, if --store does not name it."),
    (
        "IRONBOOT_POLICY",
        "The policy of signatures, if --policy does not name it.",
    ),
    (
        "IRONBOOT_HOSTS_DIR",
        "Mirrors and certificates, if --hosts-dir does not name them.",
    ),
    (
        "REGISTRY_AUTH_FILE",
        "Credentials for registries, if --authfile does not name them.",
    ),
    (
        "DOCKER_CONFIG",
        "The directory of docker's config.json; else ~/.docker.",
    ),
    (
        "LIBVIRT_DEFAULT_URI",
        "The libvirt to connect to, if --connect does not name it.",
    ),
    (
        "HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, NO_PROXY",
        "Proxies for every registry that is not on loopback; in lower case too, which is stronger.",
    ),
    ("PATH", "Where QEMU and other programs are looked for."),
    (
        "TERM",
        "The kind of terminal, which a guest's console is told.",
    ),
    (
        "GITHUB_ACTIONS, GITHUB_STEP_SUMMARY",
        "If the first is true, `test` annotates and sums up the run there.",
    ),
    ("NO_COLOR", "No colours, whatever it is set to."),
    ("HOME", "Where what follows is if it is not set."),
    (
        "XDG_DATA_HOME",
        "The store of who is not root is below it; else ~/.local/share.",
    ),
    (
        "XDG_CONFIG_HOME",
        "Credentials, mirrors and firmware of one's own are below it; else ~/.config.",
    ),
    ("XDG_RUNTIME_DIR", "podman's credentials are below it."),
];

/// Files that are read or written.
pub(super) const FILES: &[(&str, &str)] = &[
    ("/var/lib/ironboot", "The store of root."),
    ("~/.local/share/ironboot", "The store of everybody else."),
    (
        "$XDG_RUNTIME_DIR/containers/auth.json, ~/.config/containers/auth.json, ~/.docker/config.json",
        "Credentials for registries, as podman and docker write them; the first that knows the \
         registry decides.",
    ),
    (
        "~/.config/ironboot/certs.d, /etc/ironboot/certs.d, /etc/containerd/certs.d",
        "Mirrors and certificates: REGISTRY/hosts.toml.",
    ),
    (
        "/etc/ironboot/policy.json, /etc/containers/policy.json",
        "Which images are let in: the first that is there.",
    ),
    (
        "~/.config/qemu/firmware, /etc/qemu/firmware, /usr/share/qemu/firmware",
        "Descriptors of firmware.",
    ),
];

/// The examples of the verb that `path` leads to.
pub(super) fn examples(path: &str) -> impl Iterator<Item = (&'static str, &'static str)> {
    let own = EXAMPLES.iter().filter(move |(verb, _, _)| *verb == path);
    own.map(|(_, does, line)| (*does, *line))
}
