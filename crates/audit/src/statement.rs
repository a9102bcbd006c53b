//! What the log's keys sign beside checkpoints: that another key takes over, that old entries are gone, and that something
//! was taken out of others.
//!
//! ```text
//! highwater audit statement v1
//! ORIGIN
//! TIME                      RFC 3339
//! key OLD NEW               verifier keys; signed by both
//! pruned END ROOT           entries before END are gone; the root of the tree over them, base64
//! erased A B-C ...          something was taken out of these entries; in rising order
//! ```
//! A statement has one of the last lines, and is a signed note. Several stand one behind the other.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use highwater_event::time;

use crate::AuditError;
use crate::note::{SignedNote, Verifier};
use crate::tree::Hash;

/// The first line.
const HEAD: &str = "highwater audit statement v1\n";

/// What is stated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// One key takes over from another.
    Key {
        /// The one that has signed until now.
        from: Verifier,
        /// The one that signs from now on.
        to: Verifier,
    },
    /// Entries are past their retention: their hashes stay.
    Pruned {
        /// The first entry that is still there.
        end: u64,
        /// The root of the tree over those that are gone.
        root: Hash,
    },
    /// Something was taken out of entries, such as the name of a person: their commitments stay.
    Erased(Entries),
}

/// Entries, as ranges of their places.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Entries(Vec<(u64, u64)>);

impl Entries {
    /// Entries in rising order.
    pub fn of(places: impl IntoIterator<Item = u64>) -> Self {
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for place in places {
            match ranges.last_mut() {
                Some((_, last)) if *last + 1 == place => *last = place,
                _ => ranges.push((place, place)),
            }
        }
        Self(ranges)
    }

    /// Whether an entry is among them.
    pub fn contain(&self, place: u64) -> bool {
        let at = self.0.partition_point(|(_, last)| *last < place);
        self.0.get(at).is_some_and(|(first, _)| *first <= place)
    }

    fn parse(words: &[&str]) -> Option<Self> {
        let mut ranges: Vec<(u64, u64)> = Vec::with_capacity(words.len());
        for word in words {
            let (first, last) = word.split_once('-').unwrap_or((word, word));
            let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
            // Ranges that touch would be one.
            let behind = ranges
                .last()
                .is_none_or(|(_, before)| before.checked_add(1).is_some_and(|next| first > next));
            (first <= last && behind).then(|| ranges.push((first, last)))?;
        }
        (!ranges.is_empty()).then_some(Self(ranges))
    }
}

impl fmt::Display for Entries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (first, last)) in self.0.iter().enumerate() {
            let space = if at == 0 { "" } else { " " };
            match first == last {
                true => write!(f, "{space}{first}")?,
                false => write!(f, "{space}{first}-{last}")?,
            }
        }
        Ok(())
    }
}

/// A statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    /// The log's name.
    pub origin: String,
    /// When: microseconds UTC.
    pub at: i64,
    /// What.
    pub said: Said,
}

impl Statement {
    /// The text that is signed.
    pub fn text(&self) -> String {
        let said = match &self.said {
            Said::Key { from, to } => format!("key {from} {to}"),
            Said::Pruned { end, root } => format!("pruned {end} {}", STANDARD.encode(root)),
            Said::Erased(entries) => format!("erased {entries}"),
        };
        format!("{HEAD}{}\n{}\n{said}\n", self.origin, time::show_micros(self.at))
    }

    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.strip_prefix(HEAD)?.strip_suffix('\n')?.split('\n');
        let (origin, at, said) = (lines.next()?, lines.next()?, lines.next()?);
        let said = match said.split(' ').collect::<Vec<_>>()[..] {
            ["key", from, to] => {
                Said::Key { from: Verifier::parse(from).ok()?, to: Verifier::parse(to).ok()? }
            }
            ["pruned", end, root] => {
                Said::Pruned { end: end.parse().ok()?, root: STANDARD.decode(root).ok()?.try_into().ok()? }
            }
            ["erased", ref entries @ ..] => Said::Erased(Entries::parse(entries)?),
            _ => return None,
        };
        let statement = Self { origin: origin.to_owned(), at: time::parse_micros(at)?, said };
        // One text for each statement, and no more lines.
        (statement.text() == text).then_some(statement)
    }

    /// Reads what a note states. Both keys of a change must have signed it; of other statements nothing is said
    /// about the signatures yet.
    pub fn open(note: &SignedNote) -> Result<Self, AuditError> {
        let wrong = |what: &str| AuditError::Changed(format!("a statement of the log {what}"));
        let statement = Self::parse(&note.text).ok_or_else(|| wrong("is not one"))?;
        if let Said::Key { from, to } = &statement.said
            && note.verify(&[from.clone(), to.clone()])? != 2
        {
            return Err(wrong("about its keys is not signed by both of them"));
        }
        Ok(statement)
    }
}

/// Statements that stand one behind the other.
pub fn read(text: &str) -> Result<Vec<SignedNote>, AuditError> {
    let mut notes: Vec<String> = Vec::new();
    for line in text.split_inclusive('\n') {
        match notes.last_mut() {
            Some(note) if line != HEAD => note.push_str(line),
            None if line != HEAD => {
                return Err(AuditError::Changed("this is not a list of statements".into()));
            }
            _ => notes.push(line.to_owned()),
        }
    }
    notes.iter().map(|note| SignedNote::parse(note)).collect()
}

/// Keys that are believed now: those that were, and those that they handed over to.
pub fn successors(keys: &[Verifier], statements: &[Statement]) -> Vec<Verifier> {
    let mut believed = keys.to_vec();
    for statement in statements {
        if let Said::Key { from, to } = &statement.said
            && believed.contains(from)
            && !believed.contains(to)
        {
            believed.push(to.clone());
        }
    }
    believed
}

/// Keys whose old signatures are believed: those that are believed now, and those that they took over from.
pub fn predecessors(keys: &[Verifier], statements: &[Statement]) -> Vec<Verifier> {
    let mut believed = keys.to_vec();
    for statement in statements.iter().rev() {
        if let Said::Key { from, to } = &statement.said
            && believed.contains(to)
            && !believed.contains(from)
        {
            believed.push(from.clone());
        }
    }
    believed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::note::Signer;

    fn signer(seed: u8) -> Signer {
        Signer::new("log.example", &[seed; 32]).unwrap()
    }

    fn change(from: &Signer, to: &Signer) -> Statement {
        let said = Said::Key { from: from.verifier(), to: to.verifier() };
        Statement { origin: "log.example".into(), at: 1_767_268_800_000_000, said }
    }

    #[test]
    fn statements_come_back() {
        let (one, two) = (signer(1), signer(2));
        let pruned = Statement { said: Said::Pruned { end: 512, root: [7; 32] }, ..change(&one, &two) };
        let first = SignedNote::sign(change(&one, &two).text(), [&one, &two]);
        let second = SignedNote::sign(pruned.text(), [&two]);
        let notes = read(&format!("{first}{second}")).unwrap();
        assert_eq!(notes, [first, second]);
        assert_eq!(Statement::open(&notes[0]).unwrap(), change(&one, &two));
        assert_eq!(Statement::open(&notes[1]).unwrap(), pruned);
        assert!(read("").unwrap().is_empty());
        assert!(read("else\n").is_err());
        for bad in [pruned.text().replace("512", "0512"), pruned.text() + "more\n", "pruned".into()] {
            assert!(Statement::open(&SignedNote::sign(bad, [&two])).is_err());
        }
    }

    #[test]
    fn entries_are_named_in_one_way_only() {
        let entries = Entries::of([3, 4, 5, 9, 11, 12]);
        assert_eq!(entries.to_string(), "3-5 9 11-12");
        let inside: Vec<u64> = (0..20).filter(|place| entries.contain(*place)).collect();
        assert_eq!(inside, [3, 4, 5, 9, 11, 12]);
        let (one, _) = (signer(1), signer(2));
        let stated = Statement { said: Said::Erased(entries), ..change(&one, &one) };
        let note = SignedNote::sign(stated.text(), [&one]);
        assert_eq!(Statement::open(&note).unwrap(), stated);
        for bad in [
            "",
            "3-4 5",
            "5 3",
            "3-3",
            "5-3",
            "03",
            "3  9",
            "3-5 9 11-12 ",
            "x",
            "3-",
            "18446744073709551615 3",
        ] {
            let text = stated.text().replace("3-5 9 11-12", bad);
            assert!(Statement::open(&SignedNote::sign(text, [&one])).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_key_takes_over_when_both_say_so() {
        let (one, two, three) = (signer(1), signer(2), signer(3));
        for signers in [vec![&one], vec![&two], vec![&one, &three]] {
            assert!(Statement::open(&SignedNote::sign(change(&one, &two).text(), signers)).is_err());
        }
        let all = [change(&one, &two), change(&two, &three)];
        let names = |keys: Vec<Verifier>| keys.len();
        assert_eq!(names(successors(&[one.verifier()], &all)), 3);
        assert_eq!(names(successors(&[two.verifier()], &all)), 2);
        assert_eq!(
            names(successors(&[three.verifier()], &all)),
            1,
            "who knows the new key believes no old one"
        );
        assert_eq!(names(predecessors(&[three.verifier()], &all)), 3, "but for what it had signed before");
        assert_eq!(names(predecessors(&[one.verifier()], &all)), 1);
    }
}
