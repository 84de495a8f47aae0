//! The gallery: the prompts and images it shows, and the data that the page's script reads.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rayon::iter::{IntoParallelRefIterator as _, ParallelIterator as _};
use serde::Serialize;

use super::links::Links;
use crate::present::bitmap::{Bitmap, BitmapError};
use crate::present::captions::Captions;
use crate::scores_index::{Choice, IndexedPrompt, ScoresIndex};

/// The most prompts.
const MOST_PROMPTS: usize = 200;
/// The most thumbnails: a report of large images takes seconds.
const MOST_IMAGES: usize = 4000;
/// The most bytes of thumbnails, as text.
const MOST_BYTES: usize = 10 << 20;
/// The side of a thumbnail, in pixels.
const SIDE: u32 = 128;
/// Images below this side are shown with every pixel as a square, and keep their colours.
const SMALL_SIDE: u32 = 96;
/// The quality of JPEG, of 100: small images have no pixel to lose.
const SMALL_QUALITY: u8 = 92;
const LARGE_QUALITY: u8 = 82;

/// What the page's script reads. Numbers are indices into the lists at the top.
#[derive(Debug, Serialize)]
pub(super) struct Gallery<'a> {
    models: &'a [&'a str],
    metrics: &'a [&'a str],
    /// One letter for each metric.
    letters: &'a [String],
    sets: &'a [&'a str],
    categories: Vec<&'a str>,
    /// By what the shown image can be chosen: `null` for the mean rank, else a metric.
    choices: Vec<Option<usize>>,
    prompts: Vec<Card<'a>>,
    /// JPEG in base64.
    thumbnails: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Card<'a> {
    set: usize,
    id: &'a str,
    text: &'a str,
    category: Option<usize>,
    models: Vec<Column>,
}

/// A model's images of a prompt.
#[derive(Debug, Serialize)]
struct Column {
    /// For each metric the best score.
    best: Vec<Option<f32>>,
    /// For each choice the index of the image.
    chosen: Vec<Option<usize>>,
    /// Every image, by seed.
    images: Vec<Shown>,
}

#[derive(Debug, Serialize)]
struct Shown {
    seed: i64,
    scores: Vec<Option<f32>>,
    /// The address of the file, relative to the page.
    file: String,
    /// The thumbnail; `null` if the file cannot be read, or all images would be too many.
    thumbnail: Option<usize>,
    small: bool,
}

/// A prompt of the list that replaces the gallery if scripts are off.
#[derive(Debug, Serialize)]
pub(super) struct PlainPrompt<'a> {
    text: &'a str,
    images: Vec<PlainImage<'a>>,
}

#[derive(Debug, Serialize)]
struct PlainImage<'a> {
    model: &'a str,
    file: &'a str,
    scores: String,
}

/// An image: its prompt, its model, and its index among the model's images.
type Key = (usize, usize, usize);
type Thumbnails = HashMap<Key, Option<Thumbnail>>;

/// An image in base64.
struct Thumbnail {
    data: String,
    small: bool,
}

impl<'a> Gallery<'a> {
    /// Chooses prompts and images and reads them; `folder` is that of the scores.
    pub(super) fn new(
        index: &'a ScoresIndex<'a>,
        captions: &'a Captions,
        folder: &Path,
        links: &Links,
    ) -> Self {
        let models = index.models.len().max(1);
        let limit = MOST_PROMPTS.min((MOST_IMAGES / models).max(1));
        let mut prompts = choose_prompts(index, limit);
        let mut choices = vec![None];
        let mut wanted = chosen(index, &prompts, &choices);
        let mut thumbnails = read(index, folder, &wanted, &Thumbnails::new());
        let bytes: usize = thumbnails.values().flatten().map(|shown| shown.data.len()).sum();
        if bytes > MOST_BYTES {
            // The most extreme prompts come first, and stay.
            prompts.truncate((prompts.len() * MOST_BYTES / bytes).max(1));
            wanted = chosen(index, &prompts, &choices);
        }
        let each = bytes / thumbnails.len().max(1);
        let fits =
            |keys: &BTreeSet<Key>| keys.len() <= MOST_IMAGES && keys.len() * each <= MOST_BYTES;
        for metric in 0..index.metrics.len() {
            choices.push(Some(metric));
            let more = chosen(index, &prompts, &choices);
            if !fits(&more) {
                choices.pop();
                break;
            }
            wanted = more;
        }
        let all = every(index, &prompts);
        if fits(&all) {
            wanted = all;
        }
        thumbnails.retain(|key, _| wanted.contains(key));
        thumbnails.extend(read(index, folder, &wanted, &thumbnails));
        prompts.sort_by_key(|&prompt| index.prompts[prompt].position);
        let mut gallery = Self {
            models: &index.models,
            metrics: &index.metrics,
            letters: captions.letters(),
            sets: &index.sets,
            categories: Vec::new(),
            choices,
            prompts: Vec::new(),
            thumbnails: Vec::new(),
        };
        for number in prompts {
            gallery.add(index, number, links, &mut thumbnails);
        }
        gallery
    }

    fn add(
        &mut self,
        index: &'a ScoresIndex<'a>,
        number: usize,
        links: &Links,
        thumbnails: &mut Thumbnails,
    ) {
        let prompt = &index.prompts[number];
        let category = prompt.category.map(|name| {
            let known = self.categories.iter().position(|category| *category == name);
            known.unwrap_or_else(|| {
                self.categories.push(name);
                self.categories.len() - 1
            })
        });
        let mut models = Vec::new();
        for (model, images) in prompt.images.iter().enumerate() {
            let images = images.iter().enumerate().map(|(image, scored)| {
                let read = thumbnails.remove(&(number, model, image)).flatten();
                let small = read.as_ref().is_some_and(|read| read.small);
                let thumbnail = read.map(|read| {
                    self.thumbnails.push(read.data);
                    self.thumbnails.len() - 1
                });
                Shown {
                    seed: scored.seed,
                    scores: scored.scores.clone(),
                    file: links.address(scored.image),
                    thumbnail,
                    small,
                }
            });
            models.push(Column {
                best: (0..index.metrics.len()).map(|metric| prompt.best(model, metric)).collect(),
                images: images.collect(),
                chosen: self
                    .choices
                    .iter()
                    .map(|choice| position(prompt, model, *choice))
                    .collect(),
            });
        }
        let (set, id, text) = (prompt.set, prompt.id, prompt.text);
        self.prompts.push(Card { set, id, text, category, models });
    }

    /// How many prompts are shown.
    pub(super) fn len(&self) -> usize {
        self.prompts.len()
    }

    /// The data as JSON for a script element, without `<`.
    pub(super) fn to_json(&self) -> serde_json::Result<String> {
        Ok(serde_json::to_string(self)?.replace('<', "\\u003c"))
    }

    /// Every prompt with the image of each model that is best by mean rank.
    pub(super) fn plain(&self, captions: &Captions) -> Vec<PlainPrompt<'_>> {
        let mut plain = Vec::new();
        for card in &self.prompts {
            let mut images = Vec::new();
            for (&model, column) in self.models.iter().zip(&card.models) {
                let shown = column.chosen.first().copied().flatten();
                images.extend(shown.map(|shown| &column.images[shown]).map(|shown| PlainImage {
                    model,
                    file: &shown.file,
                    scores: captions.of(&shown.scores),
                }));
            }
            plain.push(PlainPrompt { text: card.text, images });
        }
        plain
    }
}

/// The index of a model's image of a prompt that a choice shows.
fn position(prompt: &IndexedPrompt<'_>, model: usize, choice: Option<usize>) -> Option<usize> {
    let chosen = prompt.chosen(model, choice.map_or(Choice::MeanRank, Choice::Metric))?;
    prompt.images[model].iter().position(|image| image.seed == chosen.seed)
}

/// The indices of the prompts that are shown: all prompts if there are few. Else half of them are
/// those with the largest margins, by each pair of models and metric in turn, and come first; the
/// others are evenly spaced over the list.
fn choose_prompts(index: &ScoresIndex<'_>, limit: usize) -> Vec<usize> {
    let count = index.prompts.len();
    if count <= limit {
        return index.listed();
    }
    let models = index.models.len();
    let pairs = (0..models).flat_map(|one| (one + 1..models).map(move |two| [two, one]));
    let metrics = 0..index.metrics.len();
    let mut extremes: Vec<std::vec::IntoIter<usize>> = Vec::new();
    for (pair, metric) in pairs.flat_map(|pair| metrics.clone().map(move |metric| (pair, metric))) {
        let margin = |(number, prompt): (usize, &IndexedPrompt<'_>)| {
            Some((prompt.margin(pair, metric)?, number))
        };
        let mut margins: Vec<(f32, usize)> =
            index.prompts.iter().enumerate().filter_map(margin).collect();
        margins.sort_by(|one, two| two.0.total_cmp(&one.0).then(one.1.cmp(&two.1)));
        let numbers: Vec<usize> = margins.into_iter().map(|(_, number)| number).collect();
        extremes.push(numbers.iter().rev().take(limit).copied().collect::<Vec<_>>().into_iter());
        extremes.push(numbers.into_iter().take(limit).collect::<Vec<_>>().into_iter());
    }
    let mut chosen = Vec::new();
    while chosen.len() < limit / 2 {
        let next: Vec<usize> = extremes.iter_mut().filter_map(Iterator::next).collect();
        if next.is_empty() {
            break;
        }
        for number in next {
            if chosen.len() < limit / 2 && !chosen.contains(&number) {
                chosen.push(number);
            }
        }
    }
    let others: Vec<usize> =
        index.listed().into_iter().filter(|number| !chosen.contains(number)).collect();
    let rest = limit - chosen.len();
    chosen.extend((0..rest).map(|number| others[number * others.len() / rest]));
    chosen
}

/// The images that these choices show of the prompts.
fn chosen(index: &ScoresIndex<'_>, prompts: &[usize], choices: &[Option<usize>]) -> BTreeSet<Key> {
    let mut keys = BTreeSet::new();
    for &number in prompts {
        let prompt = &index.prompts[number];
        for model in 0..index.models.len() {
            let images = choices.iter().filter_map(|choice| position(prompt, model, *choice));
            keys.extend(images.map(|image| (number, model, image)));
        }
    }
    keys
}

/// Every image of the prompts.
fn every(index: &ScoresIndex<'_>, prompts: &[usize]) -> BTreeSet<Key> {
    let of_prompt = |&number: &usize| {
        let models = index.prompts[number].images.iter().enumerate();
        models.flat_map(move |(model, images)| (0..images.len()).map(move |i| (number, model, i)))
    };
    prompts.iter().flat_map(of_prompt).collect()
}

/// Reads and shrinks, on all cores, the images that are not `there` yet.
fn read(
    index: &ScoresIndex<'_>,
    folder: &Path,
    wanted: &BTreeSet<Key>,
    there: &Thumbnails,
) -> Thumbnails {
    let missing: Vec<&Key> = wanted.iter().filter(|key| !there.contains_key(key)).collect();
    let path = |&(prompt, model, image): &Key| {
        folder.join(index.prompts[prompt].images[model][image].image)
    };
    let read: Vec<(Key, Result<Option<Thumbnail>, BitmapError>)> =
        missing.par_iter().map(|key| (**key, read_one(&path(key)))).collect();
    let mut errors = read.iter().filter_map(|(_, read)| read.as_ref().err());
    if let Some(first) = errors.next() {
        let count = 1 + errors.count();
        let first = runkit::text::escape_for_terminal(&first.to_string()).into_owned();
        tracing::warn!("the gallery lacks {count} images, the first: {first}");
    }
    read.into_iter().map(|(key, read)| (key, read.ok().flatten())).collect()
}

fn read_one(path: &Path) -> Result<Option<Thumbnail>, BitmapError> {
    let image = Bitmap::read(path)?;
    // A page enlarges small images itself.
    let small = image.width.max(image.height) <= SMALL_SIDE;
    let (image, quality) =
        if small { (image, SMALL_QUALITY) } else { (image.fitted(SIDE), LARGE_QUALITY) };
    let jpeg = image.jpeg(quality);
    Ok(jpeg.map(|jpeg| Thumbnail { data: BASE64.encode(jpeg), small }))
}

#[cfg(test)]
mod tests {
    use schemas::scores::ScoreRow;

    use super::*;
    use crate::scores_index::Selection;

    /// `count` prompts; model b is better than a by the index of the prompt, modulo 997.
    fn rows(count: usize) -> Vec<ScoreRow> {
        let row = |index: usize, model: &str, score: f32| ScoreRow {
            model: model.to_owned(),
            prompt_set: "set".to_owned(),
            prompt_id: format!("{index:05}"),
            prompt: format!("</script><b>{index}"),
            category: None,
            seed: 0,
            metric: "clip".to_owned(),
            score: Some(score),
            image: "absent.png".to_owned(),
            error: None,
        };
        let both = |index| [row(index, "a", 0.0), row(index, "b", (index * 7 % 997) as f32)];
        (0..count).flat_map(both).collect()
    }

    #[test]
    fn few_prompts_are_all_shown() {
        let rows = rows(5);
        assert_eq!(
            choose_prompts(&ScoresIndex::new(&rows, Selection::default()).unwrap(), 5),
            [0, 1, 2, 3, 4]
        );
    }

    #[test]
    fn of_many_prompts_the_most_extreme_and_even_ones_are_shown() {
        let rows = rows(500);
        let index = ScoresIndex::new(&rows, Selection::default()).unwrap();
        let chosen = choose_prompts(&index, 40);
        assert_eq!(chosen.iter().collect::<BTreeSet<_>>().len(), 40, "{chosen:?}");
        let margin = |prompt: usize| index.prompts[prompt].margin([1, 0], 0).unwrap();
        let mut all: Vec<f32> = (0..500).map(margin).collect();
        all.sort_by(f32::total_cmp);
        let shown: Vec<f32> = chosen.iter().map(|&prompt| margin(prompt)).collect();
        assert!(all[..10].iter().chain(&all[490..]).all(|margin| shown.contains(margin)));
        // The others lie in every part of the list.
        for part in 0..10 {
            assert!(chosen.iter().any(|prompt| prompt / 50 == part), "{chosen:?}");
        }
    }

    #[test]
    fn the_data_cannot_end_its_script() {
        let rows = rows(3);
        let index = ScoresIndex::new(&rows, Selection::default()).unwrap();
        let captions = Captions::new(&index.metrics);
        let nowhere = Path::new("nowhere");
        let gallery = Gallery::new(&index, &captions, nowhere, &Links::new(nowhere, nowhere));
        let json = gallery.to_json().unwrap();
        assert!(!json.contains('<'), "{json}");
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(value["prompts"][2]["text"], "</script><b>2");
        let column = &value["prompts"][2]["models"][1];
        assert_eq!(column["best"][0], 14.0);
        assert_eq!(column["images"][0]["thumbnail"], serde_json::Value::Null);
    }
}
