//! One function a verb: from what was typed to a use case, and from its result to output.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use futures_util::stream::{self, StreamExt};
use serde_json::json;

use crate::cli::args::{ChoiceArgs, Cli, ImageArgs, ItselfVerb, PrintWord, ProgressWord, Verb};
use crate::cli::output::Planned;
use crate::cli::progress::{Amount, Drawing, Form};
use crate::cli::report::Report;
use crate::cli::request::{binds, forward, generated_name, image_request, instance_request};
use crate::cli::terminal::{self, Left, Signals, Sink};
use crate::cli::{
    Ended, completion, doctor, environment, image_verbs, man, open_hypervisor, output, script, ssh,
    test, text,
};
use crate::domain::{DomainName, DomainSpec, Machine};
use crate::host::Host;
use crate::hypervisor::qemu::args::MonitorSocket;
use crate::hypervisor::qemu::{self, Qemu};
use crate::hypervisor::{DomainState, HypervisorError, IfRunning, Stop};
use crate::instance::{InstanceError, Instances, Record};
use crate::oci::Reference;
use crate::ops::define::{self, Then};
use crate::ops::instances;
use crate::ops::prepare::{self, IfDifferent, InstanceRequest, Prepared};
use crate::ops::pull::{self, Extent, Pulled};
use crate::ops::run::Booted;
use crate::ops::{Context, OpsError, Progress, list, resolve, run};
use crate::source::{SourceError, SourceOptions};
use crate::store::Store;

/// Images that one `pull` pulls at the same time.
const PULLS_AT_ONCE: usize = 4;

/// Executes what was typed.
pub(super) async fn execute(cli: Cli) -> Result<Ended, Report> {
    let global = cli.global;
    if let Verb::Itself(verb) = cli.verb {
        return itself(verb);
    }
    let amount = match (global.quiet, global.verbose) {
        (true, _) => Amount::Quiet,
        (false, true) => Amount::Verbose,
        (false, false) => Amount::Normal,
    };
    let form = match global.progress {
        ProgressWord::Auto => Form::Auto,
        ProgressWord::Plain => Form::Plain,
        ProgressWord::Json => Form::Json,
    };
    let drawing = Arc::new(Drawing::new(amount, form));
    let report = |event| drawing.show(event);
    let root = environment::store(global.store.as_deref())
        .map_err(|error| Report::usage(format!("pass --store DIR: {error}")))?;
    if let Some(file) = global.authfile.as_ref().filter(|file| !file.exists()) {
        return Err(Report::usage(format!("no such file: {}", file.display())));
    }
    let directories = [&global.hosts_dir, &global.cert_dir];
    let mut directories = directories.into_iter().flatten();
    if let Some(none) = directories.find(|directory| !directory.is_dir()) {
        let none = none.display();
        return Err(Report::usage(format!("no such directory: {none}")));
    }
    let hearing = Arc::clone(&drawing);
    let store = Store::at(root);
    let sources = environment::sources(&global, move |failure| hearing.mirror_failed(failure));
    let (sources, trouble) = match sources {
        Ok(sources) => (sources, None),
        // Who asks what is wrong is to be told with all the rest.
        Err(error) if matches!(cli.verb, Verb::Doctor { .. }) => {
            (SourceOptions::default(), Some(error))
        }
        Err(error) => return Err(error.into()),
    };
    let context = Context {
        instances: Instances::at(store.instances()),
        store,
        sources,
        policy: environment::policy(&global),
        host: Host::probe(),
        firmware_directories: environment::firmware_directories(),
        now: environment::now(),
        libvirt: environment::own_libvirt(),
        open_hypervisor: &open_hypervisor,
        report: &report,
    };
    for path in context.sources.credentials.readable_by_others() {
        drawing.warn(&format!(
            "everybody may read the credentials in {}",
            path.display()
        ));
    }
    dispatch(&context, cli.verb, global.json, amount, trouble).await
}

async fn dispatch(
    context: &Context<'_>,
    verb: Verb,
    json: bool,
    amount: Amount,
    trouble: Option<SourceError>,
) -> Result<Ended, Report> {
    match verb {
        Verb::Plan { image } => plan(context, image).await,
        Verb::Pull {
            images,
            choice,
            all,
        } => pull(context, images, &choice, all).await,
        Verb::Prepare {
            image,
            machine,
            name,
        } => prepare(context, instance_request(context, image, machine, name)?).await,
        Verb::Define {
            image,
            machine,
            name,
            connect,
            start,
            replace,
            dry_run,
        } => {
            let request = instance_request(context, image, machine, name)?;
            let uri = environment::libvirt_uri(connect.connect.as_deref());
            if dry_run {
                return dry_define(context, &request, &uri).await;
            }
            let then = if start { Then::Start } else { Then::Nothing };
            let if_different = if replace {
                IfDifferent::Replace
            } else {
                IfDifferent::Fail
            };
            define(context, &request, &uri, if_different, then).await
        }
        Verb::Run {
            image,
            machine,
            name,
            detach,
            persistent,
            publish,
            bind,
            bind_ro,
            no_ssh,
            dry_run,
            print,
            qemu_arguments,
        } => {
            let name = name.map_or_else(|| generated_name("run-"), Ok)?;
            let mut request = instance_request(context, image, machine, name)?;
            request.ephemeral = !persistent && !detach;
            request.machine.ensure_console = true;
            request.machine.qemu_arguments = qemu_arguments;
            request.machine.binds = binds(bind, bind_ro)?;
            forward(&mut request.machine, publish)?;
            let print = print.or(dry_run.then_some(PrintWord::Argv));
            // A domain has neither, so what `define` would make of the same has not.
            request.machine.offers_ssh = !no_ssh && print != Some(PrintWord::Xml);
            // A VM that is kept does not change with the terminal that it is looked at from.
            if request.ephemeral && print != Some(PrintWord::Xml) {
                let machine = Machine::try_from(&request.image.wanted.architecture)?;
                request.image.boot.terminal = terminal::words(machine);
            }
            if let Some(form) = print {
                return dry_run_of(context, &request, form).await;
            }
            run_image(context, &request, detach, json).await
        }
        Verb::Test(args) => test::execute(context, *args).await,
        Verb::List => {
            let listed = list::list(context).await?;
            Ok(Ended::with(
                text::instances(&listed),
                output::instances(&listed),
            ))
        }
        Verb::Start { name, attach } => {
            let record = instances::start(context, &name).await?;
            if attach {
                return attach_to(context, &record, json).await;
            }
            Ok(Ended::with(
                format!("{name}\n"),
                output::instance(&record, Some("running")),
            ))
        }
        Verb::Stop {
            name,
            force,
            timeout,
        } => {
            let how = if force {
                Stop::Force
            } else {
                Stop::Graceful(timeout)
            };
            let record = instances::stop(context, &name, how).await?;
            Ok(Ended::with(
                format!("{name}\n"),
                output::instance(&record, Some("stopped")),
            ))
        }
        Verb::Rm { name, force } => {
            let if_running = if force {
                IfRunning::Stop
            } else {
                IfRunning::Fail
            };
            instances::remove(context, &name, if_running).await?;
            Ok(Ended::with(format!("{name}\n"), json!({"removed": name})))
        }
        Verb::Ssh {
            name,
            user,
            timeout,
            command,
        } => ssh::execute(context, &name, user, timeout, &command).await,
        Verb::Console { name } => console(context, &name).await,
        Verb::Logs { name, follow } => logs(context, &name, follow).await,
        Verb::Doctor { boot } => {
            let all = amount == Amount::Verbose;
            let wish = doctor::Wish { boot, all };
            Ok(doctor::execute(context, wish, trouble.as_ref()).await)
        }
        Verb::Image(verb) => image_verbs::execute(context, verb).await,
        // Was answered before there was a context.
        Verb::Itself(verb) => itself(verb),
    }
}

/// Needs nothing but the definitions, and works whatever is wrong with the host.
fn itself(verb: ItselfVerb) -> Result<Ended, Report> {
    match verb {
        ItselfVerb::Completion { shell } => Ok(completion::script(shell)),
        ItselfVerb::Man { directory: None } => man::page(),
        ItselfVerb::Man {
            directory: Some(directory),
        } => man::pages(&directory),
        ItselfVerb::Complete { words } => Ok(completion::candidates(words)),
    }
}

async fn plan(context: &Context<'_>, image: ImageArgs) -> Result<Ended, Report> {
    let request = image_request(context, image.reference, &image.choice)?;
    let resolved = resolve::resolve(context, &request).await?;
    let plan = resolved.planner.plan(&[])?;
    let selected = &resolved.selected;
    Ok(Ended::with(
        text::plan(selected, &plan, resolved.planner.firmware(), &context.store),
        output::plan(
            selected,
            Some(Planned {
                plan: &plan,
                firmware: resolved.planner.firmware(),
                inspected: None,
            }),
            &context.store,
            None,
        ),
    ))
}

async fn pull(
    context: &Context<'_>,
    references: Vec<Reference>,
    choice: &ChoiceArgs,
    all: bool,
) -> Result<Ended, Report> {
    let extent = if all { Extent::All } else { Extent::Needed };
    let mut requests = Vec::new();
    for reference in references {
        requests.push(image_request(context, reference, choice)?);
    }
    // Each is pulled to its end, whatever becomes of the others.
    let pulls = requests
        .iter()
        .map(|request| pull::pull(context, request, extent));
    let pulls = stream::iter(pulls).buffered(PULLS_AT_ONCE);
    let pulled: Vec<Result<Pulled, OpsError>> = pulls.collect().await;
    let is_one = pulled.len() == 1;
    let mut lines = String::new();
    let mut objects = Vec::new();
    let mut failures: VecDeque<Report> = VecDeque::new();
    for pulled in pulled {
        let pulled = match pulled {
            Ok(pulled) => pulled,
            Err(error) => {
                failures.push_back(error.into());
                continue;
            }
        };
        lines.push_str(&format!("{}\n", pulled.selected.image.manifest_digest));
        let plan = pulled.plan.as_ref().ok();
        let plan = plan.map(|(plan, inspected)| Planned {
            plan,
            firmware: pulled.planner.firmware(),
            inspected: Some(inspected),
        });
        let fetched = Some(pulled.fetched_bytes);
        objects.push(output::plan(
            &pulled.selected,
            plan,
            &context.store,
            fetched,
        ));
    }
    // One image is one object, as in `plan`; several are a list of such.
    let json = match objects.pop() {
        Some(only) if is_one => only,
        last => {
            objects.extend(last);
            json!({"images": objects})
        }
    };
    match failures.pop_front() {
        None => Ok(Ended::with(lines, json)),
        Some(failure) if is_one => Err(failure),
        Some(first) => Ok(Ended::partly(lines, json, first, failures.into())),
    }
}

async fn prepare(context: &Context<'_>, request: InstanceRequest) -> Result<Ended, Report> {
    let prepared = prepare::prepare(context, &request, None, IfDifferent::Fail).await;
    let (prepared, _lock) = prepared?;
    Ok(Ended::with(
        text::staged(&prepared.record.spec),
        prepared_object(context, &prepared),
    ))
}

/// The plan of an instance and its files.
fn prepared_object(context: &Context<'_>, prepared: &Prepared) -> serde_json::Value {
    let fetched = Some(prepared.fetched_bytes);
    let plan = Some(Planned {
        plan: &prepared.plan,
        firmware: prepared.firmware.as_ref(),
        inspected: Some(&prepared.inspected),
    });
    let mut object = output::plan(&prepared.selected, plan, &context.store, fetched);
    object["staged"] = output::staged(&prepared.record.spec);
    object["created"] = json!(prepared.is_new);
    object
}

async fn define(
    context: &Context<'_>,
    request: &InstanceRequest,
    uri: &str,
    if_different: IfDifferent,
    then: Then,
) -> Result<Ended, Report> {
    let hypervisor = open_hypervisor(uri)?;
    let defined = define::define(context, request, &*hypervisor, if_different, then).await;
    let outcome = defined.map_err(|error| {
        let is_different = matches!(
            error,
            OpsError::Instance(InstanceError::Different { .. }) if if_different == IfDifferent::Fail
        );
        let mut report = Report::from(error);
        if is_different {
            let hint = "pass --replace to remove that one, or choose another name";
            report.hint = Some(hint.to_owned());
        }
        report
    })?;
    let mut object = prepared_object(context, &outcome.prepared);
    let record = &outcome.prepared.record;
    object["domain"] = output::instance(record, Some(outcome.state.as_str()));
    object["changed"] = json!(outcome.is_changed);
    Ok(Ended::with(format!("{}\n", request.name), object))
}

async fn dry_define(
    context: &Context<'_>,
    request: &InstanceRequest,
    uri: &str,
) -> Result<Ended, Report> {
    // Refused before anything is asked for.
    let hypervisor = open_hypervisor(uri)?;
    let (_, spec, _) = prepare::describe(context, request, Some(&*hypervisor)).await?;
    let xml = domain_xml(uri, &spec).await?;
    let json = json!({"xml": xml, "staged": output::staged(&spec)});
    Ok(Ended::with(xml, json))
}

#[cfg(feature = "libvirt")]
async fn domain_xml(uri: &str, spec: &DomainSpec) -> Result<String, Report> {
    use crate::hypervisor::libvirt::Libvirt;
    let libvirt = Libvirt::open(uri)?;
    libvirt.xml(spec).await.map_err(Report::from)
}

#[cfg(not(feature = "libvirt"))]
async fn domain_xml(uri: &str, _spec: &DomainSpec) -> Result<String, Report> {
    open_hypervisor(uri)
        .map(|_| String::new())
        .map_err(Report::from)
}

async fn dry_run_of(
    context: &Context<'_>,
    request: &InstanceRequest,
    form: PrintWord,
) -> Result<Ended, Report> {
    if form == PrintWord::Xml {
        return dry_define(context, request, &environment::default_libvirt()).await;
    }
    let (plan, spec, own) = prepare::describe(context, request, None).await?;
    let command = qemu::args::command(&spec, MonitorSocket::Named)?;
    let daemons = qemu::virtiofs::commands(&spec).await?;
    let words: Vec<_> = command.iter().map(|word| word.to_string_lossy()).collect();
    let missing: u64 = plan
        .method
        .blobs()
        .iter()
        .filter(|blob| !context.store.seems_to_have(blob))
        .map(|blob| blob.size)
        .sum();
    let json = json!({
        "argv": words,
        "missing_bytes": missing,
        "staged": output::staged(&spec),
        "vm": spec,
    });
    let text = match form {
        PrintWord::Json => format!("{}\n", output::object(json.clone())),
        PrintWord::Argv | PrintWord::Xml => script::script(&spec, &own, &daemons, &command),
    };
    Ok(Ended::with(text, json))
}

async fn run_image(
    context: &Context<'_>,
    request: &InstanceRequest,
    detach: bool,
    json: bool,
) -> Result<Ended, Report> {
    // Heard from here on without a gap: one that comes while QEMU starts is answered afterwards.
    let mut signals = Signals::listen();
    let booted = run::boot(context, request, signals.next()).await;
    let running = match booted.map_err(|error| not_the_same(context, error))? {
        Booted::Running(running) => *running,
        Booted::Ended(number) => return Ok(Ended::by_signal(number)),
    };
    let record = running.prepared.record.clone();
    let spec = &record.spec;
    for bind in &spec.binds {
        (context.report)(Progress::Shared(bind.tag.clone()));
    }
    if detach {
        run::leave(running)?;
        let json = output::instance(&record, Some("running"));
        return Ok(Ended::with(format!("{}\n", spec.name), json));
    }
    let sink = if json { Sink::Stderr } else { Sink::Stdout };
    tell_how_to_leave(context);
    let left = terminal::attach(spec, &Qemu, sink, &mut signals).await;
    match left {
        Ok(Left::Detached) => {
            run::leave(running)?;
            let name = &spec.name;
            let text = format!(
                "\r\n{name} goes on running: `ironboot console {name}` to return, \
                 `ironboot rm --force {name}` to end it\n"
            );
            return Ok(Ended::with(
                text,
                output::instance(&record, Some("running")),
            ));
        }
        _ => drop(run::finish(context, running).await?),
    }
    match left {
        Ok(Left::Stopped) => Ok(Ended::with(
            String::new(),
            output::instance(&record, Some("stopped")),
        )),
        left => ended(left),
    }
}

/// The error of a `run`, which may have met a VM of that name that can go on as it is.
fn not_the_same(context: &Context<'_>, error: OpsError) -> Report {
    let name = match &error {
        OpsError::Instance(InstanceError::Different { name, .. }) => Some(name.clone()),
        _ => None,
    };
    let mut report = Report::from(error);
    if let Some(name) = name
        && let Ok((_, _)) = instances::find(context, &name)
    {
        report.hint = Some(format!(
            "go on with it as it is: `ironboot start --attach {name}`; or choose another name, or \
             remove it: `ironboot rm {name}`"
        ));
    }
    report
}

/// How a look at a console ends the program.
fn ended(left: Result<Left, OpsError>) -> Result<Ended, Report> {
    match left {
        Ok(Left::Signal(number)) => Ok(Ended::by_signal(number)),
        Ok(Left::Stopped | Left::Detached) => Ok(Ended::silently()),
        // Whoever read the guest's words has seen enough, as in `logs NAME | head`.
        Err(OpsError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
            Ok(Ended::silently())
        }
        Err(error) => Err(error.into()),
    }
}

async fn console(context: &Context<'_>, name: &DomainName) -> Result<Ended, Report> {
    let (record, hypervisor) = instances::find(context, name)?;
    let spec = &record.spec;
    let state = hypervisor.state(spec).await?;
    if state != DomainState::Running {
        let mut report = Report::from(HypervisorError::NotRunning {
            domain: name.clone(),
        });
        report.hint = Some(format!("`ironboot logs {name}` shows what it printed"));
        return Err(report);
    }
    let mut signals = Signals::listen();
    ended(terminal::attach(spec, &*hypervisor, Sink::Stdout, &mut signals).await)
}

/// Shows the console of a VM that was just started, and leaves the VM to itself.
async fn attach_to(context: &Context<'_>, record: &Record, json: bool) -> Result<Ended, Report> {
    let (_, hypervisor) = instances::find(context, &record.spec.name)?;
    let mut signals = Signals::listen();
    tell_how_to_leave(context);
    let sink = if json { Sink::Stderr } else { Sink::Stdout };
    ended(terminal::attach(&record.spec, &*hypervisor, sink, &mut signals).await)
}

fn tell_how_to_leave(context: &Context<'_>) {
    if terminal::is_attended() {
        (context.report)(Progress::Attached);
    }
}

async fn logs(context: &Context<'_>, name: &DomainName, follow: bool) -> Result<Ended, Report> {
    let (record, hypervisor) = instances::find(context, name)?;
    ended(if follow {
        terminal::follow(&record.spec, &*hypervisor).await
    } else {
        terminal::print_log(&record.spec).map(|()| Left::Stopped)
    })
}
