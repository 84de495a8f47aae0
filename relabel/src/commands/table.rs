//! A table of scores that another program made, CSV or Parquet.

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use arrow::array::{Array as _, AsArray as _, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float64Type};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use runkit::text::choices;

/// The columns of scores by pair.
const BY_PAIR: [&str; 3] = ["pair_id", "score_0", "score_1"];
/// The columns of scores by image and caption.
const BY_IMAGE: [&str; 3] = ["image_uid", "caption", "score"];

/// The scores of a table. A score that is null, empty or not a finite number is `None`.
#[derive(Debug, Default)]
pub(super) struct Table {
    pub(super) scores: Scores,
    /// The rows of the table.
    pub(super) rows: u64,
    /// Rows whose key stood before; the first counts.
    pub(super) duplicates: u64,
    /// Of those the rows with another score.
    pub(super) contradictions: u64,
}

/// What a score belongs to.
#[derive(Debug)]
pub(super) enum Scores {
    /// Both scores of a pair, by its id.
    ByPair(HashMap<String, [Option<f32>; 2]>),
    /// By the image's uid and the caption.
    ByImage(HashMap<(String, String), Option<f32>>),
}

impl Default for Scores {
    fn default() -> Self {
        Self::ByPair(HashMap::new())
    }
}

impl Table {
    /// Reads a table. Its name's end says what it is: `.csv`, else Parquet.
    ///
    /// # Errors
    /// One sentence about the first row or column that cannot be read.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let is_csv = path.extension().is_some_and(|end| end.eq_ignore_ascii_case("csv"));
        if is_csv { Self::read_csv(path) } else { Self::read_parquet(path) }
    }

    /// An empty table with these columns, and where those that count stand.
    fn with_columns(path: &Path, names: &[String]) -> Result<(Self, [usize; 3])> {
        let find = |wanted: [&str; 3]| {
            let position = |name: &str| names.iter().position(|other| other == name);
            let [Some(one), Some(two), Some(three)] = wanted.map(position) else { return None };
            Some([one, two, three])
        };
        match (find(BY_PAIR), find(BY_IMAGE)) {
            (Some(columns), None) => Ok((Self::default(), columns)),
            (None, Some(columns)) => {
                let scores = Scores::ByImage(HashMap::new());
                Ok((Self { scores, ..Self::default() }, columns))
            }
            (Some(_), Some(_)) => bail!(
                "{}: expected the columns {} or {}, found both; hint: leave those of one out",
                path.display(),
                BY_PAIR.join(", "),
                BY_IMAGE.join(", ")
            ),
            (None, None) => bail!(
                "{}: expected the columns {} or {}, found {}",
                path.display(),
                BY_PAIR.join(", "),
                BY_IMAGE.join(", "),
                choices(names)
            ),
        }
    }

    fn read_csv(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
        let mut reader = csv::Reader::from_reader(file);
        let about = || format!("reading {}", path.display());
        let names: Vec<String> = reader
            .headers()
            .with_context(about)?
            .iter()
            .map(|name| name.trim().to_owned())
            .collect();
        let (mut table, columns) = Self::with_columns(path, &names)?;
        let mut record = csv::StringRecord::new();
        while reader.read_record(&mut record).with_context(about)? {
            let line = record.position().map_or(0, csv::Position::line);
            let fields = columns.map(|column| record.get(column).unwrap_or_default());
            let number = |field: usize| {
                number(fields[field]).with_context(|| {
                    format!(
                        "{}:{line}: expected a number or nothing in the column {}, found {:?}",
                        path.display(),
                        names[columns[field]],
                        fields[field]
                    )
                })
            };
            match &table.scores {
                Scores::ByPair(_) => table.add_pair(fields[0], [number(1)?, number(2)?]),
                Scores::ByImage(_) => table.add_image(fields[0], fields[1], number(2)?),
            }
        }
        Ok(table)
    }

    fn read_parquet(path: &Path) -> Result<Self> {
        // It is opened by the rules for all our inputs first: limits, and errors that name the file.
        let columns = schemas::text_columns::TextFile::open(path)?.columns();
        let names: Vec<String> = columns.into_iter().map(|column| column.name).collect();
        let (mut table, columns) = Self::with_columns(path, &names)?;
        let about = || format!("reading {}", path.display());
        let file = File::open(path).with_context(about)?;
        let reader = ParquetRecordBatchReaderBuilder::try_new(file).with_context(about)?;
        for batch in reader.build().with_context(about)? {
            table.add_batch(&batch.with_context(about)?, columns).with_context(about)?;
        }
        Ok(table)
    }

    fn add_batch(&mut self, batch: &RecordBatch, columns: [usize; 3]) -> Result<()> {
        let texts = if matches!(self.scores, Scores::ByPair(_)) { 1 } else { 2 };
        let mut cast_columns = Vec::with_capacity(columns.len());
        for (place, &column) in columns.iter().enumerate() {
            let wanted = if place < texts { DataType::Utf8 } else { DataType::Float64 };
            let values = batch.column(column);
            let schema = batch.schema();
            let field = schema.field(column);
            let is_fit = place >= texts || !field.data_type().is_floating();
            let values = match is_fit {
                true => {
                    cast(values, &wanted).ok().filter(|it| it.null_count() == values.null_count())
                }
                false => None,
            };
            cast_columns.push(values.with_context(|| {
                format!("column {:?}: expected {wanted}, found {}", field.name(), field.data_type())
            })?);
        }
        let text = |place: usize, row: usize| {
            let column = cast_columns[place].as_string::<i32>();
            if column.is_valid(row) { column.value(row) } else { "" }
        };
        let score = |place: usize, row: usize| {
            let column = cast_columns[place].as_primitive::<Float64Type>();
            finite(column.is_valid(row).then(|| column.value(row)))
        };
        for row in 0..batch.num_rows() {
            match texts {
                1 => self.add_pair(text(0, row), [score(1, row), score(2, row)]),
                _ => self.add_image(text(0, row), text(1, row), score(2, row)),
            }
        }
        Ok(())
    }

    fn add_pair(&mut self, pair_id: &str, scores: [Option<f32>; 2]) {
        self.rows += 1;
        let Scores::ByPair(pairs) = &mut self.scores else { return };
        let known = *pairs.entry(pair_id.to_owned()).or_insert(scores);
        let before = pairs.len();
        self.count(before, known == scores);
    }

    fn add_image(&mut self, uid: &str, caption: &str, score: Option<f32>) {
        self.rows += 1;
        let Scores::ByImage(images) = &mut self.scores else { return };
        let known = *images.entry((uid.to_owned(), caption.to_owned())).or_insert(score);
        let before = images.len();
        self.count(before, known == score);
    }

    /// Counts a row, after which so many keys are known.
    fn count(&mut self, keys: usize, is_same: bool) {
        let duplicates = self.rows - keys as u64;
        if duplicates > self.duplicates {
            self.contradictions += u64::from(!is_same);
        }
        self.duplicates = duplicates;
    }
}

/// The number that a field holds, if it holds one.
fn number(field: &str) -> Result<Option<f32>> {
    match field.trim() {
        "" | "null" | "NULL" | "NA" | "<NA>" | "\\N" | "None" => Ok(None),
        text => Ok(finite(Some(text.parse::<f64>()?))),
    }
}

/// The number as a score, if it is one.
fn finite(number: Option<f64>) -> Option<f32> {
    number.map(|number| number as f32).filter(|number| number.is_finite())
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "fixtures need not be durable")]
mod tests {
    use super::*;

    fn table(text: &str) -> Result<Table> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.csv");
        std::fs::write(&path, text).unwrap();
        Table::read(&path)
    }

    #[test]
    fn both_shapes_are_read_and_duplicates_counted() {
        let found = table(
            "score_1,pair_id,note,score_0\n2,a,x,1.5\n,b,x,NaN\n2,a,x,1.5\n3,a,x,1.5\ninf,c,,-1\n",
        );
        let Table { scores, rows, duplicates, contradictions } = found.unwrap();
        let Scores::ByPair(pairs) = scores else { panic!("by image") };
        assert_eq!((rows, duplicates, contradictions, pairs.len()), (5, 2, 1, 3));
        assert_eq!((pairs["a"], pairs["b"]), ([Some(1.5), Some(2.0)], [None; 2]));
        assert_eq!(pairs["c"], [Some(-1.0), None]);
        let found = table("image_uid,caption,score\nu,\"a cat, a dog\",0.5\nu,a dog,1\n").unwrap();
        let Scores::ByImage(images) = found.scores else { panic!("by pair") };
        assert_eq!(images[&("u".to_owned(), "a cat, a dog".to_owned())], Some(0.5));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, words) in [
            ("pair_id,score\na,1\n", "expected the columns pair_id, score_0, score_1 or"),
            ("pair_id,score_0,score_1\na,1,good\n", "t.csv:2: expected a number"),
            ("pair_id,score_0,score_1,image_uid,caption,score\n", "found both"),
            ("pair_id,score_0,score_1\na,1\n", "reading"),
        ] {
            let error = format!("{:#}", table(text).unwrap_err());
            assert!(error.contains(words), "{error}");
        }
    }
}
