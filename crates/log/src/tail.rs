//! The newest batches, kept decoded: views and live queries read these, so that in the steady state
//! no byte of the log is read back or decoded.

use std::collections::{HashMap, VecDeque};

use highwater_event::{Offset, StreamPartition};

use crate::commit::LogBatch;
use crate::segment::MAX_READ_BYTES;

pub(crate) struct Tail {
    capacity: usize,
    bytes: usize,
    batches: HashMap<StreamPartition, VecDeque<(LogBatch, usize)>>,
    /// Partitions in the order in which their batches came, oldest first.
    order: VecDeque<StreamPartition>,
}

impl Tail {
    pub fn new(capacity: usize) -> Self {
        Self { capacity, bytes: 0, batches: HashMap::new(), order: VecDeque::new() }
    }

    pub fn push(&mut self, at: &StreamPartition, batch: LogBatch) {
        let size = batch.rows.get_array_memory_size();
        self.bytes += size;
        self.batches.entry(at.clone()).or_default().push_back((batch, size));
        self.order.push_back(at.clone());
        while self.bytes > self.capacity
            && let Some(oldest) = self.order.pop_front()
        {
            if let Some((_, size)) = self.batches.get_mut(&oldest).and_then(VecDeque::pop_front) {
                self.bytes -= size;
            }
        }
    }

    /// Drops all batches.
    pub fn clear(&mut self) {
        *self = Self::new(self.capacity);
    }

    /// The batches from `from` on; `None` when the tail does not reach back that far.
    pub fn read(&self, at: &StreamPartition, from: Offset, max_rows: usize) -> Option<Vec<LogBatch>> {
        let batches = self.batches.get(at)?;
        if batches.front()?.0.base > from {
            return None;
        }
        let first = batches.partition_point(|(batch, _)| batch.end() <= from);
        let (mut rows, mut bytes) = (0usize, 0usize);
        let mut taken = Vec::new();
        for (batch, size) in batches.iter().skip(first) {
            if rows >= max_rows || bytes >= MAX_READ_BYTES {
                break;
            }
            rows += batch.rows.num_rows();
            bytes += size;
            taken.push(batch.clone());
        }
        Some(taken)
    }
}
