//! Changes of something that is right, so that few inputs fail at their first byte.

/// The bytes with changes: each two bytes of position and one of value; a last odd byte cuts.
pub fn changed(mut bytes: Vec<u8>, changes: &[u8]) -> Vec<u8> {
    for change in changes.chunks(3) {
        match change {
            [low, high, value] if !bytes.is_empty() => {
                let at = usize::from(u16::from_le_bytes([*low, *high])) % bytes.len();
                bytes[at] = *value;
            }
            [cut, ..] => bytes.truncate(bytes.len() * usize::from(*cut) / 256),
            [] => {}
        }
    }
    bytes
}
