//! How often the scorers of a labels file agree with each other and with people.

use std::path::Path;

use arrow::array::{Array as _, Int8Array};
use schemas::labels::{LabelBatch, LabelsError, LabelsFile};

use super::heatmap::Matrix;

/// The name of the last row, where people have labelled pairs.
const PEOPLE: &str = "people";

/// Counts over the pairs of a file.
pub(super) struct Agreement {
    /// The scorers and, last, people.
    names: Vec<String>,
    pairs: u64,
    /// For each two of the names on how many pairs both have a vote, and on how many the same one.
    both: Vec<Vec<u64>>,
    alike: Vec<Vec<u64>>,
}

impl Agreement {
    /// Reads the votes of a file, batch by batch.
    pub(super) fn read(path: &Path) -> Result<Self, LabelsError> {
        let file = LabelsFile::open(path)?;
        let mut names = file.schema().scorers().to_vec();
        names.push(PEOPLE.to_owned());
        let zeros = vec![vec![0; names.len()]; names.len()];
        let mut agreement = Self { names, pairs: 0, both: zeros.clone(), alike: zeros };
        for batch in file.batches()? {
            agreement.add(&batch?);
        }
        Ok(agreement)
    }

    fn add(&mut self, batch: &LabelBatch) {
        self.pairs += batch.num_rows() as u64;
        let scorers = self.names.len() - 1;
        let votes: Vec<&Int8Array> = (0..scorers).map(|scorer| batch.votes(scorer)).collect();
        let people = batch.human_label_0();
        for row in 0..batch.num_rows() {
            let vote = |votes: &&Int8Array| votes.is_valid(row).then(|| votes.value(row));
            let mut voted: Vec<Option<i8>> = votes.iter().map(vote).collect();
            let label = people.is_valid(row).then(|| people.value(row));
            // A person's 0.5 is no vote.
            voted.push(label.filter(|label| *label != 0.5).map(
                |label| {
                    if label > 0.5 { 1 } else { -1 }
                },
            ));
            for (one, first) in voted.iter().enumerate() {
                for (two, second) in voted.iter().enumerate() {
                    if let (Some(first), Some(second)) = (first, second) {
                        self.both[one][two] += 1;
                        self.alike[one][two] += u64::from(first == second);
                    }
                }
            }
        }
    }

    /// How to read the figure.
    pub(super) fn caption(&self) -> String {
        let labelled = self.both.last().and_then(|row| row.last()).copied().unwrap_or(0);
        let people = if labelled == 0 {
            String::new()
        } else {
            format!(" People preferred one picture of {labelled} pairs.")
        };
        format!(
            "Share in % of {} training pairs on which two scorers vote alike. 50 is what tossing \
             coins gives.{people}",
            self.pairs
        )
    }

    /// The shares; people are left out where they have labelled nothing.
    pub(super) fn matrix(&self) -> Matrix {
        let labelled = self.both.last().and_then(|row| row.last()).is_some_and(|&both| both > 0);
        let shown = self.names.len() - usize::from(!labelled);
        let share = |one: usize, two: usize| {
            let both = self.both[one][two];
            (both > 0).then(|| self.alike[one][two] as f64 / both as f64)
        };
        let row = |one| (0..shown).map(|two| share(one, two)).collect();
        Matrix {
            title: "votes alike, %".to_owned(),
            rows: self.names[..shown].to_vec(),
            columns: self.names[..shown].to_vec(),
            values: (0..shown).map(row).collect(),
        }
    }
}
