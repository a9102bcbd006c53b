//! What is on a disk, byte by byte.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use arrow::util::pretty::pretty_format_batches;
use deltalake::parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

/// All files of a folder.
pub fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() { files(&path, found) } else { found.push(path) }
    }
}

/// Files that hold one of the byte strings, as they are or as rows of Parquet.
pub fn holding(folder: &Path, sought: &[Vec<u8>]) -> Vec<String> {
    let mut all = Vec::new();
    files(folder, &mut all);
    let mut by_length: BTreeMap<usize, HashSet<Vec<u8>>> = BTreeMap::new();
    // Most places are none, by their first byte already.
    let mut begins = [false; 256];
    for word in sought {
        begins[usize::from(word[0].to_ascii_lowercase())] = true;
        by_length.entry(word.len()).or_default().insert(word.to_ascii_lowercase());
    }
    let mut holding = Vec::new();
    for path in all {
        let mut bytes = std::fs::read(&path).unwrap();
        if path.extension().is_some_and(|extension| extension == "parquet") {
            let file = std::fs::File::open(&path).unwrap();
            let rows = ParquetRecordBatchReaderBuilder::try_new(file).unwrap().build().unwrap();
            let rows: Vec<_> = rows.map(Result::unwrap).collect();
            bytes.extend(pretty_format_batches(&rows).unwrap().to_string().into_bytes());
        }
        bytes.make_ascii_lowercase();
        for (length, words) in &by_length {
            let fits = |window: &&[u8]| begins[usize::from(window[0])] && words.contains(*window);
            let found: HashSet<&[u8]> = bytes.windows(*length).filter(fits).collect();
            holding.extend(
                found.iter().map(|word| format!("{} in {}", String::from_utf8_lossy(word), path.display())),
            );
        }
    }
    holding
}
