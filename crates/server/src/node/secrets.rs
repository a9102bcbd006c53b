//! Secrets of a data folder: made at the first start, readable by their owner alone.

use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use anyhow::{Context, bail};
use highwater_event::{Randomness, hexadecimal};

/// File with the operator's token.
pub const OPERATOR_TOKEN: &str = "operator.token";
const TOKEN_KEY: &str = "token.key";
const AUDIT_KEY: &str = "audit.key";
const NEXT_AUDIT_KEY: &str = "audit.key.next";
const ACCESS_KEY: &str = "access.key";
/// Folder with a certificate of the node's own and its key.
const OWN_TLS: &str = "tls";

/// Makes a data folder, or a copy of one, that its owner alone may look into: the log and the lake say much that is no secret of
/// its own. Who may look into one that is there already is the owner's matter.
pub fn make_folder(path: &Path) -> anyhow::Result<()> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.with_context(|| format!("the data folder {} can't be made", path.display()))
}

/// The operator's token: 40 hexadecimal digits.
pub fn operator_token(data: &Path, randomness: &dyn Randomness) -> anyhow::Result<String> {
    secret(&data.join(OPERATOR_TOKEN), 20, randomness)
}

/// The key behind TOKENIZE and the salts of events that are proven.
pub fn token_key(data: &Path, randomness: &dyn Randomness) -> anyhow::Result<[u8; 32]> {
    key(&data.join(TOKEN_KEY), randomness)
}

/// The seeds of the keys that checkpoints of the audit tree are signed with, the newest first.
pub fn audit_keys(data: &Path, randomness: &dyn Randomness) -> anyhow::Result<Vec<[u8; 32]>> {
    keys(&data.join(AUDIT_KEY), true, randomness)
}

/// The keys of a file, the newest first; a new one when there is no such file and one may be made.
pub fn keys(path: &Path, may_make: bool, randomness: &dyn Randomness) -> anyhow::Result<Vec<[u8; 32]>> {
    if may_make && !path.exists() {
        write_keys(path, &[random_key(randomness)?])?;
    }
    read_keys(path)
}

/// Writes the keys of a file, the newest first.
pub fn write_keys(path: &Path, keys: &[[u8; 32]]) -> anyhow::Result<()> {
    replace_secret(path, &show_keys(keys))
}

/// The seeds that are to take their place, when a change was begun.
pub fn next_audit_keys(data: &Path) -> anyhow::Result<Option<Vec<[u8; 32]>>> {
    let path = data.join(NEXT_AUDIT_KEY);
    if path.exists() { read_keys(&path).map(Some) } else { Ok(None) }
}

/// Begins a change of the seeds.
pub fn stage_audit_keys(data: &Path, seeds: &[[u8; 32]]) -> anyhow::Result<()> {
    write_keys(&data.join(NEXT_AUDIT_KEY), seeds)
}

/// Ends a change of the seeds.
pub fn take_next_audit_keys(data: &Path) -> anyhow::Result<()> {
    std::fs::rename(data.join(NEXT_AUDIT_KEY), data.join(AUDIT_KEY))?;
    Ok(std::fs::File::open(data)?.sync_all()?)
}

/// Leaves a change of the seeds.
pub fn forget_next_audit_keys(data: &Path) -> anyhow::Result<()> {
    Ok(std::fs::remove_file(data.join(NEXT_AUDIT_KEY))?)
}

/// 32 bytes that nobody can guess.
pub fn random_key(randomness: &dyn Randomness) -> anyhow::Result<[u8; 32]> {
    let mut key = [0; 32];
    randomness.fill(&mut key)?;
    Ok(key)
}

fn show_keys(seeds: &[[u8; 32]]) -> String {
    let lines: Vec<String> = seeds.iter().map(|seed| hexadecimal::show(seed)).collect();
    lines.join("\n")
}

/// Reads the keys of a file, the newest first.
pub fn read_keys(path: &Path) -> anyhow::Result<Vec<[u8; 32]>> {
    let text = read_secret(path)?;
    let keys: Option<Vec<[u8; 32]>> = text.lines().map(parse_key).collect();
    let shown = path.display();
    keys.filter(|keys| !keys.is_empty()).with_context(|| {
        format!("{shown} does not hold a key of 64 hexadecimal digits on each line; restore it from a backup")
    })
}

fn parse_key(digits: &str) -> Option<[u8; 32]> {
    hexadecimal::read(&digits.to_ascii_lowercase())?.try_into().ok()
}

/// The seed of the key that access tokens are signed with.
pub fn access_key(data: &Path, randomness: &dyn Randomness) -> anyhow::Result<[u8; 32]> {
    key(&data.join(ACCESS_KEY), randomness)
}

fn key(path: &Path, randomness: &dyn Randomness) -> anyhow::Result<[u8; 32]> {
    let digits = secret(path, 32, randomness)?;
    parse_key(&digits).with_context(|| format!("{} does not hold a key", path.display()))
}

/// Copies the secrets of a data folder into another.
pub fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    for name in [OPERATOR_TOKEN, TOKEN_KEY, AUDIT_KEY, ACCESS_KEY] {
        // Copied with their mode.
        std::fs::copy(from.join(name), to.join(name))?;
        std::fs::File::open(to.join(name))?.sync_all()?;
    }
    // Whoever trusts the node's own certificate trusts the node that the copy becomes.
    if from.join(OWN_TLS).is_dir() {
        std::fs::create_dir_all(to.join(OWN_TLS))?;
        for file in std::fs::read_dir(from.join(OWN_TLS))? {
            let (file, target) = (file?.path(), to.join(OWN_TLS));
            let target = target.join(file.file_name().unwrap_or_default());
            std::fs::copy(&file, &target)?;
            std::fs::File::open(&target)?.sync_all()?;
        }
    }
    std::fs::File::open(to)?.sync_all()
}

fn read_secret(path: &Path) -> anyhow::Result<String> {
    let shown = path.display();
    let known = match std::fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            bail!("{shown} is missing; restore it from a backup")
        }
        known => known.with_context(|| format!("{shown} can't be read"))?,
    };
    let mode = known.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        bail!("{shown} can be read by others (mode {mode:o}); run `chmod 600 {shown}`");
    }
    let text = std::fs::read_to_string(path).with_context(|| format!("{shown} can't be read"))?;
    Ok(text.trim().to_owned())
}

fn secret(path: &Path, bytes: usize, randomness: &dyn Randomness) -> anyhow::Result<String> {
    let shown = path.display();
    if path.exists() {
        let text = read_secret(path)?;
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
