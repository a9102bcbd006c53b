//! The simulated disk.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use highwater_event::SeededRandomness;
use highwater_log::disk::{Disk, DiskFile, LockGuard};

/// The smallest piece of a write that is never torn.
const SECTOR: usize = 512;

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The operation fails and changes nothing; later ones work.
    Fails,
    /// A write stops half-way and fails; other operations fail.
    Tears,
    /// The disk is full from here on.
    Full,
    /// The machine loses power: this and every later operation fails.
    PowerCut,
}

/// A change of a file that has not been synced.
#[derive(Debug, Clone)]
enum Change {
    Write(u64, Vec<u8>),
    Truncate(u64),
}

#[derive(Debug, Clone, Default)]
struct Inode {
    /// What a reader sees.
    current: Vec<u8>,
    /// What survives a power cut for certain.
    synced: Vec<u8>,
    /// What may survive.
    unsynced: Vec<Change>,
}

#[derive(Debug, Default)]
struct State {
    files: BTreeMap<PathBuf, Arc<Mutex<Inode>>>,
    /// The folder as a power cut leaves it for certain.
    synced_names: BTreeMap<PathBuf, Arc<Mutex<Inode>>>,
    /// Operations so far: writes, syncs, creations, renames, removals, truncations.
    operations: u64,
    faults: BTreeMap<u64, Fault>,
    full: bool,
    dead: bool,
    failed: bool,
    locked: bool,
}

/// A simulated disk; clones share it.
#[derive(Debug, Clone, Default)]
pub struct SimDisk(Arc<Mutex<State>>);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

enum Step {
    Go,
    Tear,
}

impl SimDisk {
    /// An empty disk.
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets something go wrong at the n-th operation, counted from 0.
    pub fn fault_at(&self, operation: u64, fault: Fault) {
        lock(&self.0).faults.insert(operation, fault);
    }

    /// Operations so far.
    pub fn operations(&self) -> u64 {
        lock(&self.0).operations
    }

    /// Makes room again.
    pub fn free(&self) {
        lock(&self.0).full = false;
    }

    /// Lets nothing go wrong any more, as long as there is power.
    pub fn repair(&self) {
        let mut state = lock(&self.0);
        state.faults.clear();
        state.full = false;
        state.failed = false;
    }

    /// True when something has gone wrong since the disk was made or repaired.
    pub fn has_failed(&self) -> bool {
        lock(&self.0).failed
    }

    /// True when there is no power any more.
    pub fn is_off(&self) -> bool {
        lock(&self.0).dead
    }

    /// What a machine finds after the power came back. Names that were not synced are there or not;
    /// writes that were not synced are whole, torn or gone, whatever their order was.
    pub fn after_power_cut(&self, seed: u64) -> SimDisk {
        let chance = SeededRandomness::new(seed);
        let state = lock(&self.0);
        let mut files = BTreeMap::new();
        let names = state.files.keys().chain(state.synced_names.keys());
        for path in names.collect::<std::collections::BTreeSet<_>>() {
            let (now, synced) = (state.files.get(path), state.synced_names.get(path));
            let inode = match (now, synced) {
                (Some(now), Some(synced)) if Arc::ptr_eq(now, synced) => Some(now),
                (now, synced) => {
                    if chance.chance(0.5) {
                        now
                    } else {
                        synced
                    }
                }
            };
            if let Some(inode) = inode {
                let bytes = survivors(&lock(inode), &chance);
                let inode = Inode { current: bytes.clone(), synced: bytes, unsynced: Vec::new() };
                files.insert(path.clone(), Arc::new(Mutex::new(inode)));
            }
        }
        SimDisk(Arc::new(Mutex::new(State { synced_names: files.clone(), files, ..State::default() })))
    }

    /// Changes the bytes of a file behind the program's back, durably.
    pub fn damage(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let state = lock(&self.0);
        if let Some(inode) = state.files.get(path) {
            let mut inode = lock(inode);
            change(&mut inode.current);
            inode.synced = inode.current.clone();
        }
    }

    /// A copy that does not share anything.
    pub fn copy(&self) -> SimDisk {
        let state = lock(&self.0);
        let files: BTreeMap<_, _> = state
            .files
            .iter()
            .map(|(path, inode)| (path.clone(), Arc::new(Mutex::new(lock(inode).clone()))))
            .collect();
        SimDisk(Arc::new(Mutex::new(State { synced_names: files.clone(), files, ..State::default() })))
    }

    /// The bytes of a file.
    pub fn bytes(&self, path: &Path) -> Option<Vec<u8>> {
        lock(&self.0).files.get(path).map(|inode| lock(inode).current.clone())
    }

    fn step(&self, writes: bool) -> io::Result<Step> {
        let mut state = lock(&self.0);
        let number = state.operations;
        state.operations += 1;
        if state.dead {
            return Err(io::Error::other("no power"));
        }
        let fault = state.faults.remove(&number);
        state.failed |= fault.is_some();
        match fault {
            Some(Fault::PowerCut) => {
                state.dead = true;
                return if writes { Ok(Step::Tear) } else { Err(io::Error::other("no power")) };
            }
            Some(Fault::Fails) => return Err(io::Error::other("a simulated fault")),
            Some(Fault::Tears) => {
                return if writes { Ok(Step::Tear) } else { Err(io::Error::other("a simulated fault")) };
            }
            Some(Fault::Full) => state.full = true,
            None => {}
        }
        if state.full && writes {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(Step::Go)
    }
}

/// What is left of a file: the synced bytes and some of the changes after them.
fn survivors(inode: &Inode, chance: &SeededRandomness) -> Vec<u8> {
    let mut bytes = inode.synced.clone();
    let mut changes: Vec<&Change> = inode.unsynced.iter().collect();
    // Writes reach the disk in any order.
    for at in (1..changes.len()).rev() {
        if chance.chance(0.3) {
            changes.swap(at, chance.below(at as u64 + 1) as usize);
        }
    }
    for change in changes {
        match change {
            Change::Truncate(length) => {
                if chance.chance(0.7) {
                    bytes.truncate(*length as usize);
                }
            }
            Change::Write(position, written) => {
                let style = chance.below(3);
                for (number, sector) in written.chunks(SECTOR).enumerate() {
                    // 0: gone, 1: whole, 2: sector by sector.
                    if style == 1 || (style == 2 && chance.chance(0.5)) {
                        apply(&mut bytes, *position + (number * SECTOR) as u64, sector);
                    }
                }
            }
        }
    }
    bytes
}

fn apply(bytes: &mut Vec<u8>, position: u64, written: &[u8]) {
    let start = position as usize;
    let end = start + written.len();
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[start..end].copy_from_slice(written);
}

struct SimFile {
    disk: SimDisk,
    inode: Arc<Mutex<Inode>>,
}

impl DiskFile for SimFile {
    fn write_at(&self, bytes: &[u8], position: u64) -> io::Result<()> {
        let step = self.disk.step(true)?;
        let mut inode = lock(&self.inode);
        let taken = match step {
            Step::Go => bytes,
            Step::Tear => &bytes[..bytes.len() / 2],
        };
        apply(&mut inode.current, position, taken);
        inode.unsynced.push(Change::Write(position, taken.to_vec()));
        match step {
            Step::Go => Ok(()),
            Step::Tear => Err(io::Error::other("a simulated fault in the middle of a write")),
        }
    }

    fn read_at(&self, bytes: &mut [u8], position: u64) -> io::Result<()> {
        let inode = lock(&self.inode);
        let start = position as usize;
        let found = inode.current.get(start..start + bytes.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        bytes.copy_from_slice(found);
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(lock(&self.inode).current.len() as u64)
    }

    fn truncate(&self, length: u64) -> io::Result<()> {
        self.disk.step(false)?;
        let mut inode = lock(&self.inode);
        inode.current.truncate(length as usize);
        inode.unsynced.push(Change::Truncate(length));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.disk.step(false)?;
        let mut inode = lock(&self.inode);
        inode.synced = inode.current.clone();
        inode.unsynced.clear();
        Ok(())
    }
}

struct Lock(SimDisk);

impl LockGuard for Lock {}

impl Drop for Lock {
    fn drop(&mut self) {
        lock(&self.0.0).locked = false;
    }
}

impl Disk for SimDisk {
    fn create_dir_all(&self, _dir: &Path) -> io::Result<()> {
        Ok(())
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.step(false)?;
        let mut state = lock(&self.0);
        if state.full {
            return Err(io::ErrorKind::StorageFull.into());
        }
        if state.files.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let inode = Arc::new(Mutex::new(Inode::default()));
        state.files.insert(path.to_owned(), inode.clone());
        Ok(Box::new(SimFile { disk: self.clone(), inode }))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let state = lock(&self.0);
        let inode = state.files.get(path).cloned().ok_or(io::ErrorKind::NotFound)?;
        Ok(Box::new(SimFile { disk: self.clone(), inode }))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        Ok(lock(&self.0).files.keys().filter(|path| path.parent() == Some(dir)).cloned().collect())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.step(false)?;
        let mut state = lock(&self.0);
        let inode = state.files.remove(from).ok_or(io::ErrorKind::NotFound)?;
        state.files.insert(to.to_owned(), inode);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.step(false)?;
        lock(&self.0).files.remove(path).map(|_| ()).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.step(false)?;
        let mut state = lock(&self.0);
        let here = |path: &Path| path.parent() == Some(dir);
        let mut names = std::mem::take(&mut state.synced_names);
        names.retain(|path, _| !here(path));
        names.extend(
            state
                .files
                .iter()
                .filter(|(path, _)| here(path))
                .map(|(path, inode)| (path.clone(), inode.clone())),
        );
        state.synced_names = names;
        Ok(())
    }

    fn lock(&self, _path: &Path) -> io::Result<Box<dyn LockGuard>> {
        let mut state = lock(&self.0);
        if std::mem::replace(&mut state.locked, true) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(Box::new(Lock(self.clone())))
    }
}
