//! A copy of the trail that anybody can verify, with this program or without it: docs/AUDIT.md says how.
//!
//! ```text
//! entries.ndjson   a line for each entry: {"entry":RECORD,"index":N,"salt":"HEX"}, in order and from 0;
//!                  {"commitment":"HEX","index":N} for an entry that something was taken out of or that is past its retention
//! checkpoint       the signed checkpoint of exactly these entries
//! keys             verifier keys, one a line
//! statements       what the keys have signed beside checkpoints: changes of keys, entries that are gone
//! ```
//! Every byte counts: a line that says the same in another form is a changed line.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use highwater_event::hexadecimal;

use crate::AuditError;
use crate::checkpoint::Checkpoint;
use crate::leaf::{Record, Salt, commitment, read_salt};
use crate::note::{SignedNote, Verifier};
use crate::statement::{self, Said, Statement};
use crate::tree::{Frontier, Hash, leaf_hash};

/// Name of the file with the entries.
pub const ENTRIES: &str = "entries.ndjson";
/// Name of the file with the checkpoint.
pub const CHECKPOINT: &str = "checkpoint";
/// Name of the file with the keys.
pub const KEYS: &str = "keys";
/// Name of the file with the statements.
pub const STATEMENTS: &str = "statements";
/// Bytes of the longest line: what an entry may hold is bounded where it is made.
const MAX_LINE: u64 = 4 << 20;

/// The line of an entry; when something was taken out of it, that of its commitment.
pub fn line(index: u64, record: &Record) -> String {
    let salt = match &record.salt {
        Salt::Kept(salt) => salt,
        Salt::Erased(commitment) => return erased_line(index, commitment),
    };
    format!("{{\"entry\":{},\"index\":{index},\"salt\":\"{}\"}}\n", record.json, hexadecimal::show(salt))
}

/// The line of an entry whose content is gone.
pub fn erased_line(index: u64, commitment: &Hash) -> String {
    format!("{{\"commitment\":\"{}\",\"index\":{index}}}\n", hexadecimal::show(commitment))
}

/// What an export showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// Entries of which only the commitment is there.
    pub erased: u64,
    /// The checkpoint that all of it leads to.
    pub checkpoint: Checkpoint,
    /// Sizes of the earlier checkpoints that it continues.
    pub continues: Vec<u64>,
}

/// Whom and what a verifier believes beside the export itself.
#[derive(Debug, Default)]
pub struct Trust {
    /// Keys that are known from elsewhere; without them those of the export count.
    pub keys: Vec<Verifier>,
    /// Checkpoints that were kept elsewhere: the export must continue each of them.
    pub earlier: Vec<SignedNote>,
}

fn changed(what: impl Into<String>) -> AuditError {
    AuditError::Changed(what.into())
}

fn unreadable(path: &Path) -> impl Fn(io::Error) -> AuditError {
    let path = path.display().to_string();
    move |error| AuditError::Missing(format!("{path} can't be read: {error}"))
}

/// Reads verifier keys, one a line.
pub fn read_keys(text: &str) -> Result<Vec<Verifier>, AuditError> {
    let lines = text.strip_suffix('\n').ok_or_else(|| changed("the list of keys does not end in a line"))?;
    lines.split('\n').map(Verifier::parse).collect()
}

/// Verifies a folder with an export.
pub fn verify_folder(folder: &Path, trust: &Trust) -> Result<Verified, AuditError> {
    let text = |name: &str| {
        let path = folder.join(name);
        let bytes = std::fs::read(&path).map_err(unreadable(&path))?;
        String::from_utf8(bytes).map_err(|_| changed(format!("{name} is not text")))
    };
    let path = folder.join(ENTRIES);
    let entries = BufReader::new(File::open(&path).map_err(unreadable(&path))?);
    // A log that has stated nothing needs no file for it.
    let statements = if folder.join(STATEMENTS).exists() { text(STATEMENTS)? } else { String::new() };
    let signed = Signed { checkpoint: text(CHECKPOINT)?, keys: text(KEYS)?, statements };
    verify(entries, &signed, trust)
}

/// What an export holds beside the entries.
#[derive(Debug, Clone, Default)]
pub struct Signed {
    /// The signed checkpoint.
    pub checkpoint: String,
    /// The keys.
    pub keys: String,
    /// The statements.
    pub statements: String,
}

/// A tree that the entries must lead to on their way.
struct Point {
    size: u64,
    root: Hash,
    /// A checkpoint that was kept, not a statement.
    kept: bool,
}

/// The statements of an export, with the entry before which there may be nothing but commitments.
fn read_statements(
    text: &str,
    origin: &str,
    believed: &[Verifier],
) -> Result<(Vec<Statement>, Vec<Point>), AuditError> {
    let notes = statement::read(text)?;
    let statements = notes.iter().map(Statement::open).collect::<Result<Vec<_>, _>>()?;
    let before = statement::predecessors(&statement::successors(believed, &statements), &statements);
    let mut pruned = Vec::new();
    for (note, statement) in notes.iter().zip(&statements) {
        if statement.origin != origin {
            return Err(changed(format!(
                "a statement of \"{}\" says nothing of \"{origin}\"",
                statement.origin
            )));
        }
        if note.verify(&before)? != note.signatures() {
            return Err(changed("a statement is signed by a key that the export does not name"));
        }
        if let Said::Pruned { end, root } = statement.said {
            pruned.push(Point { size: end, root, kept: false });
        }
    }
    Ok((statements, pruned))
}

/// Verifies an export: every entry's leaf, the root over them, the signatures under it, and that it continues
/// what was signed before.
pub fn verify(entries: impl BufRead, signed: &Signed, trust: &Trust) -> Result<Verified, AuditError> {
    let own = read_keys(&signed.keys)?;
    let note = SignedNote::parse(&signed.checkpoint)?;
    if note.verify(&own)? != note.signatures() {
        return Err(changed("a signature under the checkpoint is of a key that the export does not name"));
    }
    let origin = Checkpoint::parse(&note.text)?.origin;
    let known = if trust.keys.is_empty() { &own } else { &trust.keys };
    let (statements, pruned) = read_statements(&signed.statements, &origin, known)?;
    let believed = statement::successors(known, &statements);
    let checkpoint = Checkpoint::open(&note, &believed)?;
    let gone = pruned.iter().map(|point| point.size).max().unwrap_or(0);
    let erased_by = |index: u64| {
        statements
            .iter()
            .any(|statement| matches!(&statement.said, Said::Erased(entries) if entries.contain(index)))
    };

    let mut points = pruned;
    let old_keys = statement::predecessors(&believed, &statements);
    for note in &trust.earlier {
        let before = Checkpoint::open(note, &old_keys)?;
        if before.origin != checkpoint.origin {
            return Err(changed(format!(
                "a checkpoint of \"{}\" says nothing of \"{}\"",
                before.origin, checkpoint.origin
            )));
        }
        points.push(Point { size: before.size, root: before.root, kept: true });
    }
    points.sort_by_key(|point| point.size);

    let mut frontier = Frontier::default();
    let mut erased = 0;
    let mut waiting = points.iter().peekable();
    let mut continues = Vec::new();
    let mut meet = |frontier: &Frontier| {
        while let Some(before) = waiting.next_if(|before| before.size == frontier.size()) {
            if before.root != frontier.root() {
                return Err(changed(format!(
                    "the first {} entries are not the ones that were signed earlier",
                    before.size
                )));
            }
            if before.kept {
                continues.push(before.size);
            }
        }
        Ok(())
    };
    meet(&frontier)?;
    let mut entries = entries;
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = (&mut entries).take(MAX_LINE).read_until(b'\n', &mut line);
        if read.map_err(|error| AuditError::Missing(format!("the entries can't be read: {error}")))? == 0 {
            break;
        }
        let index = frontier.size();
        let text = line.strip_suffix(b"\n").and_then(|line| std::str::from_utf8(line).ok());
        let leaf = text.and_then(|line| read_line(index, line));
        let (commitment, is_erased) =
            leaf.ok_or_else(|| changed(format!("line {} is not entry {index}", index + 1)))?;
        if is_erased && index >= gone && !erased_by(index) {
            return Err(changed(format!("entry {index} is gone, and no statement of the log says why")));
        }
        erased += u64::from(is_erased);
        frontier.push(leaf_hash(&commitment));
        meet(&frontier)?;
    }
    if (frontier.size(), frontier.root()) != (checkpoint.size, checkpoint.root) {
        return Err(changed(format!(
            "the {} entries are not the {} that were signed",
            frontier.size(),
            checkpoint.size
        )));
    }
    if let Some(before) = waiting.next() {
        return Err(changed(format!(
            "a tree of {} entries was signed earlier; this is the trail of {}",
            before.size, checkpoint.size
        )));
    }
    Ok(Verified { erased, checkpoint, continues })
}

/// The commitment that a line leads to, and whether its entry is gone.
fn read_line(index: u64, line: &str) -> Option<(Hash, bool)> {
    if let Some(rest) = line.strip_prefix("{\"commitment\":\"") {
        let (digits, rest) = rest.split_at_checked(64)?;
        (rest == format!("\",\"index\":{index}}}")).then_some(())?;
        return Some((hexadecimal::read(digits)?.try_into().ok()?, true));
    }
    let rest = line.strip_prefix("{\"entry\":")?.strip_suffix("\"}")?;
    let (rest, salt) = rest.split_at_checked(rest.len().checked_sub(32)?)?;
    let record = rest.strip_suffix(&format!(",\"index\":{index},\"salt\":\""))?;
    Some((commitment(&read_salt(salt)?, record), false))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::note::Signer;
    use crate::tree::empty_root;
    use highwater_event::SeededRandomness;

    const ORIGIN: &str = "log.example";

    fn record(number: u64) -> Record {
        let json = format!(r#"{{"action":"query","actor":"user {number}","cost":1}}"#);
        Record { salt: Salt::Kept([number as u8; 16]), json }
    }

    fn signer() -> Signer {
        Signer::new(ORIGIN, &[5; 32]).unwrap()
    }

    fn checkpoint(lines: &[String]) -> Checkpoint {
        let mut frontier = Frontier::default();
        for (index, line) in lines.iter().enumerate() {
            let (commitment, _) = read_line(index as u64, line.trim_end()).unwrap();
            frontier.push(leaf_hash(&commitment));
        }
        Checkpoint { origin: ORIGIN.into(), size: frontier.size(), root: frontier.root() }
    }

    fn state(said: Said, signers: &[Signer]) -> String {
        let statement = Statement { origin: ORIGIN.into(), at: 1_767_268_800_000_000, said };
        SignedNote::sign(statement.text(), signers).to_string()
    }

    /// What somebody with the key makes of some lines.
    fn sign(lines: &[String]) -> Signed {
        Signed {
            checkpoint: checkpoint(lines).sign(&[signer()]).to_string(),
            keys: keys(),
            statements: String::new(),
        }
    }

    fn lines(records: &[Record]) -> Vec<String> {
        records.iter().enumerate().map(|(index, record)| line(index as u64, record)).collect()
    }

    fn keys() -> String {
        format!("{}\n", signer().verifier())
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let mut lines = lines(&(0..12).map(record).collect::<Vec<_>>());
        lines[0] = erased_line(0, &record(0).commitment());
        let root = checkpoint(&lines[..2]).root;
        let entries = lines.concat();
        let statements = state(Said::Pruned { end: 2, root }, &[signer()]);
        let signed = Signed { statements, ..sign(&lines) };
        let verified = verify(entries.as_bytes(), &signed, &Trust::default()).unwrap();
        assert_eq!((verified.erased, verified.checkpoint.size), (1, 12));
        let Signed { checkpoint, keys, statements } = &signed;
        let parts = [entries.as_bytes(), checkpoint.as_bytes(), keys.as_bytes(), statements.as_bytes()];
        let mut flips = 0;
        for part in 0..parts.len() {
            for bit in 0..parts[part].len() * 8 {
                let mut flipped = parts.map(<[u8]>::to_vec);
                flipped[part][bit / 8] ^= 1 << (bit % 8);
                let [entries, texts @ ..] = flipped;
                let [Ok(checkpoint), Ok(keys), Ok(statements)] = texts.map(String::from_utf8) else {
                    continue;
                };
                let signed = Signed { checkpoint, keys, statements };
                let found = verify(&entries[..], &signed, &Trust::default());
                assert!(found.is_err(), "part {part}, bit {bit}");
                flips += 1;
            }
        }
        assert!(flips > 5_000, "{flips}");
    }

    /// With the signing key and the whole disk in hand everything can be made to fit together again, except
    /// with a checkpoint that is kept elsewhere.
    #[test]
    fn ten_thousand_edits_are_found_against_a_checkpoint_kept_elsewhere() {
        const KEPT: u64 = 150;
        let honest: Vec<Record> = (0..200).map(record).collect();
        let kept = sign(&lines(&honest)[..KEPT as usize]).checkpoint;
        let trust =
            || Trust { keys: vec![signer().verifier()], earlier: vec![SignedNote::parse(&kept).unwrap()] };
        let all = lines(&honest);
        let verified = verify(all.concat().as_bytes(), &sign(&all), &trust()).unwrap();
        assert_eq!(verified.continues, [KEPT]);
        let chance = SeededRandomness::new(7);
        let mut kinds = [0; 7];
        for edit in 0..10_000 {
            let mut records = honest.clone();
            let (at, other) = (chance.below(KEPT) as usize, chance.below(KEPT) as usize);
            let kind = chance.below(7) as usize;
            match kind {
                0 => records[at].json = records[at].json.replace("user ", "User "),
                1 => records[at].json = records[at].json.replace("\"cost\":1", "\"cost\":2"),
                2 => drop(records.remove(at)),
                3 if at != other => records.swap(at, other),
                4 => records.truncate(at),
                5 => records.insert(at, record(1000 + edit)),
                // The salt tells equal entries apart.
                6 => records[at].salt = Salt::Kept([200 + (edit % 50) as u8; 16]),
                _ => continue,
            }
            kinds[kind] += 1;
            let edited = lines(&records);
            let found = verify(edited.concat().as_bytes(), &sign(&edited), &trust());
            assert!(matches!(found, Err(AuditError::Changed(_))), "edit {edit} of kind {kind}: {found:?}");
        }
        assert!(kinds.iter().all(|count| *count > 1000), "{kinds:?}");
    }

    #[test]
    fn another_key_does_not_pass_for_the_known_one() {
        let lines = lines(&[record(1)]);
        let trust =
            Trust { keys: vec![Signer::new(ORIGIN, &[6; 32]).unwrap().verifier()], ..Trust::default() };
        assert!(verify(lines.concat().as_bytes(), &sign(&lines), &trust).is_err());
    }

    #[test]
    fn entries_are_gone_only_where_the_log_says_so() {
        let mut lines = lines(&(0..12).map(record).collect::<Vec<_>>());
        let found = |lines: &[String], statements: &str| {
            let signed = Signed { statements: statements.into(), ..sign(lines) };
            verify(lines.concat().as_bytes(), &signed, &Trust::default()).map(|verified| verified.erased)
        };
        let root = checkpoint(&lines[..4]).root;
        for (at, line) in (0..).zip(&mut lines[..4]) {
            *line = erased_line(at, &record(at).commitment());
        }
        assert!(found(&lines, "").is_err());
        let said = |end, root| state(Said::Pruned { end, root }, &[signer()]);
        assert_eq!(found(&lines, &said(4, root)).unwrap(), 4);
        assert!(found(&lines, &said(3, checkpoint(&lines[..3]).root)).is_err(), "one more than was said");
        assert!(found(&lines, &said(4, empty_root())).is_err(), "another tree");
        assert!(found(&lines, &said(13, root)).is_err(), "more than there ever were");
        let other = Signer::new(ORIGIN, &[6; 32]).unwrap();
        assert!(found(&lines, &state(Said::Pruned { end: 4, root }, &[other])).is_err(), "another key");
    }

    #[test]
    fn something_is_taken_out_only_where_the_log_says_so() {
        let mut lines = lines(&(0..12).map(record).collect::<Vec<_>>());
        let left = Record { salt: Salt::Erased(record(5).commitment()), json: "{}".into() };
        lines[5] = line(5, &left);
        let found = |places: &[u64], key: u8| {
            let signer = Signer::new(ORIGIN, &[key; 32]).unwrap();
            let said = Said::Erased(statement::Entries::of(places.iter().copied()));
            let signed = Signed { statements: state(said, &[signer]), ..sign(&lines) };
            verify(lines.concat().as_bytes(), &signed, &Trust::default()).map(|verified| verified.erased)
        };
        assert_eq!(found(&[5], 5).unwrap(), 1);
        assert_eq!(found(&[4, 5, 9], 5).unwrap(), 1, "others may be whole");
        assert!(found(&[4, 6], 5).is_err(), "others");
        assert!(found(&[5], 6).is_err(), "another key");
    }

    #[test]
    fn whoever_knows_the_old_key_comes_to_believe_the_new_one_and_not_the_other_way() {
        let lines = lines(&[record(1), record(2)]);
        let new = || Signer::new(ORIGIN, &[6; 32]).unwrap();
        let said = Said::Key { from: signer().verifier(), to: new().verifier() };
        let signed = |signer: Signer| Signed {
            keys: format!("{}\n", signer.verifier()),
            checkpoint: checkpoint(&lines).sign([&signer]).to_string(),
            statements: state(said.clone(), &[self::signer(), new()]),
        };
        let kept = SignedNote::parse(&sign(&lines[..1]).checkpoint).unwrap();
        let trust = |key: Signer| Trust { keys: vec![key.verifier()], earlier: vec![kept.clone()] };
        let found = |by: Signer, known: Signer| verify(lines.concat().as_bytes(), &signed(by), &trust(known));
        assert_eq!(found(new(), signer()).unwrap().continues, [1]);
        assert_eq!(found(new(), new()).unwrap().continues, [1], "what the old key signed before counts");
        assert!(
            found(signer(), new()).is_err(),
            "the old key signs no new checkpoint for who knows the new one"
        );
        let unsaid = Signed { statements: String::new(), ..signed(new()) };
        assert!(verify(lines.concat().as_bytes(), &unsaid, &trust(signer())).is_err());
    }
}
