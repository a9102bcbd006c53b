//! Secrets of a data folder: made at the first start, readable by their owner alone.

use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use anyhow::{Context, bail};
use highwater_event::Randomness;

/// File with the operator's token.
pub const OPERATOR_TOKEN: &str = "operator.token";
const TOKEN_KEY: &str = "token.key";

/// The operator's token: 40 hexadecimal digits.
pub fn operator_token(data: &Path, randomness: &dyn Randomness) -> anyhow::Result<String> {
    secret(&data.join(OPERATOR_TOKEN), 20, randomness)
}

/// The key behind TOKENIZE.
pub fn token_key(data: &Path, randomness: &dyn Randomness) -> anyhow::Result<[u8; 32]> {
    let text = secret(&data.join(TOKEN_KEY), 32, randomness)?;
    let mut key = [0; 32];
    for (byte, digits) in key.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = std::str::from_utf8(digits)
            .ok()
            .and_then(|digits| u8::from_str_radix(digits, 16).ok())
            .unwrap_or(0);
    }
    Ok(key)
}

/// Copies the secrets of a data folder into another.
pub fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    for name in [OPERATOR_TOKEN, TOKEN_KEY] {
        // Copied with their mode.
        std::fs::copy(from.join(name), to.join(name))?;
        std::fs::File::open(to.join(name))?.sync_all()?;
    }
    std::fs::File::open(to)?.sync_all()
}

fn secret(path: &Path, bytes: usize, randomness: &dyn Randomness) -> anyhow::Result<String> {
    let shown = path.display();
    if path.exists() {
        let mode = std::fs::metadata(path)?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            bail!("{shown} can be read by others (mode {mode:o}); run `chmod 600 {shown}`");
        }
        let text = std::fs::read_to_string(path).with_context(|| format!("{shown} can't be read"))?;
        let text = text.trim().to_owned();
        if text.len() != bytes * 2 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            bail!(
                "{shown} does not hold {} hexadecimal digits; restore it from a backup, or remove it to get a new one",
                bytes * 2
            );
        }
        return Ok(text);
    }
    let mut random = vec![0; bytes];
    randomness.fill(&mut random)?;
    let text: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    // Written beside and renamed, so that a crash leaves no half secret.
    let fresh = path.with_extension("new");
    if fresh.exists() {
        std::fs::remove_file(&fresh)?;
    }
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&fresh)
        .with_context(|| format!("{shown} can't be written"))?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&fresh, path)?;
    if let Some(folder) = path.parent() {
        std::fs::File::open(folder)?.sync_all()?;
    }
    Ok(text)
}
