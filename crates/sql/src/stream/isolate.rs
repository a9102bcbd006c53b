//! Finding the rows that a statement can't compute, so that one bad event never blocks a stream.

use arrow::json::LineDelimitedWriter;
use arrow::record_batch::RecordBatch;
use datafusion::common::DataFusionError;
use highwater_log::view::ViewError;

use super::feed::FeedPlan;

/// A row that could not be computed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadRow {
    /// Its number in the rows that were given.
    pub row: usize,
    /// Why.
    pub reason: String,
}

/// Runs a statement. Where that fails for a reason that can lie in a row, halves are tried until the
/// rows at fault stand alone.
pub async fn run_isolated(
    plan: &FeedPlan,
    rows: &RecordBatch,
) -> Result<(Vec<RecordBatch>, Vec<BadRow>), ViewError> {
    let mut results = Vec::new();
    let mut bad = Vec::new();
    let mut pending = vec![(0, rows.num_rows())];
    while let Some((start, length)) = pending.pop() {
        match plan.run(rows.slice(start, length)).await {
            Ok(batches) => results.extend(batches.into_iter().filter(|batch| batch.num_rows() > 0)),
            Err(error) if !lies_in_a_row(&error) => return Err(ViewError::Broken(clean(&error))),
            Err(error) if length == 1 => bad.push(BadRow { row: start, reason: clean(&error) }),
            Err(_) => {
                let half = length / 2;
                pending.push((start + half, length - half));
                pending.push((start, half));
            }
        }
    }
    Ok((results, bad))
}

fn lies_in_a_row(error: &DataFusionError) -> bool {
    matches!(
        error.find_root(),
        DataFusionError::ArrowError(..) | DataFusionError::Execution(_) | DataFusionError::External(_)
    )
}

fn clean(error: &DataFusionError) -> String {
    let text = error.find_root().strip_backtrace();
    text.trim_start_matches("Execution error: ").trim_start_matches("Arrow error: ").to_owned()
}

/// One row as JSON.
pub fn row_as_json(rows: &RecordBatch, row: usize) -> String {
    let mut writer = LineDelimitedWriter::new(Vec::new());
    match writer.write(&rows.slice(row, 1)).and_then(|()| writer.finish()) {
        Ok(()) => String::from_utf8_lossy(writer.get_ref()).trim_end().to_owned(),
        Err(error) => format!("{{\"unprintable\":{:?}}}", error.to_string()),
    }
}
