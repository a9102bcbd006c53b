//! What questions put aside on disk when it does not fit into memory, encrypted: it may hold what is SENSITIVE.
//!
//! Each file has a key of its own that is nowhere but in memory, and no name: when the process ends, however it
//! ends, neither is there any more. A file is a row of frames, `length u32 (little-endian) | encrypted frame`.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use datafusion::common::{DataFusionError, Result};
use datafusion::execution::spill_file::{SpillFile, SpillWriter, TempFileFactory};
use futures::Stream;
use highwater_event::{Randomness, SystemRandomness};
use highwater_privacy::aead::{AeadError, DataKey, OVERHEAD, Opener, SALT_LEN, Sealed, Sealer};

/// Bytes of a frame before it is encrypted.
const FRAME: usize = 128 << 10;
const LENGTH: usize = size_of::<u32>();

/// Makes the files.
pub(crate) struct Spills {
    used: Arc<AtomicU64>,
    limit: u64,
}

impl Spills {
    /// All files together hold `limit` bytes at most.
    pub fn new(limit: u64) -> Self {
        Self { used: Arc::default(), limit }
    }
}

impl TempFileFactory for Spills {
    fn create_temp_file(&self, _description: &str) -> Result<Arc<dyn SpillFile>> {
        let (mut key, mut salt) = (DataKey::default(), [0; SALT_LEN]);
        // No outcome depends on them, so they need not come from the machine that a test may set.
        for bytes in [key.as_mut_slice(), salt.as_mut_slice()] {
            SystemRandomness.fill(bytes).map_err(|error| DataFusionError::External(Box::new(error)))?;
        }
        let sealer = Sealer::new(0, &key, &salt).map_err(io::Error::other)?;
        let written = Mutex::new(Written { sealer, frames: 0, bytes: 0 });
        let (file, used) = (tempfile::tempfile()?, self.used.clone());
        Ok(Arc::new(Spill(Arc::new(Shared { file, key, written, used, limit: self.limit }))))
    }
}

struct Spill(Arc<Shared>);

struct Shared {
    file: File,
    key: DataKey,
    written: Mutex<Written>,
    used: Arc<AtomicU64>,
    limit: u64,
}

struct Written {
    sealer: Sealer,
    frames: u64,
    bytes: u64,
}

impl Shared {
    fn written(&self) -> MutexGuard<'_, Written> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn append(&self, frame: &[u8]) -> io::Result<()> {
        let mut written = self.written();
        let mut bytes = Vec::with_capacity(LENGTH + frame.len() + OVERHEAD);
        bytes.extend_from_slice(&((frame.len() + OVERHEAD) as u32).to_le_bytes());
        let place = written.frames.to_le_bytes();
        written.sealer.seal(&place, frame, &mut bytes).map_err(io::Error::other)?;
        let used = self.used.fetch_add(bytes.len() as u64, Ordering::Relaxed) + bytes.len() as u64;
        if used > self.limit {
            self.used.fetch_sub(bytes.len() as u64, Ordering::Relaxed);
            let full = format!("questions have put {} MiB aside on disk, and may not more", self.limit >> 20);
            return Err(io::Error::new(io::ErrorKind::StorageFull, full));
        }
        self.file.write_all_at(&bytes, written.bytes)?;
        written.bytes += bytes.len() as u64;
        written.frames += 1;
        Ok(())
    }

    /// The frame with that number, which begins at `at`, and where the next one begins.
    fn read(&self, number: u64, at: u64) -> io::Result<Option<(Bytes, u64)>> {
        if at >= self.written().bytes {
            return Ok(None);
        }
        let mut length = [0; LENGTH];
        self.file.read_exact_at(&mut length, at)?;
        let length = u32::from_le_bytes(length) as usize;
        if length > FRAME + OVERHEAD {
            return Err(io::Error::other(AeadError::Malformed));
        }
        let mut bytes = vec![0; length];
        self.file.read_exact_at(&mut bytes, at + LENGTH as u64)?;
        let sealed = Sealed::parse(&bytes).map_err(io::Error::other)?;
        let mut opener = Opener::default();
        let frame = opener.open(sealed, &self.key, &number.to_le_bytes()).map_err(io::Error::other)?;
        Ok(Some((Bytes::copy_from_slice(frame), at + (LENGTH + length) as u64)))
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.used.fetch_sub(self.written().bytes, Ordering::Relaxed);
    }
}

impl SpillFile for Spill {
    fn size(&self) -> Option<u64> {
        Some(self.0.written().bytes)
    }

    fn read_stream(&self) -> Result<Pin<Box<dyn Stream<Item = Result<Bytes>> + Send>>> {
        let shared = self.0.clone();
        Ok(Box::pin(futures::stream::try_unfold((0, 0), move |(number, at)| {
            let shared = shared.clone();
            async move {
                let read = tokio::task::spawn_blocking(move || shared.read(number, at)).await;
                let frame = read.map_err(|error| DataFusionError::External(Box::new(error)))??;
                Ok(frame.map(|(bytes, next)| (bytes, (number + 1, next))))
            }
        })))
    }

    fn open_writer(&self) -> Result<Box<dyn SpillWriter>> {
        Ok(Box::new(Writer { shared: self.0.clone(), frame: Vec::with_capacity(FRAME) }))
    }
}

/// Gathers frames.
struct Writer {
    shared: Arc<Shared>,
    frame: Vec<u8>,
}

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(FRAME - self.frame.len());
        self.frame.extend_from_slice(&bytes[..taken]);
        if self.frame.len() == FRAME {
            self.flush()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        if !self.frame.is_empty() {
            self.shared.append(&self.frame)?;
            self.frame.clear();
        }
        Ok(())
    }
}

impl SpillWriter for Writer {
    fn finish(&mut self) -> Result<()> {
        Ok(self.flush()?)
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::AsArray;
    use arrow::compute::cast;
    use arrow::datatypes::DataType;
    use datafusion::prelude::{SessionConfig, SessionContext};
    use futures::StreamExt;

    use super::*;

    fn read(file: &dyn SpillFile) -> Vec<u8> {
        let frames = file.read_stream().unwrap().map(Result::unwrap).collect::<Vec<_>>();
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(frames).concat()
    }

    #[test]
    fn what_is_put_aside_comes_back_and_is_nowhere_in_the_clear() {
        let spills = Spills::new(4 << 20);
        let file = spills.create_temp_file("").unwrap();
        let said: Vec<u8> = b"a card number; ".iter().copied().cycle().take(FRAME * 3 + 17).collect();
        for part in [&said[..FRAME + 5], &said[FRAME + 5..]] {
            let mut writer = file.open_writer().unwrap();
            writer.write_all(part).unwrap();
            writer.finish().unwrap();
        }
        assert_eq!(read(file.as_ref()), said);
        let size = file.size().unwrap();
        assert!(size > said.len() as u64);
        assert_eq!(spills.used.load(Ordering::Relaxed), size);
        drop(file);
        assert_eq!(spills.used.load(Ordering::Relaxed), 0, "the room is free again");
    }

    #[test]
    fn the_files_hold_no_more_than_the_limit_together() {
        let spills = Spills::new((FRAME * 2) as u64);
        let (one, other) = (spills.create_temp_file("").unwrap(), spills.create_temp_file("").unwrap());
        one.open_writer().unwrap().write_all(&vec![1; FRAME]).unwrap();
        let refused = other.open_writer().unwrap().write_all(&vec![1; FRAME]).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::StorageFull);
        drop(one);
        other.open_writer().unwrap().write_all(&vec![1; FRAME]).unwrap();
        assert_eq!(read(other.as_ref()), vec![1; FRAME]);
    }

    #[test]
    fn a_changed_file_is_an_error_and_its_bytes_say_nothing() {
        let said = b"a card number".repeat(100);
        let file = Shared {
            file: tempfile::tempfile().unwrap(),
            key: [1; 32],
            written: Mutex::new(Written {
                sealer: Sealer::new(0, &[1; 32], &[2; SALT_LEN]).unwrap(),
                frames: 0,
                bytes: 0,
            }),
            used: Arc::default(),
            limit: u64::MAX,
        };
        file.append(&said).unwrap();
        let mut stored = vec![0; file.written().bytes as usize];
        file.file.read_exact_at(&mut stored, 0).unwrap();
        assert!(!stored.windows(6).any(|window| window == b"a card"));
        assert_eq!(file.read(0, 0).unwrap().unwrap().0, said);
        assert!(file.read(1, 0).is_err(), "it is another frame");
        // The number of a data key says nothing here.
        for at in (0..5).chain((9..stored.len()).step_by(7)) {
            file.file.write_all_at(&[stored[at] ^ 1], at as u64).unwrap();
            // A length that is too small cuts the frame.
            assert!(file.read(0, 0).is_err(), "byte {at}");
            file.file.write_all_at(&[stored[at]], at as u64).unwrap();
        }
    }

    #[test]
    fn a_sort_that_does_not_fit_into_memory_uses_them() {
        let spills = Arc::new(Spills::new(1 << 30));
        let runtime = crate::session::runtime(16 << 20, spills.clone()).unwrap();
        let config = SessionConfig::new().with_target_partitions(1);
        let context = SessionContext::new_with_config_rt(config, runtime);
        let question = "SELECT n, concat('card ', CAST(n AS TEXT)) AS card FROM range(900000) AS r (n) ORDER BY card DESC";
        let rows = tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
            let mut rows = context.sql(question).await.unwrap().execute_stream().await.unwrap();
            let (mut most, mut last, mut count) = (0, String::from("d"), 0);
            while let Some(batch) = rows.next().await {
                most = most.max(spills.used.load(Ordering::Relaxed));
                let batch = batch.unwrap();
                for card in cast(batch.column(1), &DataType::Utf8).unwrap().as_string::<i32>().iter() {
                    let card = card.unwrap().to_owned();
                    assert!(card < last, "{card} after {last}");
                    (last, count) = (card, count + 1);
                }
            }
            assert!(most > 4 << 20, "{most} bytes were put aside");
            count
        });
        assert_eq!(rows, 900_000);
        assert_eq!(spills.used.load(Ordering::Relaxed), 0);
    }
}
