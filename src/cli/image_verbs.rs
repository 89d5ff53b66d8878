//! The verbs under `image`: from what was typed to a use case, and from its result to output.

use serde_json::json;

use crate::cli::args::ImageVerb;
use crate::cli::report::Report;
use crate::cli::request::absolute;
use crate::cli::{Ended, output, text};
use crate::oci::reference::LayoutEntry;
use crate::oci::{LayoutForm, LayoutReference, Reference};
use crate::ops::build::{self, Form};
use crate::ops::verify::{self, Then};
use crate::ops::{Context, OpsError, images, prune, push};
use crate::store::{Act, Policy};

/// Executes one of the verbs.
pub(super) async fn execute(context: &Context<'_>, verb: ImageVerb) -> Result<Ended, Report> {
    match verb {
        ImageVerb::List => {
            let listed = images::list(context)?;
            Ok(Ended::with(text::images(&listed), output::images(&listed)))
        }
        ImageVerb::Inspect { image } => {
            let reference = absolute(image)?;
            let found = images::inspect(context, &reference).await?;
            let name = reference.to_string();
            Ok(Ended::with(
                text::inspection(&name, &found, &context.store),
                output::inspection(&name, &found, &context.store),
            ))
        }
        ImageVerb::Rm { images: references } => {
            let mut lines = String::new();
            let mut removed = Vec::new();
            for reference in references {
                let reference = absolute(reference)?;
                let freed = images::remove(context, &reference).await?;
                lines.push_str(&format!("{reference}\n"));
                removed.push(json!({
                    "reference": reference.to_string(),
                    "freed_bytes": freed,
                }));
            }
            Ok(Ended::with(lines, json!({"removed": removed})))
        }
        ImageVerb::Prune {
            older_than,
            keep_bytes,
            dry_run,
        } => {
            let policy = Policy {
                older_than,
                keep_bytes,
            };
            let act = if dry_run { Act::Look } else { Act::Remove };
            // Looked for before: a prune makes no store. Where there is none, there is nothing to
            // do, which is as well for whoever prunes every night.
            let is_there = context.store.is_there()?;
            let pruned = prune::prune(context, policy, act).await?;
            let text = if is_there {
                text::pruned(&pruned)
            } else {
                let root = context.store.root().display();
                format!("nothing freed: there is no store at {root}\n")
            };
            Ok(Ended::with(text, output::pruned(&pruned, act)))
        }
        ImageVerb::Verify { images, repair } => {
            let images: Vec<Reference> =
                images.into_iter().map(absolute).collect::<Result<_, _>>()?;
            let then = if repair { Then::Repair } else { Then::Tell };
            let verified = verify::verify(context, &images, then).await?;
            let (text, json) = (text::verified(&verified), output::verified(&verified));
            Ok(match verified.left() {
                0 => Ended::with(text, json),
                count => {
                    let was_tried = repair;
                    let error = OpsError::NotAsItShouldBe { count, was_tried };
                    Ended::wrong(text, json, Report::from(error))
                }
            })
        }
        ImageVerb::Build {
            output,
            manifests,
            compat,
        } => {
            let Reference::Layout(LayoutReference {
                form: LayoutForm::Directory,
                path: directory,
                entry: LayoutEntry::Name(name),
            }) = output
            else {
                return Err(Report::usage("--output is not oci:DIR:NAME".to_owned()));
            };
            let form = if compat {
                Form::Compat
            } else {
                Form::Specification
            };
            let built = build::build(&directory, &name, &manifests, form)?;
            Ok(Ended::with(
                format!("{}\n", built.digest),
                json!({"digest": built.digest}),
            ))
        }
        ImageVerb::Push { image, destination } => {
            let Reference::Registry(destination) = destination else {
                return Err(Report::usage(
                    "the destination is not in a registry".to_owned(),
                ));
            };
            let image = absolute(image)?;
            let pushed = push::push(context, &image, &destination).await?;
            Ok(Ended::with(
                format!("{}\n", pushed.top.digest),
                json!({
                    "reference": destination.to_string(),
                    "digest": pushed.top.digest,
                    "sent_bytes": pushed.sent_bytes,
                    "present_bytes": pushed.present_bytes,
                }),
            ))
        }
    }
}
