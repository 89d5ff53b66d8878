//! The tests of one call: each image, each way.

use crate::boot::FirmwareWish;
use crate::cli::args::{Axis, BootWord, ChoiceArgs, ImageArgs, MachineArgs, PassArgs, TestArgs};
use crate::cli::report::Report;
use crate::cli::request::{absolute, generated_name, instance_request};
use crate::domain::Nic;
use crate::oci::Reference;
use crate::ops::Context;
use crate::ops::prepare::InstanceRequest;
use crate::ops::test::Ready;

/// One test.
#[derive(Debug, Clone)]
pub(super) struct Case {
    /// Its name: the same for the same image tested the same way.
    pub name: String,
    pub image: Reference,
    pub choice: ChoiceArgs,
    pub machine: MachineArgs,
}

/// Most tests of one call.
const MAX_CASES: usize = 1024;

/// All tests that are asked for, in order. Errors if there are too many or two are the same.
pub(super) fn cases(context: &Context<'_>, args: &TestArgs) -> Result<Vec<Case>, Report> {
    let mut cases = Vec::new();
    for image in &args.images {
        cases.push(Case {
            name: String::new(),
            image: absolute(image.clone())?,
            choice: args.choice.clone(),
            machine: args.machine.clone(),
        });
    }
    for axis in &args.matrix {
        cases = cases.iter().flat_map(|case| each(case, axis)).collect();
        if cases.len() > MAX_CASES {
            let message = format!("--matrix makes more than {MAX_CASES} tests");
            return Err(Report::usage(message));
        }
    }
    for case in &mut cases {
        case.name = name(context, args, case);
    }
    for (place, case) in cases.iter().enumerate() {
        if cases[..place].iter().any(|other| other.name == case.name) {
            let name = &case.name;
            return Err(Report::usage(format!("it is to be tested twice: {name}")));
        }
    }
    Ok(cases)
}

/// The test, each way that the axis has.
fn each(case: &Case, axis: &Axis) -> Vec<Case> {
    fn with<T: Clone>(case: &Case, values: &[T], set: impl Fn(&mut Case, T)) -> Vec<Case> {
        let values = values.iter().cloned();
        values
            .map(|value| {
                let mut case = case.clone();
                set(&mut case, value);
                case
            })
            .collect()
    }
    match axis {
        Axis::Arch(values) => with(case, values, |case, arch| case.choice.arch = Some(arch)),
        Axis::Boot(values) => with(case, values, |case, boot| case.choice.boot = boot),
        Axis::Firmware(values) => with(case, values, |case, firmware| {
            case.choice.firmware = firmware;
        }),
        Axis::Uki(values) => with(case, values, |case, uki| case.choice.uki = Some(uki)),
        Axis::Accel(values) => with(case, values, |case, accel| case.machine.accel = accel),
    }
}

/// The image, the architecture, how it boots if that was asked for, and the accelerator if there are
/// several: one test has the same name wherever it runs.
fn name(context: &Context<'_>, args: &TestArgs, case: &Case) -> String {
    let choice = &case.choice;
    let architecture = choice.arch.as_ref();
    let mut words = vec![
        case.image.to_string(),
        architecture
            .unwrap_or(&context.host.architecture)
            .to_string(),
    ];
    if choice.boot != BootWord::Auto {
        words.push(value_name(choice.boot));
    }
    if let Some(uki) = choice.uki {
        words.push(format!("uki={}", value_name(uki)));
    }
    if choice.firmware != FirmwareWish::default() {
        words.push(format!("firmware={}", choice.firmware));
    }
    if args
        .matrix
        .iter()
        .any(|axis| matches!(axis, Axis::Accel(_)))
    {
        words.push(format!("accel={}", value_name(case.machine.accel)));
    }
    words.join(" ")
}

/// The word by which a value is given.
pub(super) fn value_name(value: impl clap::ValueEnum) -> String {
    let value = value.to_possible_value();
    value.map_or_else(String::new, |value| value.get_name().to_owned())
}

impl Case {
    /// The VM of the test, under a name of its own.
    pub(super) fn request(
        &self,
        context: &Context<'_>,
        pass: &PassArgs,
    ) -> Result<InstanceRequest, Report> {
        let image = ImageArgs {
            reference: self.image.clone(),
            choice: self.choice.clone(),
        };
        let name = generated_name("test-")?;
        let mut request = instance_request(context, image, self.machine.clone(), name)?;
        request.ephemeral = true;
        request.machine.ensure_console = true;
        request.machine.is_observed = true;
        // What is not asked for is not offered: an image is tested as it is.
        let asks_ssh = pass.exec.is_some() || pass.ready() == Some(Ready::Ssh);
        if asks_ssh && !matches!(request.machine.nic, Some(Nic::User { .. })) {
            let message = "--exec and --ready ssh need --network user";
            return Err(Report::usage(message.to_owned()));
        }
        request.machine.offers_ssh = asks_ssh;
        Ok(request)
    }
}
