//! `snapshot`, `switch`, `delete` and `merge`: changes of the chain of deltas.

use std::process::ExitCode;

use ploop::image::{OfflineImage, Progress};
use ploop::{Guid, MergeParam, MergeTarget, SwitchFlag};
use serde::Serialize;

use crate::cli::{Delete, Merge, Snapshot, Switch};
use crate::output::{Failure, Output, Result};
use crate::progress::{bar, interrupt_flag};
use crate::source::Source;

/// What `snapshot` and `switch` print with `--json`.
#[derive(Serialize)]
struct Made {
    /// The new snapshot; null where there is none.
    guid: Option<Guid>,
}

pub(crate) fn snapshot(snapshot: &Snapshot, output: &Output) -> Result {
    let guid = open(&snapshot.source)?.snapshot()?;
    made(Some(guid), output)
}

pub(crate) fn switch(switch: &Switch, output: &Output) -> Result {
    let flags = match switch.keep_top {
        true => SwitchFlag::SKIP_DESTROY,
        false => SwitchFlag::empty(),
    };
    let kept = open(&switch.source)?.switch_snapshot_with(switch.guid, flags)?;
    made(kept, output)
}

fn made(guid: Option<Guid>, output: &Output) -> Result {
    if output.is_json() {
        output.json(&Made { guid })?;
    } else if let Some(guid) = guid {
        output.line(guid)?;
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn delete(delete: &Delete, output: &Output) -> Result {
    let mut image = open(&delete.source)?;
    let Some(guid) = delete.guid else {
        image.delete_top_delta()?;
        return Ok(ExitCode::SUCCESS);
    };
    with_progress(output, "merged", |progress| {
        image.delete_snapshot(guid, progress)
    })?;
    if image.descriptor()?.snapshot(guid).is_some() {
        output.warning(format_args!(
            "others stand upon {guid}, so it is marked as temporary, and goes when one is left of them"
        ));
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn merge(merge: &Merge, output: &Output) -> Result {
    let target = match (merge.guid, merge.all, merge.from.zip(merge.to)) {
        (Some(guid), ..) => MergeTarget::Snapshot(guid),
        (None, true, _) => MergeTarget::All,
        (None, false, Some((from, to))) => MergeTarget::Range { from, to },
        (None, false, None) => MergeTarget::Top,
    };
    let mut param = MergeParam::new(target);
    if let Some(file) = &merge.output {
        param = param.new_delta(file);
    }
    let mut image = open(&merge.source)?;
    with_progress(output, "merged", |progress| image.merge(&param, progress))?;
    Ok(ExitCode::SUCCESS)
}

/// Opens an image to change it. Ctrl-C ends what copies data, and leaves what a failure leaves.
pub(crate) fn open(source: &crate::cli::Source) -> Result<OfflineImage> {
    match Source::find(source)? {
        Source::Descriptor(path) => {
            let mut image = OfflineImage::open(path)?;
            image.set_cancel(Some(interrupt_flag()?));
            Ok(image)
        }
        Source::Delta(path) => Err(Failure::Request(format!(
            "{}: this is one delta; name the descriptor of the image that is to be changed",
            path.display()
        ))),
    }
}

pub(crate) fn with_progress<T>(
    output: &Output,
    verb: &'static str,
    work: impl FnOnce(&mut dyn FnMut(Progress)) -> ploop::Result<T>,
) -> Result<T> {
    let bar = bar(output, verb);
    let result = work(&mut |progress| {
        bar.set_length(progress.total.bytes());
        bar.set_position(progress.copied.bytes());
    });
    bar.finish_and_clear();
    Ok(result?)
}
