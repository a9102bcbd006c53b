//! `highwater audit`: the trail, proofs of its entries, and copies that verify themselves.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Subcommand;
use highwater_audit::export::{self, Trust};
use highwater_audit::{AuditError, Checkpoint, EventProof, SignedNote, Statement, Verifier, statement};
use serde_json::json;

use super::client::Client;
use super::read::{encode, objects, parse};
use super::{Failure, Output, Target, output};

#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// The newest entries.
    List {
        /// At most so many.
        #[arg(long, default_value_t = 50)]
        limit: usize,
        /// What the path contains; `failed` finds what did not succeed.
        #[arg(long)]
        endpoint: Option<String>,
        /// A client, or the name of a user.
        #[arg(long)]
        client_id: Option<String>,
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        output: Output,
    },
    /// Copy the whole trail, its checkpoint and its keys into a folder.
    Export {
        /// An empty folder.
        folder: PathBuf,
        #[command(flatten)]
        target: Target,
    },
    /// Verify a copy, or the trail of a node: every entry, the tree over them, the signatures. Exit code 8 when
    /// anything was changed.
    Verify {
        /// Folder with a copy; without it the trail of the node is copied and verified.
        #[arg(long)]
        export: Option<PathBuf>,
        /// The proof of one event instead, as `GET /events/{id}/proof` answers it. With --key nothing else is needed.
        #[arg(long, conflicts_with_all = ["export", "checkpoint"])]
        event: Option<PathBuf>,
        /// A verifier key that is known from elsewhere; without it those of the copy or of the node count. May be given several times.
        #[arg(long)]
        key: Vec<String>,
        /// For an event: what the keys have signed about their successors, as /audit/statements answers it, or as a copy has
        /// it; for a key from before a change. Without it the node is asked, if there is one.
        #[arg(long, requires = "event")]
        statements: Option<PathBuf>,
        /// A checkpoint that was kept elsewhere, which the trail must continue. May be given several times.
        #[arg(long)]
        checkpoint: Vec<PathBuf>,
        #[command(flatten)]
        target: Target,
    },
    /// Sign checkpoints with a new key from now on. The old key signs along until the next change, so that
    /// whoever knows it alone can go on verifying.
    RotateKey {
        /// The old key signs no more: for when others may have it.
        #[arg(long)]
        at_once: bool,
        #[command(flatten)]
        target: Target,
    },
    /// The proof that an entry is in the tree, as a file of its own.
    Proof {
        /// Place of the entry.
        id: u64,
        #[command(flatten)]
        target: Target,
    },
}

fn integrity(error: AuditError) -> Failure {
    match error {
        AuditError::Changed(detail) => Failure::new("integrity", detail).exit(8),
        other => Failure::new("unreadable", other.to_string()),
    }
}

/// `highwater audit`.
pub fn audit(command: AuditCommand) -> Result<ExitCode, Failure> {
    match command {
        AuditCommand::List { limit, endpoint, client_id, target, output } => {
            let mut path = format!("/api/v1/audit/logs?limit={limit}");
            for (name, value) in [("endpoint", endpoint), ("client_id", client_id)] {
                if let Some(value) = value {
                    path.push_str(&format!("&{name}={}", encode(&value)));
                }
            }
            let answer = parse(&Client::new(&target)?.get(&path)?)?;
            let columns = [
                "id", "time", "actor", "action", "resource", "outcome", "status", "method", "path", "address",
            ];
            output::print(output.output, &columns.map(str::to_owned), &objects(&answer["logs"]))?;
            Ok(ExitCode::SUCCESS)
        }
        AuditCommand::Export { folder, target } => {
            let size = copy(&Client::new(&target)?, &folder)?;
            eprintln!("{size} entries are in {}", folder.display());
            Ok(ExitCode::SUCCESS)
        }
        AuditCommand::Verify { event: Some(file), key, statements, target, .. } => {
            verify_event(&file, &lines(&key), statements.as_deref(), &target)
        }
        AuditCommand::Verify { export, event: None, key, checkpoint, target, .. } => {
            let keys = lines(&key)
                .iter()
                .map(|key| Verifier::parse(key))
                .collect::<Result<_, _>>()
                .map_err(|error| not_a_key(&error))?;
            let earlier = checkpoint
                .iter()
                .map(|file| SignedNote::parse(&std::fs::read_to_string(file)?).map_err(integrity))
                .collect::<Result<_, Failure>>()?;
            let trust = Trust { keys, earlier };
            let verified = match export {
                Some(folder) => export::verify_folder(&folder, &trust),
                None => {
                    let folder = std::env::temp_dir().join(format!("highwater-audit-{}", std::process::id()));
                    let client = Client::new(&target)?;
                    // A trail that can't be read to its end is not what was signed.
                    let copied = copy(&client, &folder).map_err(|failure| match failure.code.as_str() {
                        "io" => Failure::new("integrity", "the node can't hand out the whole trail; its log and `highwater job submit verify --follow` say why").exit(8),
                        _ => failure,
                    });
                    let verified = copied.map(|_| export::verify_folder(&folder, &trust));
                    std::fs::remove_dir_all(&folder).ok();
                    verified?
                }
            };
            let verified = verified.map_err(integrity)?;
            let Checkpoint { origin, size, root } = verified.checkpoint;
            let root = highwater_event::hexadecimal::show(&root);
            let said = json!({"verified": true, "origin": origin, "entries": size, "erased": verified.erased, "root": root, "continues": verified.continues});
            writeln!(std::io::stdout().lock(), "{said}")?;
            Ok(ExitCode::SUCCESS)
        }
        AuditCommand::RotateKey { at_once, target } => {
            let asked = json!({"at_once": at_once});
            let answer =
                parse(&Client::new(&target)?.call("POST", "/api/v1/audit/keys/rotate", Some(&asked))?)?;
            writeln!(std::io::stdout().lock(), "{}", answer["key"].as_str().unwrap_or_default())?;
            eprintln!("tell it to whoever verifies the trail: witnesses, and auditors who have the old one");
            Ok(ExitCode::SUCCESS)
        }
        AuditCommand::Proof { id, target } => {
            let proof = Client::new(&target)?.get(&format!("/api/v1/audit/entries/{id}/proof"))?;
            write!(std::io::stdout().lock(), "{proof}")?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Keys, one a line: files of them have several after a change.
fn lines(given: &[String]) -> Vec<&str> {
    given.iter().flat_map(|text| text.lines()).map(str::trim).filter(|line| !line.is_empty()).collect()
}

fn not_a_key(error: &AuditError) -> Failure {
    Failure::new("invalid_key", format!("--key: {error}")).exit(2)
}

/// Verifies the proof of an event, by keys that are given or those of the node.
fn verify_event(
    file: &Path,
    keys: &[&str],
    statements: Option<&Path>,
    target: &Target,
) -> Result<ExitCode, Failure> {
    let text = std::fs::read(file)
        .map_err(|error| Failure::new("unreadable", format!("{}: {error}", file.display())).exit(2))?;
    let text = String::from_utf8(text).map_err(|_| {
        integrity(AuditError::Changed("this is not the proof of an event: it is not text".into()))
    })?;
    let proof = EventProof::parse(&text).map_err(integrity)?;
    let asked;
    let keys: Vec<&str> = if keys.is_empty() {
        asked = Client::new(target)?.get("/audit/keys")?;
        eprintln!("verified with the keys of the node itself; --key takes one that you know from elsewhere");
        asked.lines().collect()
    } else {
        keys.to_vec()
    };
    let keys = keys.into_iter().map(Verifier::parse).collect::<Result<Vec<_>, _>>();
    let keys = keys.map_err(|error| not_a_key(&error))?;
    let said = match statements {
        Some(file) => std::fs::read_to_string(file)?,
        None => Client::new(target).and_then(|client| client.get("/audit/statements")).unwrap_or_default(),
    };
    let statements = statement::read(&said).map_err(integrity)?;
    let statements =
        statements.iter().map(Statement::open).collect::<Result<Vec<_>, _>>().map_err(integrity)?;
    // An old key vouches for the new one. What an old one has signed is not believed for the new one's sake: it may
    // have been changed for having been stolen.
    let keys = statement::successors(&keys, &statements);
    let proven = proof.verify(&keys).map_err(|error| match error {
        AuditError::Changed(detail) if detail.contains("no known key") => Failure::new("unknown_key", detail)
            .exit(8)
            .hint("a proof from before a change of keys is verified with the key of then (--key), or asked for anew; --statements says what leads from an old key to the new one"),
        other => integrity(other),
    })?;
    let Checkpoint { origin, size, root } = proven.checkpoint;
    let event = serde_json::from_str::<serde_json::Value>(&proven.event).unwrap_or(json!(proven.event));
    let root = highwater_event::hexadecimal::show(&root);
    let said = json!({"verified": true, "stream": proven.stream, "event": event, "sealed_at": proven.sealed_at,
        "entry": proven.entry, "origin": origin, "entries": size, "root": root});
    writeln!(std::io::stdout().lock(), "{said}")?;
    Ok(ExitCode::SUCCESS)
}

/// Copies the trail of a node into a folder; answers the number of entries.
fn copy(client: &Client, folder: &Path) -> Result<u64, Failure> {
    let empty = std::fs::read_dir(folder).map_or(true, |mut inside| inside.next().is_none());
    if !empty {
        return Err(Failure::new("not_empty", format!("{} is not empty", folder.display())).exit(2));
    }
    std::fs::create_dir_all(folder)?;
    let (keys, checkpoint) = (client.get("/audit/keys")?, client.get("/audit/checkpoint")?);
    let note = SignedNote::parse(&checkpoint).map_err(integrity)?;
    let size = Checkpoint::parse(&note.text).map_err(integrity)?.size;
    let mut entries = client.open(&format!("/api/v1/audit/export?size={size}"))?;
    let mut file = std::io::BufWriter::new(std::fs::File::create(folder.join(export::ENTRIES))?);
    let mut buffer = vec![0; 1 << 16];
    loop {
        let read = entries.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        file.write_all(&buffer[..read])?;
    }
    file.flush()?;
    std::fs::write(folder.join(export::CHECKPOINT), checkpoint)?;
    std::fs::write(folder.join(export::KEYS), keys)?;
    // After the entries: what goes meanwhile is explained by one of them.
    std::fs::write(folder.join(export::STATEMENTS), client.get("/audit/statements")?)?;
    Ok(size)
}
