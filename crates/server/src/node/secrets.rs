//! Secrets of a data folder: made at the first start, readable by their owner alone.

use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use anyhow::{Context, bail};
use highwater_event::{Randomness, hexadecimal};

/// File with the operator's token.
pub const OPERATOR_TOKEN: &str = "operator.token";
const TOKEN_KEY: &str = "token.key";
const AUDIT_KEY: &str = "audit.key";
const ACCESS_KEY: &str = "access.key";

/// The operator's token: 40 hexadecimal digits.
pub fn operator_token(data: &Path, randomness: &dyn Randomness) -> anyhow::Result<String> {
    secret(&data.join(OPERATOR_TOKEN), 20, randomness)
}

/// The key behind TOKENIZE.
pub fn token_key(data: &Path, randomness: &dyn Randomness) -> anyhow::Result<[u8; 32]> {
    key(&data.join(TOKEN_KEY), randomness)
}

/// The seed of the key that checkpoints of the audit tree are signed with.
pub fn audit_key(data: &Path, randomness: &dyn Randomness) -> anyhow::Result<[u8; 32]> {
    key(&data.join(AUDIT_KEY), randomness)
}

/// The seed of the key that access tokens are signed with.
pub fn access_key(data: &Path, randomness: &dyn Randomness) -> anyhow::Result<[u8; 32]> {
    key(&data.join(ACCESS_KEY), randomness)
}

fn key(path: &Path, randomness: &dyn Randomness) -> anyhow::Result<[u8; 32]> {
    let digits = secret(path, 32, randomness)?;
    let bytes = hexadecimal::read(&digits.to_ascii_lowercase()).and_then(|bytes| bytes.try_into().ok());
    bytes.with_context(|| format!("{} does not hold a key", path.display()))
}

/// Copies the secrets of a data folder into another.
pub fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    for name in [OPERATOR_TOKEN, TOKEN_KEY, AUDIT_KEY, ACCESS_KEY] {
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
    let text = hexadecimal::show(&random);
    replace(path, text.as_bytes(), 0o600)?;
    Ok(text)
}

/// Writes a secret that its owner alone can read, making the folder that it is in.
pub fn replace_secret(path: &Path, secret: &str) -> anyhow::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("{} can't be made", folder.display()))?;
    }
    replace(path, secret.as_bytes(), 0o600)
}

/// Writes a file beside and renames it, so that a crash leaves no half one.
pub fn replace(path: &Path, content: &[u8], mode: u32) -> anyhow::Result<()> {
    let fresh = path.with_extension("new");
    if fresh.exists() {
        std::fs::remove_file(&fresh)?;
    }
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&fresh)
        .with_context(|| format!("{} can't be written", path.display()))?;
    file.write_all(content)?;
    file.sync_all()?;
    std::fs::rename(&fresh, path)?;
    if let Some(folder) = path.parent() {
        std::fs::File::open(folder)?.sync_all()?;
    }
    Ok(())
}
