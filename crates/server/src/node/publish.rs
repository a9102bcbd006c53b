//! Checkpoints of the audit tree: signed when it has grown, written beside the data, shown to witnesses, and
//! sent to where somebody who has this disk in hand can't change them.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use highwater_audit::witness::Answer;
use highwater_audit::{AuditError, Checkpoint, SignedNote, Tree, Witness};

use super::{Node, rest, secrets};
use crate::outgoing::Outgoing;

/// File with the newest checkpoint.
const CHECKPOINT: &str = "audit.checkpoint";
/// File with the newest checkpoint that witnesses have signed.
const WITNESSED: &str = "audit.witnessed";
/// How long a witness or a receiver may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Where checkpoints are sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// A folder, in which each is a file that is never changed: `SIZE.checkpoint`.
    Folder(PathBuf),
    /// An address that takes them by POST.
    Url(String),
}

impl Destination {
    /// Reads a path or an address.
    pub fn parse(text: &str) -> Self {
        if text.starts_with("https://") || text.starts_with("http://") {
            Self::Url(text.to_owned())
        } else {
            Self::Folder(PathBuf::from(text))
        }
    }

    fn name(&self) -> String {
        match self {
            Self::Folder(folder) => folder.display().to_string(),
            Self::Url(url) => url.clone(),
        }
    }

    fn send(&self, size: u64, note: &SignedNote, outgoing: &Outgoing) -> anyhow::Result<()> {
        match self {
            Self::Folder(folder) => put(folder, size, note),
            Self::Url(url) => {
                let (status, answer) = post(url, &note.to_string(), outgoing)?;
                if !(200..300).contains(&status) {
                    let answer: String = answer.chars().take(200).collect();
                    bail!("it answers with status {status}: {answer}");
                }
                Ok(())
            }
        }
    }
}

/// Who is told of checkpoints.
#[derive(Debug, Clone, Default)]
pub struct PublishOptions {
    /// Asked to sign them.
    pub witnesses: Vec<Witness>,
    /// Sent to.
    pub destinations: Vec<Destination>,
    /// PEM files with certificates that these may have beside those that this machine believes.
    pub trusted: Vec<PathBuf>,
}

impl Node {
    /// The checkpoint that was written last.
    pub(super) fn last_checkpoint(&self) -> std::io::Result<Option<String>> {
        read(&self.options.data.join(CHECKPOINT))
    }

    /// Goes on from the checkpoint that was signed last, and from now on writes each beside the data.
    pub(super) fn publish_checkpoints(self: &Arc<Self>) -> anyhow::Result<()> {
        let go_on = |file: &str, take: &dyn Fn(SignedNote) -> Result<(), AuditError>| {
            let path = self.options.data.join(file);
            let last = read(&path).with_context(|| format!("{} can't be read", path.display()))?;
            let taken = last.map(|text| SignedNote::parse(&text).and_then(take));
            taken.transpose().with_context(|| format!("{} is not a checkpoint of this log", path.display()))
        };
        if let Some(last) = self.last_checkpoint()? {
            let size = SignedNote::parse(&last).and_then(|note| Checkpoint::parse(&note.text))?.size;
            let end = self.log.end(&highwater_log::audit::partition());
            ensure!(
                size <= end,
                "the log has lost rows that were acked: {} speaks of {size} entries of the audit trail, and the log has {end}; restore the data folder from a backup. To go on without what was lost, move that file away: whoever has kept a checkpoint will see the break",
                self.options.data.join(CHECKPOINT).display()
            );
        }
        go_on(CHECKPOINT, &|note| self.tree.continue_from(note))?;
        go_on(WITNESSED, &|note| self.tree.witnessed_is(note))?;
        let spawn = |task| self.machine.scheduler.spawn(task);
        let mut tasks: Vec<highwater_log::machine::Task> = vec![Box::pin(sign(Arc::downgrade(self)))];
        let PublishOptions { witnesses, destinations, .. } = &self.options.publish;
        if !witnesses.is_empty() || !destinations.is_empty() {
            tasks.push(Box::pin(tell(Arc::downgrade(self))));
        }
        super::lock(&self.background).extend(tasks.into_iter().map(spawn));
        Ok(())
    }
}

fn read(path: &Path) -> std::io::Result<Option<String>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes a checkpoint beside the data.
pub(super) fn keep_checkpoint(data: &Path, note: &str) -> anyhow::Result<()> {
    secrets::replace(&data.join(CHECKPOINT), note.as_bytes(), 0o644)
}

/// Signs the tree when it has grown, once a second at most.
async fn sign(node: Weak<Node>) {
    let mut published: Option<SignedNote> = None;
    let mut said = false;
    while let Some(node) = rest(&node, |options| options.checkpoint_every).await {
        let (tree, data) = (node.tree.clone(), node.options.data.clone());
        let known = published.clone();
        let signed = node.machine.scheduler.work(move || {
            let note = tree.checkpoint()?;
            if known.as_ref() != Some(&note) {
                keep_checkpoint(&data, &note.to_string())
                    .map_err(|error| AuditError::Missing(error.to_string()))?;
            }
            Ok::<_, AuditError>(note)
        });
        match signed.await {
            Ok(Ok(note)) => {
                said = false;
                published = Some(note);
            }
            // While the tree is built anew it is behind what was signed.
            Ok(Err(AuditError::Missing(detail))) => tracing::debug!(detail, "no checkpoint yet"),
            Ok(Err(error)) if !said => {
                said = true;
                tracing::error!(%error, "the audit trail is not what was signed; nothing is signed any more");
            }
            Ok(Err(_)) => {}
            Err(error) => tracing::error!(%error, "a checkpoint ended in a panic"),
        }
    }
}

/// Tells witnesses and destinations of new checkpoints until the node is gone.
async fn tell(node: Weak<Node>) {
    let mut told = Told::default();
    while let Some(node) = rest(&node, |options| options.publish_every).await {
        let (tree, data) = (node.tree.clone(), node.options.data.clone());
        let options = node.options.publish.clone();
        let scheduler = node.machine.scheduler.clone();
        // Others may take their time: the node is not held meanwhile.
        drop(node);
        let round = scheduler.work(move || {
            told.round(&tree, &data, &options);
            told
        });
        told = round.await.unwrap_or_else(|error| {
            tracing::error!(%error, "telling others of a checkpoint ended in a panic");
            Told::default()
        });
    }
}

/// How far witnesses and destinations know the tree, in the order of the options; what went wrong last.
#[derive(Default)]
struct Told {
    witnesses: Vec<u64>,
    destinations: Vec<u64>,
    said: std::collections::BTreeMap<String, String>,
}

impl Told {
    fn round(&mut self, tree: &Tree, data: &Path, options: &PublishOptions) {
        let outgoing =
            Outgoing { trusted: options.trusted.clone(), timeout: Some(PATIENCE), ..Outgoing::default() };
        // What is wrong with the tree itself is said by the one who signs it.
        let Ok(mut note) = tree.checkpoint() else { return };
        let Ok(Checkpoint { size, .. }) = Checkpoint::parse(&note.text) else { return };
        self.witnesses.resize(options.witnesses.len(), 0);
        self.destinations.resize(options.destinations.len(), 0);
        let mut cosigned = false;
        for (at, witness) in options.witnesses.iter().enumerate() {
            if self.witnesses[at] == size {
                continue;
            }
            let asked = ask(witness, tree, &mut self.witnesses[at], size, &mut note, &outgoing);
            cosigned |= asked.is_ok();
            self.note("witness", witness.name(), self.witnesses[at], asked);
        }
        if cosigned {
            let kept = secrets::replace(&data.join(WITNESSED), note.to_string().as_bytes(), 0o644)
                .and_then(|()| Ok(tree.witnessed_is(note.clone())?));
            self.note("folder", WITNESSED, size, kept);
        }
        for (at, destination) in options.destinations.iter().enumerate() {
            if self.destinations[at] == size {
                continue;
            }
            let sent = destination.send(size, &note, &outgoing);
            if sent.is_ok() {
                self.destinations[at] = size;
            }
            self.note("destination", &destination.name(), self.destinations[at], sent);
        }
    }

    /// Says what went wrong, once as long as it is the same.
    fn note(&mut self, kind: &'static str, name: &str, size: u64, outcome: anyhow::Result<()>) {
        let labels = [("kind", kind.to_owned()), ("name", name.to_owned())];
        metrics::gauge!("highwater_audit_published_entries", &labels).set(size as f64);
        let key = format!("{kind} {name}");
        match outcome {
            Ok(()) => {
                if self.said.remove(&key).is_some() {
                    tracing::info!(kind, name, size, "knows the newest checkpoint again");
                }
            }
            Err(error) => {
                metrics::counter!("highwater_audit_publish_failures_total", &labels).increment(1);
                let detail = format!("{error:#}");
                if self.said.get(&key) == Some(&detail) {
                    return;
                }
                let changed = error
                    .downcast_ref::<AuditError>()
                    .is_some_and(|error| matches!(error, AuditError::Changed(_)));
                if changed {
                    tracing::error!(kind, name, size, detail, "THE AUDIT TRAIL IS NOT WHAT OTHERS HAVE SEEN");
                } else {
                    tracing::warn!(
                        kind,
                        name,
                        size,
                        detail,
                        "could not be told of a checkpoint; it is tried again"
                    );
                }
                self.said.insert(key, detail);
            }
        }
    }
}

/// Asks a witness to sign the tree of `size` entries. `knows` is the tree that it has seen before.
fn ask(
    witness: &Witness,
    tree: &Tree,
    knows: &mut u64,
    size: u64,
    note: &mut SignedNote,
    outgoing: &Outgoing,
) -> anyhow::Result<()> {
    // After a start we don't know what it knows; it says so, and is asked again.
    for _ in 0..2 {
        let path = tree.consistency(*knows, size)?;
        let (status, answer) = post(&witness.url(), &Witness::question(*knows, &path, note), outgoing)?;
        match witness.answer(status, &answer, note)? {
            Answer::Cosigned => {
                *knows = size;
                return Ok(());
            }
            Answer::Knows(more) if more > size => bail!(AuditError::Changed(format!(
                "it has seen {more} entries, and here are {size}: entries were lost, or another node signs as this log"
            ))),
            Answer::Knows(other) => *knows = other,
        }
    }
    bail!("it changes its mind about the tree that it knows")
}

fn post(url: &str, body: &str, outgoing: &Outgoing) -> anyhow::Result<(u16, String)> {
    let agent = outgoing.agent(url)?;
    let answer = agent.post(url).content_type("text/plain; charset=utf-8").send(body);
    let mut answer = answer.with_context(|| format!("{url} can't be reached"))?;
    let text = answer.body_mut().with_config().limit(64 << 10).read_to_string();
    Ok((answer.status().as_u16(), text.with_context(|| format!("the answer of {url} can't be read"))?))
}

/// Puts a checkpoint into a folder. One that is there already must say the same.
fn put(folder: &Path, size: u64, note: &SignedNote) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("{} can't be made", folder.display()))?;
    let path = folder.join(format!("{size:020}.checkpoint"));
    if let Some(there) = read(&path)? {
        if SignedNote::parse(&there).is_ok_and(|there| there.text == note.text) {
            return Ok(());
        }
        bail!(AuditError::Changed(format!("{} is another checkpoint of as many entries", path.display())));
    }
    secrets::replace(&path, note.to_string().as_bytes(), 0o644)
}

#[cfg(test)]
mod tests {
    use super::*;
    use highwater_audit::Signer;

    #[test]
    fn a_checkpoint_in_a_folder_is_never_another_one() {
        let folder = tempfile::tempdir().unwrap();
        let signer = |seed| Signer::new("log.example", &[seed; 32]).unwrap();
        let note = |root, seed| {
            Checkpoint { origin: "log.example".into(), size: 7, root: [root; 32] }.sign([&signer(seed)])
        };
        let into = folder.path().join("kept/here");
        put(&into, 7, &note(1, 1)).unwrap();
        put(&into, 7, &note(1, 2)).unwrap();
        let error = put(&into, 7, &note(2, 1)).unwrap_err();
        assert!(matches!(error.downcast_ref(), Some(AuditError::Changed(_))), "{error:#}");
        let there: Vec<_> = std::fs::read_dir(&into).unwrap().map(|file| file.unwrap().file_name()).collect();
        assert_eq!(there, ["00000000000000000007.checkpoint"]);
        let kept = std::fs::read_to_string(into.join("00000000000000000007.checkpoint")).unwrap();
        assert_eq!(kept, note(1, 1).to_string());
    }
}
