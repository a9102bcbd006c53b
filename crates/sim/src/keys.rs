//! A file of data keys in memory.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use highwater_event::{ManualClock, SeededRandomness};
use highwater_privacy::{KeyFile, RingError, Vault};

/// The file: clones are the same one. An append may fail in its middle.
#[derive(Debug, Clone, Default)]
pub struct SimKeys(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    bytes: Option<Vec<u8>>,
    cut: Option<usize>,
}

impl SimKeys {
    /// Opens the keys under a master key, making those that are missing of `seed`.
    pub fn open(&self, masters: &[[u8; 32]], seed: u64) -> Result<Vault, RingError> {
        let (randomness, clock) = (Arc::new(SeededRandomness::new(seed)), Arc::new(ManualClock::at(1)));
        Vault::open(Box::new(self.clone()), masters.to_vec(), randomness, clock)
    }

    /// What it holds.
    pub fn bytes(&self) -> Vec<u8> {
        self.state().bytes.clone().unwrap_or_default()
    }

    /// Makes it hold these bytes.
    pub fn put(&self, bytes: Vec<u8>) {
        self.state().bytes = Some(bytes);
    }

    /// The next append leaves so many bytes and fails.
    pub fn fail_after(&self, bytes: usize) {
        self.state().cut = Some(bytes);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl KeyFile for SimKeys {
    fn read(&self) -> io::Result<Option<Vec<u8>>> {
        Ok(self.state().bytes.clone())
    }

    fn append(&self, lines: &[u8]) -> io::Result<()> {
        let mut state = self.state();
        let cut = state.cut.take();
        let written = &lines[..cut.unwrap_or(lines.len())];
        state.bytes.get_or_insert_default().extend_from_slice(written);
        if cut.is_some() { Err(io::Error::other("the disk is gone")) } else { Ok(()) }
    }

    fn replace(&self, lines: &[u8]) -> io::Result<()> {
        self.put(lines.to_vec());
        Ok(())
    }
}

/// Keys for a test that asks nothing of them: the same ones at each call.
pub fn vault() -> Arc<Vault> {
    match SimKeys::default().open(&[[1; 32]], 1) {
        Ok(vault) => Arc::new(vault),
        Err(error) => unreachable!("a new file in memory: {error}"),
    }
}
