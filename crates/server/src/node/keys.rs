//! The keys of what is SENSITIVE: files of the data folder, and their change.
//!
//! ```text
//! <data>/keys/data.keys    data keys of tenants, each wrapped by the master key
//! <data>/keys/master.key   the master key, mode 0600, unless a setting names another file
//! ```
//! A file of master keys holds 64 hexadecimal digits on a line, the newest first; older ones are there while keys
//! that they have wrapped are wrapped anew.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, ensure};
use highwater_log::{Machine, format};
use highwater_privacy::{KeyFile, Vault};

use super::{Node, secrets};

const FOLDER: &str = "keys";
const DATA_KEYS: &str = "data.keys";
const MASTER_KEY: &str = "master.key";

/// The file of data keys.
struct DataKeys(PathBuf);

impl KeyFile for DataKeys {
    fn read(&self) -> io::Result<Option<Vec<u8>>> {
        match std::fs::read(&self.0) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn append(&self, lines: &[u8]) -> io::Result<()> {
        if !self.0.exists() {
            return self.replace(lines);
        }
        let mut file = std::fs::OpenOptions::new().append(true).open(&self.0)?;
        file.write_all(lines)?;
        file.sync_data()
    }

    fn replace(&self, lines: &[u8]) -> io::Result<()> {
        secrets::replace(&self.0, lines, 0o600).map_err(io::Error::other)
    }
}

fn own_master_key(data: &Path) -> PathBuf {
    data.join(FOLDER).join(MASTER_KEY)
}

/// Opens the keys of a data folder, making them when there is no log yet.
pub(super) fn open_vault(
    data: &Path,
    master_key: Option<&Path>,
    machine: &Machine,
) -> anyhow::Result<Arc<Vault>> {
    let folder = data.join(FOLDER);
    let file = folder.join(DATA_KEYS);
    let written = std::fs::read_dir(data.join("log")).is_ok_and(|mut files| {
        files.any(|file| {
            file.is_ok_and(|file| file.path().extension().is_some_and(|it| it == format::EXTENSION))
        })
    });
    ensure!(
        file.exists() || !written,
        "{} is missing, and the log needs it; restore it from a backup",
        file.display()
    );
    std::fs::create_dir_all(&folder).with_context(|| format!("{} can't be made", folder.display()))?;
    let masters = match master_key {
        Some(path) => secrets::read_keys(path)?,
        None => secrets::keys(&own_master_key(data), !file.exists(), machine.randomness.as_ref())?,
    };
    let vault = Vault::open(
        Box::new(DataKeys(file)),
        masters.clone(),
        machine.randomness.clone(),
        machine.clock.clone(),
    )?;
    // All keys are under the newest one now; a change of it that was cut off is ended.
    if master_key.is_none() && masters.len() > 1 {
        secrets::write_keys(&own_master_key(data), &masters[..1])?;
    }
    Ok(Arc::new(vault))
}

/// Copies the keys of a data folder into another; a master key that lies elsewhere stays there.
pub(super) fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let (from, to) = (from.join(FOLDER), to.join(FOLDER));
    std::fs::create_dir_all(&to)?;
    for name in [DATA_KEYS, MASTER_KEY] {
        if from.join(name).exists() {
            // Copied with their mode.
            std::fs::copy(from.join(name), to.join(name))?;
            std::fs::File::open(to.join(name))?.sync_all()?;
        }
    }
    std::fs::File::open(&to)?.sync_all()
}

impl Node {
    /// Gives every tenant a new data key. Answers how many.
    pub fn rotate_data_keys(&self) -> anyhow::Result<usize> {
        Ok(self.vault.rotate()?)
    }

    /// Puts another master key in the place of the node's own, and wraps all data keys by it. Answers how many.
    pub fn rotate_master_key(&self) -> anyhow::Result<usize> {
        if let Some(path) = &self.options.master_key {
            anyhow::bail!(
                "the master key is in {}, which is not the node's to change; write a new one on its first line and start the node again",
                path.display()
            );
        }
        let path = own_master_key(&self.options.data);
        let known = secrets::read_keys(&path)?;
        let fresh = secrets::random_key(self.machine.randomness.as_ref())?;
        // Whatever is cut off here: each key is under one of the two, and a start ends the change.
        secrets::write_keys(&path, &[&[fresh][..], &known].concat())?;
        let keys = self.vault.rewrap(vec![fresh])?;
        secrets::write_keys(&path, &[fresh])?;
        Ok(keys)
    }
}
