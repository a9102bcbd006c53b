//! Signed notes (c2sp.org/signed-note) with Ed25519, and the cosignatures of witnesses
//! (c2sp.org/tlog-cosignature, version 1).

use std::fmt;

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::AuditError;
use crate::tree::sha256;

/// Kind of a plain Ed25519 signature.
const ED25519_NOTE: u8 = 1;
/// Kind of a witness's cosignature with its time.
const COSIGNATURE: u8 = 4;
/// Signatures that a note may have.
const MAX_SIGNATURES: usize = 32;

fn changed(what: impl Into<String>) -> AuditError {
    AuditError::Changed(what.into())
}

/// The first four bytes of a hash over name, kind and key.
fn key_id(name: &str, kind: u8, key: &[u8]) -> [u8; 4] {
    let hash = sha256([name.as_bytes(), &[b'\n', kind], key]);
    [hash[0], hash[1], hash[2], hash[3]]
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && !name.contains('+') && !name.chars().any(|c| c.is_whitespace() || c.is_control())
}

/// Signs notes under a name.
pub struct Signer {
    name: String,
    pair: Ed25519KeyPair,
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer").field("verifier", &self.verifier().to_string()).finish_non_exhaustive()
    }
}

impl Signer {
    /// A signer from the seed of its key.
    pub fn new(name: &str, seed: &[u8; 32]) -> Result<Self, AuditError> {
        if !is_name(name) {
            return Err(changed(format!("\"{name}\" can't name a key: no spaces, no plus sign")));
        }
        let pair = Ed25519KeyPair::from_seed_unchecked(seed).map_err(|_| changed("the key can't be used"))?;
        Ok(Self { name: name.to_owned(), pair })
    }

    /// What others verify its signatures with.
    pub fn verifier(&self) -> Verifier {
        Verifier {
            name: self.name.clone(),
            kind: ED25519_NOTE,
            key: self.pair.public_key().as_ref().to_vec(),
        }
    }

    /// Its signature under a text, as a line.
    fn sign(&self, text: &str) -> Signature {
        let bytes = self.pair.sign(text.as_bytes()).as_ref().to_vec();
        Signature { name: self.name.clone(), key_id: self.verifier().key_id(), bytes }
    }
}

/// Verifies signatures of one key; written as a vkey: `name+key id+key`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verifier {
    name: String,
    kind: u8,
    key: Vec<u8>,
}

impl Verifier {
    /// Reads a vkey.
    pub fn parse(text: &str) -> Result<Self, AuditError> {
        let wrong = || changed("this is not a verifier key (name+key id+base64)");
        let mut parts = text.trim_end_matches('\n').splitn(3, '+');
        let (Some(name), Some(id), Some(key)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(wrong());
        };
        let bytes = STANDARD.decode(key).map_err(|_| wrong())?;
        let Some((kind, key)) = bytes.split_first() else { return Err(wrong()) };
        if !is_name(name) || ![ED25519_NOTE, COSIGNATURE].contains(kind) || key.len() != 32 {
            return Err(wrong());
        }
        let verifier = Self { name: name.to_owned(), kind: *kind, key: key.to_vec() };
        if highwater_event::hexadecimal::show(&verifier.key_id()) != id {
            return Err(wrong());
        }
        Ok(verifier)
    }

    /// The name of its key.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// True when it verifies the cosignatures of a witness.
    pub fn is_witness(&self) -> bool {
        self.kind == COSIGNATURE
    }

    fn key_id(&self) -> [u8; 4] {
        key_id(&self.name, self.kind, &self.key)
    }

    fn verifies(&self, text: &str, signature: &[u8]) -> bool {
        let key = UnparsedPublicKey::new(&ED25519, &self.key);
        match self.kind {
            ED25519_NOTE => key.verify(text.as_bytes(), signature).is_ok(),
            _ => {
                let Some((time, signature)) = signature.split_first_chunk::<8>() else { return false };
                let message = format!("cosignature/v1\ntime {}\n{text}", u64::from_be_bytes(*time));
                key.verify(message.as_bytes(), signature).is_ok()
            }
        }
    }
}

impl fmt::Display for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = highwater_event::hexadecimal::show(&self.key_id());
        let key = STANDARD.encode([&[self.kind][..], &self.key].concat());
        write!(f, "{}+{id}+{key}", self.name)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Signature {
    name: String,
    key_id: [u8; 4],
    bytes: Vec<u8>,
}

/// A text with signatures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedNote {
    /// The text, which ends in a line break.
    pub text: String,
    signatures: Vec<Signature>,
}

impl SignedNote {
    /// Signs a text with every key.
    pub fn sign<'a>(text: String, signers: impl IntoIterator<Item = &'a Signer>) -> Self {
        let signatures = signers.into_iter().map(|signer| signer.sign(&text)).collect();
        Self { text, signatures }
    }

    /// Reads a note; says nothing about its signatures yet.
    pub fn parse(note: &str) -> Result<Self, AuditError> {
        if note.chars().any(|c| c.is_control() && c != '\n') {
            return Err(changed("a signed note holds a control character"));
        }
        let end = note.rfind("\n\n").ok_or_else(|| changed("a signed note has no signatures"))?;
        let (text, lines) = (&note[..=end], &note[end + 2..]);
        let lines =
            lines.strip_suffix('\n').ok_or_else(|| changed("a signed note does not end in a line"))?;
        let signatures = lines.split('\n').map(signature).collect::<Result<Vec<_>, _>>()?;
        if signatures.len() > MAX_SIGNATURES {
            return Err(changed(format!("a signed note has more than {MAX_SIGNATURES} signatures")));
        }
        Ok(Self { text: text.to_owned(), signatures })
    }

    /// Takes the signature of one key from lines of signatures, such as a witness answers.
    pub fn cosign(&mut self, key: &Verifier, lines: &str) -> Result<(), AuditError> {
        let own = |signature: &Signature| signature.name == key.name && signature.key_id == key.key_id();
        let signatures = lines.lines().filter(|line| !line.is_empty()).map(signature);
        let found = signatures.collect::<Result<Vec<_>, _>>()?.into_iter().find(own);
        let new = found.ok_or_else(|| changed(format!("\"{}\" has not signed", key.name)))?;
        if !key.verifies(&self.text, &new.bytes) {
            return Err(changed(format!("the signature of \"{}\" does not fit the text", key.name)));
        }
        self.signatures.retain(|known| !own(known));
        self.signatures.push(new);
        Ok(())
    }

    /// How many of the keys have signed it. A wrong signature under the name of one of them is an error;
    /// those of others count for nothing.
    pub fn verify(&self, keys: &[Verifier]) -> Result<usize, AuditError> {
        let mut verified = 0;
        for signature in &self.signatures {
            let known =
                keys.iter().find(|key| key.name == signature.name && key.key_id() == signature.key_id);
            match known {
                Some(key) if key.verifies(&self.text, &signature.bytes) => verified += 1,
                Some(key) => {
                    return Err(changed(format!("the signature of \"{}\" does not fit the text", key.name)));
                }
                None => {}
            }
        }
        Ok(verified)
    }

    /// Number of signatures.
    pub fn signatures(&self) -> usize {
        self.signatures.len()
    }
}

impl fmt::Display for SignedNote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.text)?;
        self.signatures.iter().try_for_each(|signature| {
            let bytes = STANDARD.encode([&signature.key_id[..], &signature.bytes].concat());
            writeln!(f, "\u{2014} {} {bytes}", signature.name)
        })
    }
}

fn signature(line: &str) -> Result<Signature, AuditError> {
    let wrong = || changed("a line of a signed note is not a signature");
    let (name, bytes) =
        line.strip_prefix("\u{2014} ").and_then(|rest| rest.split_once(' ')).ok_or_else(wrong)?;
    let bytes = STANDARD.decode(bytes).map_err(|_| wrong())?;
    let (key_id, bytes) = bytes.split_first_chunk::<4>().ok_or_else(wrong)?;
    if !is_name(name) {
        return Err(wrong());
    }
    Ok(Signature { name: name.to_owned(), key_id: *key_id, bytes: bytes.to_vec() })
}

/// A witness for tests: what it answers to a text, and its key.
#[cfg(test)]
pub(crate) fn cosigner(name: &str, seed: &[u8; 32]) -> (impl Fn(&str) -> String, Verifier) {
    let pair = Ed25519KeyPair::from_seed_unchecked(seed).unwrap();
    let key = Verifier { name: name.into(), kind: COSIGNATURE, key: pair.public_key().as_ref().to_vec() };
    let (name, id) = (name.to_owned(), key.key_id());
    let sign = move |text: &str| {
        let signed = pair.sign(format!("cosignature/v1\ntime 1700000000\n{text}").as_bytes());
        let line = [&id[..], &1_700_000_000u64.to_be_bytes(), signed.as_ref()].concat();
        format!("\u{2014} {name} {}\n", STANDARD.encode(line))
    };
    (sign, key)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of c2sp.org/signed-note.
    const VKEY: &str = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k";

    #[test]
    fn vkeys_come_back() {
        let key = Verifier::parse(VKEY).unwrap();
        assert_eq!((key.name(), key.to_string().as_str()), ("example.com/foo", VKEY));
        for bad in ["", "a+b+c", &VKEY.replace("530d", "530e"), &VKEY.replace("foo", "fo"), &VKEY[..60]] {
            assert!(Verifier::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn notes_come_back_and_no_bit_of_them_can_be_changed() {
        let signer = Signer::new("log.example", &[3; 32]).unwrap();
        let keys = [signer.verifier()];
        let note = SignedNote::sign("one\n\ntwo\n".into(), [&signer]).to_string();
        let parsed = SignedNote::parse(&note).unwrap();
        assert_eq!((parsed.text.as_str(), parsed.verify(&keys).unwrap()), ("one\n\ntwo\n", 1));
        assert_eq!(parsed.to_string(), note);
        for bit in 0..note.len() * 8 {
            let mut bytes = note.clone().into_bytes();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let found = String::from_utf8(bytes).ok().and_then(|note| {
                let parsed = SignedNote::parse(&note).ok()?;
                parsed.verify(&keys).ok().filter(|verified| *verified > 0)
            });
            assert_eq!(found, None, "bit {bit}");
        }
    }

    #[test]
    fn a_witness_signs_with_its_time() {
        let log = Signer::new("log.example", &[3; 32]).unwrap();
        let (sign, witness) = cosigner("witness", &[4; 32]);
        let witness = Verifier::parse(&witness.to_string()).unwrap();
        let mut note = SignedNote::sign("log.example\n1\nroot\n".into(), [&log]);
        note.cosign(&witness, &sign(&note.text)).unwrap();
        assert_eq!(note.verify(std::slice::from_ref(&witness)).unwrap(), 1);
        note.text = note.text.replace('1', "2");
        assert!(note.verify(&[witness]).is_err());
    }
}
