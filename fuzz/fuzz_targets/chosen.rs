//! One of several kinds of text that are read: the first byte of an input chooses which, and whether what stands behind it
//! is the text itself or changes of one that is right.

use crate::changed::changed;

/// The kind and the text; `None` where an input has none.
pub fn chosen<T: Copy>(input: &[u8], kinds: &[T], sample: impl Fn(T) -> String) -> Option<(T, String)> {
    let (choice, bytes) = input.split_first()?;
    let choice = usize::from(*choice);
    let kind = kinds[choice % kinds.len()];
    let text = match choice / kinds.len() % 2 {
        0 => bytes.to_vec(),
        _ => changed(sample(kind).into_bytes(), bytes),
    };
    Some((kind, String::from_utf8(text).ok()?))
}
