//! Rows of labels by column, on Arrow arrays.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, Float32Array, Float32Builder, Float64Array, Float64Builder,
    Int8Array, Int8Builder, Int64Array, Int64Builder, RecordBatch, StringViewArray,
    StringViewBuilder,
};
use arrow::datatypes::{Float32Type, Float64Type, Int8Type, Int64Type};

use super::LabelsError;
use super::row::{LabelRow, Status};
use super::schema::LabelsSchema;
use crate::columns::{COLUMNS_BEFORE_SCORERS, COLUMNS_PER_SCORER, is_human_label};

/// Rows of labels by column. Cloning and slicing share the arrays.
///
/// Every batch fits its schema: the constructors check it, so the accessors need no `Result`.
#[derive(Clone, Debug, PartialEq)]
pub struct LabelBatch {
    schema: LabelsSchema,
    batch: RecordBatch,
}

impl LabelBatch {
    /// A batch of these columns, in the order of [`LabelsSchema::columns`] and of the types of
    /// [`LabelsSchema::memory_schema`].
    ///
    /// # Errors
    /// When number, type or length of the columns differ, or a column holds nulls that it must not
    /// have.
    pub fn try_new(schema: &LabelsSchema, columns: Vec<ArrayRef>) -> Result<Self, LabelsError> {
        let batch = RecordBatch::try_new(Arc::clone(schema.memory_schema()), columns)?;
        Ok(Self { schema: schema.clone(), batch })
    }

    /// A batch of rows.
    ///
    /// # Errors
    /// When a row has scores or votes for another number of scorers.
    pub fn from_rows(schema: &LabelsSchema, rows: &[LabelRow]) -> Result<Self, LabelsError> {
        let mut builder = LabelBatchBuilder::new(schema);
        rows.iter().try_for_each(|row| builder.push(row))?;
        builder.finish()
    }

    /// The same rows with other votes: one array for each scorer, their sum and its sign. `relabel
    /// vote` redecides a file with this; all other columns stay as they are.
    ///
    /// # Errors
    /// When number or length of the arrays differ.
    pub fn with_decisions(
        &self,
        votes: Vec<Int8Array>,
        vote_sum: Int8Array,
        consensus: Int8Array,
    ) -> Result<Self, LabelsError> {
        let mut columns = self.batch.columns().to_vec();
        let positions = (0..self.schema.scorers().len()).map(|scorer| self.vote_position(scorer));
        let positions = positions.chain([self.after_scorers(), self.after_scorers() + 1]);
        let expected = self.schema.scorers().len();
        if votes.len() != expected {
            let problem = format!("expected votes of {expected} scorers, found {}", votes.len());
            return Err(LabelsError::Scorers { problem });
        }
        for (position, array) in positions.zip(votes.into_iter().chain([vote_sum, consensus])) {
            if let Some(column) = columns.get_mut(position) {
                *column = Arc::new(array);
            }
        }
        Self::try_new(&self.schema, columns)
    }

    /// The same rows with another status and error, after a new decision.
    ///
    /// # Errors
    /// When the length of the arrays differs.
    pub fn with_status(
        &self,
        status: StringViewArray,
        error: StringViewArray,
    ) -> Result<Self, LabelsError> {
        let mut columns = self.batch.columns().to_vec();
        let arrays: [ArrayRef; 2] = [Arc::new(status), Arc::new(error)];
        for (column, array) in columns.iter_mut().skip(self.after_scorers() + 2).zip(arrays) {
            *column = array;
        }
        Self::try_new(&self.schema, columns)
    }

    /// The schema of this batch.
    pub fn schema(&self) -> &LabelsSchema {
        &self.schema
    }

    /// The columns as Arrow's own type.
    pub fn record_batch(&self) -> &RecordBatch {
        &self.batch
    }

    /// How many rows it has.
    pub fn num_rows(&self) -> usize {
        self.batch.num_rows()
    }

    /// `length` rows from `start` on, without copying; rows beyond the batch do not count.
    pub fn slice(&self, start: usize, length: usize) -> Self {
        let start = start.min(self.num_rows());
        let batch = self.batch.slice(start, length.min(self.num_rows() - start));
        Self { schema: self.schema.clone(), batch }
    }

    /// The ids of the pairs.
    pub fn pair_id(&self) -> &StringViewArray {
        self.batch.column(0).as_string_view()
    }

    /// The input file of each pair.
    pub fn source_file(&self) -> &StringViewArray {
        self.batch.column(1).as_string_view()
    }

    /// The row in its input file.
    pub fn source_row(&self) -> &Int64Array {
        self.batch.column(2).as_primitive::<Int64Type>()
    }

    /// The captions.
    pub fn caption(&self) -> &StringViewArray {
        self.batch.column(3).as_string_view()
    }

    /// The names of image 0 and image 1.
    pub fn image_uid(&self) -> [&StringViewArray; 2] {
        [self.batch.column(4).as_string_view(), self.batch.column(5).as_string_view()]
    }

    /// The human labels.
    pub fn human_label_0(&self) -> &Float64Array {
        self.batch.column(6).as_primitive::<Float64Type>()
    }

    /// The scores of image 0 and image 1 by a scorer, by its position in [`LabelsSchema::scorers`].
    ///
    /// # Panics
    /// When no scorer has this position, as indexing does.
    pub fn scores(&self, scorer: usize) -> [&Float32Array; 2] {
        let position = self.vote_position(scorer) - 2;
        [position, position + 1]
            .map(|position| self.batch.column(position).as_primitive::<Float32Type>())
    }

    /// The votes of a scorer, by its position in [`LabelsSchema::scorers`].
    ///
    /// # Panics
    /// When no scorer has this position, as indexing does.
    pub fn votes(&self, scorer: usize) -> &Int8Array {
        self.batch.column(self.vote_position(scorer)).as_primitive::<Int8Type>()
    }

    /// The sums of the votes.
    pub fn vote_sum(&self) -> &Int8Array {
        self.batch.column(self.after_scorers()).as_primitive::<Int8Type>()
    }

    /// The consensus.
    pub fn consensus(&self) -> &Int8Array {
        self.batch.column(self.after_scorers() + 1).as_primitive::<Int8Type>()
    }

    /// The status as text, which this version may not know.
    pub fn status(&self) -> &StringViewArray {
        self.batch.column(self.after_scorers() + 2).as_string_view()
    }

    /// The details of failures.
    pub fn error(&self) -> &StringViewArray {
        self.batch.column(self.after_scorers() + 3).as_string_view()
    }

    /// One row.
    ///
    /// # Errors
    /// When the row does not exist or has a status that this version does not know.
    pub fn row(&self, index: usize) -> Result<LabelRow, LabelsError> {
        let fail = |pair_id: &str, problem| LabelsError::Row {
            row: index,
            pair_id: pair_id.into(),
            problem,
        };
        if index >= self.num_rows() {
            return Err(fail("", format!("the batch has {} rows", self.num_rows())));
        }
        let text = |column: &StringViewArray| {
            column.is_valid(index).then(|| column.value(index).to_owned())
        };
        let vote = |column: &Int8Array| column.is_valid(index).then(|| column.value(index));
        let pair_id = self.pair_id().value(index).to_owned();
        let status = self.status().value(index).parse::<Status>();
        let status = status.map_err(|unknown| fail(&pair_id, unknown.to_string()))?;
        let scorers = 0..self.schema.scorers().len();
        Ok(LabelRow {
            pair_id,
            source_file: self.source_file().value(index).to_owned(),
            source_row: self.source_row().value(index),
            caption: text(self.caption()),
            image_uid: self.image_uid().map(text),
            human_label_0: self
                .human_label_0()
                .is_valid(index)
                .then(|| self.human_label_0().value(index)),
            scores: scorers
                .clone()
                .map(|scorer| {
                    self.scores(scorer)
                        .map(|scores| scores.is_valid(index).then(|| scores.value(index)))
                })
                .collect(),
            votes: scorers.map(|scorer| vote(self.votes(scorer))).collect(),
            vote_sum: vote(self.vote_sum()),
            consensus: vote(self.consensus()),
            status,
            error: text(self.error()),
        })
    }

    /// Checks what types cannot express: numbers are finite, votes are +1 or -1, a consensus is a
    /// sign.
    pub(super) fn check(&self) -> Result<(), LabelsError> {
        let fail = |row: usize, problem: String| {
            let pair_id = self.pair_id().value(row).to_owned();
            Err(LabelsError::Row { row, pair_id, problem })
        };
        let labels = self.human_label_0();
        let wrong = |row: &usize| labels.is_valid(*row) && !is_human_label(labels.value(*row));
        if let Some(row) = (0..self.num_rows()).find(wrong) {
            let found = labels.value(row);
            return fail(row, format!("human_label_0 is {found}, expected 1, 0.5, 0 or null"));
        }
        for (scorer, name) in self.schema.scorers().iter().enumerate() {
            for (image, scores) in self.scores(scorer).into_iter().enumerate() {
                let infinite =
                    |row: &usize| !scores.value(*row).is_finite() && scores.is_valid(*row);
                if let Some(row) = (0..self.num_rows()).find(infinite) {
                    let found = scores.value(row);
                    let problem =
                        format!("{name}_score_{image} is {found}, expected a number or null");
                    return fail(row, problem);
                }
            }
            if let Some(row) = outside(self.votes(scorer), |vote| matches!(vote, -1 | 1)) {
                let found = self.votes(scorer).value(row);
                return fail(row, format!("{name}_vote is {found}, expected +1, -1 or null"));
            }
        }
        if let Some(row) = outside(self.consensus(), |sign| matches!(sign, -1..=1)) {
            let found = self.consensus().value(row);
            return fail(row, format!("consensus is {found}, expected +1, 0, -1 or null"));
        }
        Ok(())
    }

    fn vote_position(&self, scorer: usize) -> usize {
        assert!(scorer < self.schema.scorers().len(), "no scorer {scorer}");
        COLUMNS_BEFORE_SCORERS + COLUMNS_PER_SCORER * scorer + 2
    }

    fn after_scorers(&self) -> usize {
        COLUMNS_BEFORE_SCORERS + COLUMNS_PER_SCORER * self.schema.scorers().len()
    }
}

/// The first row with a value that is not allowed.
fn outside(column: &Int8Array, allowed: impl Fn(i8) -> bool) -> Option<usize> {
    (0..column.len()).find(|&row| !allowed(column.value(row)) && column.is_valid(row))
}

/// Collects rows into a [`LabelBatch`].
#[derive(Debug)]
pub struct LabelBatchBuilder {
    schema: LabelsSchema,
    rows: usize,
    pair_id: StringViewBuilder,
    source_file: StringViewBuilder,
    source_row: Int64Builder,
    caption: StringViewBuilder,
    image_uid: [StringViewBuilder; 2],
    human_label_0: Float64Builder,
    scorers: Vec<([Float32Builder; 2], Int8Builder)>,
    vote_sum: Int8Builder,
    consensus: Int8Builder,
    status: StringViewBuilder,
    error: StringViewBuilder,
}

impl LabelBatchBuilder {
    /// An empty builder.
    pub fn new(schema: &LabelsSchema) -> Self {
        // Neighbours often have the same file and caption: they share one copy of the text.
        let shared = || StringViewBuilder::new().with_deduplicate_strings();
        Self {
            schema: schema.clone(),
            rows: 0,
            pair_id: StringViewBuilder::new(),
            source_file: shared(),
            source_row: Int64Builder::new(),
            caption: shared(),
            image_uid: [StringViewBuilder::new(), StringViewBuilder::new()],
            human_label_0: Float64Builder::new(),
            scorers: schema.scorers().iter().map(|_| Default::default()).collect(),
            vote_sum: Int8Builder::new(),
            consensus: Int8Builder::new(),
            status: shared(),
            error: StringViewBuilder::new(),
        }
    }

    /// How many rows were pushed since the last `finish`.
    pub fn len(&self) -> usize {
        self.rows
    }

    /// Whether no row was pushed since the last `finish`.
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// Adds a row.
    ///
    /// # Errors
    /// When the row has scores or votes for another number of scorers.
    pub fn push(&mut self, row: &LabelRow) -> Result<(), LabelsError> {
        let expected = self.schema.scorers().len();
        for (what, found) in [("scores", row.scores.len()), ("votes", row.votes.len())] {
            if found != expected {
                return Err(LabelsError::Row {
                    row: self.rows,
                    pair_id: row.pair_id.clone(),
                    problem: format!("expected {what} of {expected} scorers, found {found}"),
                });
            }
        }
        self.pair_id.append_value(&row.pair_id);
        self.source_file.append_value(&row.source_file);
        self.source_row.append_value(row.source_row);
        self.caption.append_option(row.caption.as_deref());
        for (column, uid) in self.image_uid.iter_mut().zip(&row.image_uid) {
            column.append_option(uid.as_deref());
        }
        self.human_label_0.append_option(row.human_label_0);
        for ((scores, votes), (both, vote)) in
            self.scorers.iter_mut().zip(row.scores.iter().zip(&row.votes))
        {
            for (column, score) in scores.iter_mut().zip(both) {
                column.append_option(*score);
            }
            votes.append_option(*vote);
        }
        self.vote_sum.append_option(row.vote_sum);
        self.consensus.append_option(row.consensus);
        self.status.append_value(row.status.as_str());
        self.error.append_option(row.error.as_deref());
        self.rows += 1;
        Ok(())
    }

    /// The rows pushed so far; the builder is empty afterwards.
    ///
    /// # Errors
    /// Those of [`LabelBatch::try_new`], which cannot occur for rows that were pushed.
    pub fn finish(&mut self) -> Result<LabelBatch, LabelsError> {
        let mut columns: Vec<ArrayRef> = vec![
            Arc::new(self.pair_id.finish()),
            Arc::new(self.source_file.finish()),
            Arc::new(self.source_row.finish()),
            Arc::new(self.caption.finish()),
        ];
        columns.extend(self.image_uid.iter_mut().map(|uid| Arc::new(uid.finish()) as ArrayRef));
        columns.push(Arc::new(self.human_label_0.finish()));
        for (scores, votes) in &mut self.scorers {
            columns.extend(scores.iter_mut().map(|score| Arc::new(score.finish()) as ArrayRef));
            columns.push(Arc::new(votes.finish()));
        }
        columns.push(Arc::new(self.vote_sum.finish()));
        columns.push(Arc::new(self.consensus.finish()));
        columns.push(Arc::new(self.status.finish()));
        columns.push(Arc::new(self.error.finish()));
        self.rows = 0;
        LabelBatch::try_new(&self.schema, columns)
    }
}
