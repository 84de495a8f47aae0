//! How often the scorers of a labels file agree with each other and with human labels, and how often
//! metrics order the images of a prompt alike.

use std::path::Path;

use arrow::array::{Array as _, Int8Array};
use schemas::labels::{LabelBatch, LabelsError, LabelsFile};

use super::heatmap::{self, Matrix, Scale};
use super::{Figure, FigureError, Heading, Plots, figure, set_name};
use crate::tables::{ALL_SETS, MetricAgreement};

/// The name of the last row, if there are human labels.
const HUMAN: &str = "human";

impl Plots<'_> {
    /// How often the scorers agree on the pairs of the training data.
    pub(super) fn agreement(&self, labels: &Path) -> Result<Figure, FigureError> {
        let agreement = Agreement::read(labels)?;
        let title = "Agreement of the scorers on the training pairs".to_owned();
        let caption = agreement.caption();
        let matrix = agreement.matrix();
        let heading = Heading { title: &title, caption: &caption };
        let svg = heatmap::render(self.renderer, heading, ["", ""], &[matrix], Scale::Fraction)?;
        let name = "label-agreement".to_owned();
        Ok(figure(name, None, heading, svg))
    }

    /// How often every two metrics order two images of a prompt alike, over all prompts.
    pub(super) fn metric_agreement(
        &self,
        rows: &[MetricAgreement],
    ) -> Result<Option<Figure>, FigureError> {
        let has_all = rows.iter().any(|row| row.prompt_set == ALL_SETS);
        let Some(set) =
            rows.iter().map(|row| &*row.prompt_set).find(|set| !has_all || *set == ALL_SETS)
        else {
            return Ok(None);
        };
        let metrics = &self.index.metrics;
        let rate = |one: &str, other: &str| {
            let of_both = |row: &&MetricAgreement| {
                row.prompt_set == set
                    && [[&*row.metric_a, &*row.metric_b], [&*row.metric_b, &*row.metric_a]]
                        .contains(&[one, other])
            };
            rows.iter().find(of_both).map(|row| row.agreement)
        };
        let names: Vec<String> = metrics.iter().map(|metric| (*metric).to_owned()).collect();
        let matrix = Matrix {
            title: "alike, %".to_owned(),
            rows: names.clone(),
            columns: names,
            values: metrics
                .iter()
                .map(|one| metrics.iter().map(|other| rate(one, other)).collect())
                .collect(),
        };
        let title = format!("Agreement of the metrics, on {}", set_name(set));
        let caption = "Pairs of images of a prompt for which two metrics prefer the same one, in %, \
                       whichever models made them. 50 is chance; Cohen's kappa is 2 · % / 100 − 1. \
                       Above 90 (kappa 0.8) two columns say nearly the same: a model that wins both \
                       has won once."
            .to_owned();
        let heading = Heading { title: &title, caption: &caption };
        let svg = heatmap::render(self.renderer, heading, ["", ""], &[matrix], Scale::Outcome)?;
        Ok(Some(figure("metric-agreement".to_owned(), None, heading, svg)))
    }
}

/// Counts over the pairs of a file.
pub(super) struct Agreement {
    /// The scorers and, last, [`HUMAN`].
    names: Vec<String>,
    pairs: u64,
    /// For each two of the names the number of pairs on which both vote, and on which they agree.
    both: Vec<Vec<u64>>,
    alike: Vec<Vec<u64>>,
}

impl Agreement {
    /// Reads the votes of a file, batch by batch.
    pub(super) fn read(path: &Path) -> Result<Self, LabelsError> {
        let file = LabelsFile::open(path)?;
        let mut names = file.schema().scorers().to_vec();
        names.push(HUMAN.to_owned());
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
        let human = batch.human_label_0();
        for row in 0..batch.num_rows() {
            let vote = |votes: &&Int8Array| votes.is_valid(row).then(|| votes.value(row));
            let mut voted: Vec<Option<i8>> = votes.iter().map(vote).collect();
            let label = human.is_valid(row).then(|| human.value(row));
            // A human label of 0.5 is a tie, which is not a vote.
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
        let human = if labelled == 0 {
            String::new()
        } else {
            format!(" {labelled} pairs have a human label that prefers one image.")
        };
        format!(
            "How often two scorers vote for the same image, in % of {} training pairs; random \
             votes agree on 50 %.{human}",
            self.pairs
        )
    }

    /// The rates of agreement; without human labels there is no row for them.
    pub(super) fn matrix(&self) -> Matrix {
        let labelled = self.both.last().and_then(|row| row.last()).is_some_and(|&both| both > 0);
        let shown = self.names.len() - usize::from(!labelled);
        let rate = |one: usize, two: usize| {
            let both = self.both[one][two];
            (both > 0).then(|| self.alike[one][two] as f64 / both as f64)
        };
        let row = |one| (0..shown).map(|two| rate(one, two)).collect();
        Matrix {
            title: "agreement, %".to_owned(),
            rows: self.names[..shown].to_vec(),
            columns: self.names[..shown].to_vec(),
            values: (0..shown).map(row).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use schemas::labels::{LabelRow, LabelsSchema, LabelsWriter, Status};

    use super::*;

    fn row(number: i64, votes: [i8; 2], human_label_0: Option<f64>) -> LabelRow {
        let vote_sum = votes.iter().sum::<i8>();
        LabelRow {
            pair_id: format!("pair {number}"),
            source_file: "pairs.parquet".to_owned(),
            source_row: number,
            caption: Some("a fox".to_owned()),
            image_uid: [Some("left".to_owned()), Some("right".to_owned())],
            human_label_0,
            scores: votes.map(|vote| [Some(f32::from(vote)), Some(0.0)]).to_vec(),
            votes: votes.map(Some).to_vec(),
            vote_sum: Some(vote_sum),
            consensus: Some(vote_sum.signum()),
            status: Status::Ok,
            error: None,
        }
    }

    fn read(rows: &[LabelRow]) -> Agreement {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("labels.parquet");
        let schema = LabelsSchema::new(&["clip".to_owned(), "hps".to_owned()]).unwrap();
        let mut writer = LabelsWriter::create(&path, &schema, &BTreeMap::new()).unwrap();
        rows.iter().for_each(|row| writer.write(row).unwrap());
        writer.finish().unwrap();
        Agreement::read(&path).unwrap()
    }

    #[test]
    fn votes_are_compared_with_each_other_and_with_human_labels() {
        let labels = [Some(1.0), Some(0.0), Some(0.5), None];
        let votes = [[1, 1], [1, -1], [-1, -1], [-1, -1]];
        let rows = (0..).zip(votes).zip(labels);
        let rows: Vec<LabelRow> =
            rows.map(|((number, votes), label)| row(number, votes, label)).collect();
        let agreement = read(&rows);
        let matrix = agreement.matrix();
        assert_eq!(matrix.rows, ["clip", "hps", "human"]);
        let [one, half] = [Some(1.0), Some(0.5)];
        let expected = [[one, Some(0.75), half], [Some(0.75), one, one], [half, one, one]];
        assert_eq!(matrix.values, expected.map(|row| row.to_vec()));
        assert!(agreement.caption().contains("of 4 training pairs"));
        assert!(agreement.caption().contains("2 pairs have a human label"));
    }

    #[test]
    fn without_human_labels_there_is_no_row_for_them() {
        let agreement = read(&[row(0, [1, -1], None), row(1, [1, 1], Some(0.5))]);
        assert_eq!(agreement.matrix().rows, ["clip", "hps"]);
        assert!(!agreement.caption().contains("human"));
    }
}
