//! Mean scores as the benchmark of HPS v2 prints them: for each style the mean and the std of
//! the means of groups of 80 prompts, and the mean of all prompts, all times 100
//! (`evaluate_benchmark` in `hpsv2/evaluation.py` of tgxs002/HPSv2 at 866735e).

use super::grid::{Grid, GridCell, GridRow};
use crate::prompts::Style;
use crate::scores_index::ScoresIndex;

/// Prompts of a group.
const GROUP: usize = 80;
/// The benchmark prints cosines times this.
const SCALE: f64 = 100.0;
/// The metrics that the benchmark is about have names that begin with this.
const PREFIX: &str = "hps";

/// One model by one metric.
#[derive(Clone, Debug, PartialEq)]
pub struct BenchmarkRow {
    /// The metric.
    pub metric: String,
    /// The model.
    pub model: String,
    /// For each style, in the order of [`Style::ALL`], what its prompts come to; `None` without a
    /// score.
    pub styles: [Option<StyleMean>; 4],
    /// The mean over all prompts of all styles, times 100.
    pub average: f64,
}

/// The prompts of one style.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StyleMean {
    /// Prompts with a score.
    pub prompts: usize,
    /// The mean of the means of the groups, times 100.
    pub mean: f64,
    /// The population standard deviation of these means, times 100.
    pub std: f64,
}

/// The rows of every model by the metrics of [`PREFIX`], or by all if none has such a name. Empty
/// without a set that is named as a style.
pub(super) fn rows(index: &ScoresIndex<'_>) -> Vec<BenchmarkRow> {
    let is_hps = |metric: &str| metric.to_lowercase().starts_with(PREFIX);
    let has_hps = index.metrics.iter().any(|metric| is_hps(metric));
    let shown = index.metrics.iter().enumerate().filter(|(_, name)| !has_hps || is_hps(name));
    let listed = index.listed();
    let mut rows = Vec::new();
    for (metric, metric_name) in shown {
        for (model, model_name) in index.models.iter().enumerate() {
            // A prompt without an image is passed over, and the groups close up, as there.
            let scores = Style::ALL.map(|style| {
                let of_style = listed.iter().filter_map(|prompt| index.prompts.get(*prompt));
                let of_style = of_style.filter(|prompt| {
                    index.sets.get(prompt.set).is_some_and(|set| Style::of(set) == Some(style))
                });
                let mean = |prompt: &crate::scores_index::IndexedPrompt<'_>| {
                    let scores: Vec<f32> = prompt.scores(model, metric).collect();
                    (!scores.is_empty()).then(|| SCALE * super::comparison::mean(&scores))
                };
                of_style.filter_map(mean).collect::<Vec<f64>>()
            });
            let all: Vec<f64> = scores.concat();
            if !all.is_empty() {
                rows.push(BenchmarkRow {
                    metric: (*metric_name).to_owned(),
                    model: (*model_name).to_owned(),
                    styles: scores.each_ref().map(|scores| of_style(scores)),
                    average: mean(&all),
                });
            }
        }
    }
    rows
}

fn of_style(scores: &[f64]) -> Option<StyleMean> {
    let groups: Vec<f64> = scores.chunks(GROUP).map(mean).collect();
    (!groups.is_empty()).then(|| {
        let middle = mean(&groups);
        let squares = groups.iter().map(|group| (group - middle).powi(2)).sum::<f64>();
        let std = (squares / groups.len() as f64).sqrt();
        StyleMean { prompts: scores.len(), mean: middle, std }
    })
}

fn mean(numbers: &[f64]) -> f64 {
    numbers.iter().sum::<f64>() / numbers.len() as f64
}

/// The tables, one for each metric.
pub(super) fn grids(rows: &[BenchmarkRow]) -> Vec<Grid> {
    let mut metrics: Vec<&str> = Vec::new();
    for row in rows {
        if !metrics.contains(&&*row.metric) {
            metrics.push(&row.metric);
        }
    }
    metrics.into_iter().map(|metric| grid(metric, rows)).collect()
}

fn grid(metric: &str, rows: &[BenchmarkRow]) -> Grid {
    let style = |style: &Option<StyleMean>| {
        style.map_or_else(GridCell::none, |StyleMean { mean, std, .. }| GridCell {
            text: format!("{mean:.2}"),
            small: format!("{std:.4}"),
            bold: false,
        })
    };
    let row = |row: &BenchmarkRow| {
        let mut cells: Vec<GridCell> = row.styles.iter().map(style).collect();
        cells.push(GridCell::plain(format!("{:.2}", row.average)));
        GridRow { stubs: vec![row.model.clone()], cells }
    };
    let columns = Style::ALL.iter().map(|style| style.name().to_owned());
    Grid {
        label: format!("hps-v2-{metric}"),
        title: format!("The benchmark of HPS v2, {metric}"),
        caption: format!(
            "Mean {metric} × 100 in the layout of HPS v2's benchmark: for each style the mean and, \
             in small type, the standard deviation of the means of groups of {GROUP} prompts; \
             Average is the mean over all prompts."
        ),
        stubs: vec!["Model".to_owned()],
        groups: vec![(String::new(), columns.chain(["Average".to_owned()]).collect())],
        rows: rows.iter().filter(|row| row.metric == metric).map(row).collect(),
    }
}

#[cfg(test)]
mod tests {
    use schemas::scores::ScoreRow;

    use super::*;
    use crate::scores_index::Selection;

    /// What numpy gives for `score = ((prompt * 37) % 101) / 400 + style / 10` of 200 prompts a
    /// style, photo with every seventh image missing:
    ///
    /// ```python
    /// score = lambda s, p: numpy.float32(((p * 37) % 101) / 400 + s / 10)
    /// res = [score(s, p) * 100 for p in range(200) if s < 3 or p % 7]
    /// avg = [numpy.mean(res[i:i+80]) for i in range(0, len(res), 80)]
    /// numpy.mean(avg), numpy.std(avg)
    /// ```
    const EXPECTED: [(f64, f64); 4] = [
        (12.561458, 0.186566),
        (22.561458, 0.186566),
        (32.561458, 0.186566),
        (42.964583, 0.741906),
    ];
    const AVERAGE: f64 = 26.954929;

    #[test]
    fn means_of_groups_equal_those_of_the_benchmark() {
        let mut rows = Vec::new();
        for (style, set) in ["anime", "concept-art", "paintings", "photo"].into_iter().enumerate() {
            for prompt in (0..200u16).filter(|prompt| style < 3 || prompt % 7 != 0) {
                let score = f64::from((prompt * 37) % 101) / 400.0 + style as f64 / 10.0;
                let row = |metric: &str, score: f64| ScoreRow {
                    model: "base".to_owned(),
                    prompt_set: set.to_owned(),
                    prompt_id: format!("{:05}-x", prompt + 1),
                    prompt: format!("prompt {prompt}"),
                    category: None,
                    seed: 0,
                    metric: metric.to_owned(),
                    score: Some(score as f32),
                    image: format!("{set}/{prompt}.png"),
                    error: None,
                };
                rows.extend([row("clip", 0.5), row("hps", score)]);
            }
        }
        let index = ScoresIndex::new(&rows, Selection::default()).unwrap();
        let found = super::rows(&index);
        let [row] = &found[..] else { panic!("only hps: {found:?}") };
        assert_eq!((&*row.metric, &*row.model), ("hps", "base"));
        for (style, (mean, std)) in row.styles.iter().zip(EXPECTED) {
            let style = style.unwrap();
            assert!((style.mean - mean).abs() < 1e-4, "{style:?} {mean}");
            assert!((style.std - std).abs() < 1e-4, "{style:?} {std}");
        }
        assert_eq!(row.styles[3].unwrap().prompts, 171);
        assert!((row.average - AVERAGE).abs() < 1e-4, "{}", row.average);
        let grids = grids(&found);
        assert_eq!(grids[0].rows[0].cells.len(), 5);
        assert_eq!(grids[0].rows[0].cells[4].text, format!("{AVERAGE:.2}"));
    }
}
