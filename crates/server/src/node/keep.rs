//! Housekeeping: small files of the lake are written together, what is past its retention goes, and
//! segments of the log that nobody needs any more are let go.

use std::path::Path;
use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;

use anyhow::{Context, ensure};
use highwater_event::{StreamName, StreamPartition};
use highwater_lake::{Compacted, LakeError, LakeStream, Past};
use highwater_log::audit::AUDIT;
use highwater_log::disk::RealDisk;
use highwater_log::{Extent, Retired};
use serde::Serialize;

use super::relations::MINUTE;
use super::{Node, keys, publish, rest, secrets};

/// Earlier versions of the lake can be read for this long.
const HISTORY: Duration = Duration::from_secs(7 * 24 * 3600);
/// When the first round begins.
const SOON: Duration = Duration::from_secs(5);
/// Rounds of housekeeping between two vacuums.
const VACUUM_EVERY: u32 = 60;

/// What a round did.
#[derive(Debug, Default, Clone, Serialize)]
pub struct Kept {
    /// Files of the lake that were written together, and what became of them.
    pub files_before: usize,
    /// Files after.
    pub files_after: usize,
    /// Files whose rows are past their retention.
    pub files_retired: usize,
    /// Files that no version needs any more.
    pub files_removed: usize,
    /// Entries of the audit trail of which only the hashes stay.
    pub entries_retired: u64,
    /// Segments of the log.
    pub segments_retired: usize,
    /// Bytes of those segments.
    pub bytes_retired: u64,
}

/// Keeps house until the node is gone.
pub async fn keep(node: Weak<Node>) {
    let mut round = 0u32;
    // The first soon: a node that is started again and again leaves small files, which each start has to read.
    while let Some(node) =
        rest(&node, |options| if round == 0 { SOON.min(options.keep_every) } else { options.keep_every })
            .await
    {
        round = round.wrapping_add(1);
        match node.keep_house(round.is_multiple_of(VACUUM_EVERY)).await {
            Ok(kept) if kept.files_before + kept.files_retired + kept.segments_retired > 0 => {
                tracing::info!(?kept, "kept house");
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(error = format!("{error:#}"), "housekeeping will be tried again"),
        }
    }
}

impl Node {
    /// One round of housekeeping.
    pub async fn keep_house(self: &Arc<Self>, vacuum: bool) -> anyhow::Result<Kept> {
        let _alone = self.keeping.lock().await;
        let mut kept = Kept::default();
        if !self.is_scheduled(&StreamName::system(AUDIT)) {
            match self.prune_trail().await {
                Ok(entries) => kept.entries_retired = entries,
                Err(error) => {
                    tracing::warn!(
                        error = format!("{error:#}"),
                        "the audit trail could not be kept this time"
                    )
                }
            }
        }
        let lakes: Vec<Arc<LakeStream>> =
            self.lakes.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        for lake in lakes {
            // Swaps move folders; they wait.
            let _no_swap = self.declaring.lock().await;
            let current = self.lake(&lake.stream().name);
            if !current.is_some_and(|current| Arc::ptr_eq(&current, &lake)) {
                continue;
            }
            if let Err(error) = self.keep_lake(&lake, vacuum, &mut kept).await {
                tracing::warn!(stream = %lake.stream().name, %error, "the lake of a stream could not be kept this time");
            }
        }
        let node = self.clone();
        let retired = self.machine.scheduler.work(move || node.journal.retire(&|extent| node.may_go(extent)));
        let Retired { segments, bytes } = retired.await??;
        kept.segments_retired = segments;
        kept.bytes_retired = bytes;
        Ok(kept)
    }

    /// Lets go what is past its retention now, of one stream or of all, instead of waiting for the next round.
    pub async fn let_go(self: &Arc<Self>, stream: Option<&StreamName>) -> anyhow::Result<Kept> {
        let _alone = self.keeping.lock().await;
        let mut kept = Kept::default();
        if stream.is_none_or(|stream| stream.as_str() == AUDIT) {
            kept.entries_retired = self.prune_trail().await?;
        }
        let lakes: Vec<Arc<LakeStream>> =
            self.lakes.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        for lake in lakes.iter().filter(|lake| stream.is_none_or(|stream| lake.stream().name == *stream)) {
            let _no_swap = self.declaring.lock().await;
            kept.files_retired += self.retire(lake).await?;
        }
        let node = self.clone();
        let retired = self.machine.scheduler.work(move || node.journal.retire(&|extent| node.may_go(extent)));
        let Retired { segments, bytes } = retired.await??;
        (kept.segments_retired, kept.bytes_retired) = (segments, bytes);
        Ok(kept)
    }

    /// Takes out files of a lake whose rows are past their retention; answers how many.
    async fn retire(&self, lake: &LakeStream) -> Result<usize, LakeError> {
        let mut files = 0;
        if lake.stream().name.as_str() == AUDIT {
            files += lake.retire(Past::Offset(self.tree.pruned())).await?;
        }
        if let Some(retention) = lake.stream().options.retention {
            // By the minute, as readers are told.
            let past = (self.machine.clock.now_micros() - retention).div_euclid(MINUTE) * MINUTE;
            files += lake.retire(Past::Recorded(past)).await?;
            self.retire_found(&lake.stream().name, past).await;
        }
        Ok(files)
    }

    /// Whether a schedule says when a stream's rows go that are past their retention.
    fn is_scheduled(&self, stream: &StreamName) -> bool {
        self.catalog().schedules.values().any(|entry| {
            let named = entry.schedule.input.get("stream").and_then(|name| name.as_str());
            entry.schedule.job == "retention" && named.is_none_or(|name| name == stream.public())
        })
    }

    async fn keep_lake(
        &self,
        lake: &Arc<LakeStream>,
        vacuum: bool,
        kept: &mut Kept,
    ) -> Result<(), LakeError> {
        let Compacted { removed, added, .. } = lake.compact().await?;
        kept.files_before += removed;
        kept.files_after += added;
        if !self.is_scheduled(&lake.stream().name) {
            kept.files_retired += self.retire(lake).await?;
        }
        if vacuum {
            kept.files_removed += lake.vacuum(HISTORY).await?;
        }
        Ok(())
    }

    /// True when nothing needs a segment any more: it is old enough, every view has read it, and what it
    /// holds is in the lake or past its retention.
    fn may_go(&self, extent: &Extent) -> bool {
        let now = self.machine.clock.now_micros();
        let old = now.saturating_sub(self.options.log_retention.as_micros() as i64);
        extent.recorded_until < old
            && extent.ranges.iter().all(|(at, _, end)| self.is_past(at, *end, now - extent.recorded_until))
    }

    fn is_past(&self, at: &StreamPartition, end: u64, age: i64) -> bool {
        let catalog = self.catalog();
        let known =
            catalog.streams.get(&at.stream.at_version(1)).filter(|entry| entry.schema.name == at.stream);
        let building =
            || catalog.building.values().any(|building| building.names().contains(&at.stream.at_version(1)));
        let Some(entry) = known else {
            // Dropped or replaced: nobody can ask for it.
            return !building();
        };
        let options = &entry.schema.options;
        let kept_elsewhere = options.lake || options.retention.is_some_and(|retention| age > retention);
        let readers = self.driver.readers(at);
        let read = readers.iter().all(|(_, mark)| *mark >= end);
        // A lake that is not running has not taken anything.
        let lake = format!("lake:{}", at.stream);
        let in_lake = !options.lake || readers.iter().any(|(name, mark)| *name == lake && *mark >= end);
        let ids = self
            .door
            .index(&at.stream)
            .is_none_or(|index| index.stored_until(at.partition).is_ok_and(|until| until >= end));
        kept_elsewhere && in_lake && read && ids
    }

    /// Copies everything that the node can't derive into an empty folder, while it goes on. The copy is a
    /// data folder: `highwater serve --data COPY` brings up what was durable when this began, or later.
    pub async fn back_up(self: &Arc<Self>, to: &Path) -> anyhow::Result<u64> {
        ensure!(to.is_absolute(), "name the folder by its whole path: the node writes it");
        // The nearest folder that is there says where it lies, whatever it is called.
        let there = to.ancestors().find_map(|folder| folder.canonicalize().ok());
        let data = self.options.data.canonicalize()?;
        ensure!(
            !there.is_some_and(|there| there.starts_with(data)),
            "{} lies in the data folder; a backup belongs on another disk",
            to.display()
        );
        let empty = match std::fs::read_dir(to) {
            Ok(mut entries) => entries.next().is_none(),
            Err(error) => error.kind() == std::io::ErrorKind::NotFound,
        };
        ensure!(empty, "{} is not empty", to.display());
        secrets::make_folder(to)?;
        // No segment may go between the copy of the lake and that of the log.
        let _alone = self.keeping.lock().await;
        // Before the log: entries that the copy lacks must not have been signed in it.
        let checkpoint = self.last_checkpoint()?;
        // The lake first: a lake that is ahead of its log would hide events.
        let lakes: Vec<(StreamName, Arc<LakeStream>)> = {
            let lakes = self.lakes.read().unwrap_or_else(PoisonError::into_inner);
            lakes.iter().map(|(name, lake)| (name.clone(), lake.clone())).collect()
        };
        for (name, lake) in lakes {
            lake.copy_to(&to.join("lake")).await.with_context(|| format!("the lake of {name}"))?;
        }
        let (node, folder) = (self.clone(), to.to_owned());
        let copied = self.machine.scheduler.work(move || {
            let bytes = node.journal.copy_to(&RealDisk, &folder.join("log"))?;
            secrets::copy(&node.options.data, &folder)?;
            keys::copy(&node.options.data, &folder)?;
            if let Some(checkpoint) = checkpoint {
                publish::keep_checkpoint(&folder, &checkpoint)?;
            }
            anyhow::Ok(bytes)
        });
        copied.await?
    }
}
