//! The gallery: which prompts and images it shows, and the data that the page's script reads.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rayon::iter::{IntoParallelRefIterator as _, ParallelIterator as _};
use serde::Serialize;

use crate::present::bitmap::Bitmap;
use crate::scores_index::{Choice, IndexedPrompt, ScoredImage, ScoresIndex, letters};

/// At most so many prompts.
const MOST_PROMPTS: usize = 200;
/// At most so many images, so that a report of large images is made in seconds.
const MOST_IMAGES: usize = 4000;
/// At most so many bytes of images, as text.
const MOST_BYTES: usize = 10 << 20;
/// The side of a thumbnail, in pixels.
const SIDE: u32 = 128;
/// Images below this side are shown with every pixel as a square, and keep their colours.
const SMALL_SIDE: u32 = 96;
/// The quality of JPEG, of 100: small images have no pixel to lose.
const SMALL_QUALITY: u8 = 92;
const LARGE_QUALITY: u8 = 82;

/// What the page's script reads. Places are indices into the lists at the top.
#[derive(Debug, Serialize)]
pub(super) struct Gallery<'a> {
    models: &'a [&'a str],
    metrics: &'a [&'a str],
    /// One letter for each metric.
    letters: Vec<String>,
    sets: &'a [&'a str],
    categories: Vec<&'a str>,
    /// By what the shown image can be chosen: `null` for the mean rank, else the place of a metric.
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
    /// For each choice the place in `images`.
    chosen: Vec<Option<usize>>,
    images: Vec<Shown>,
}

#[derive(Debug, Serialize)]
struct Shown {
    seed: i64,
    scores: Vec<Option<f32>>,
    /// The place of the thumbnail; nothing where the image cannot be read.
    thumbnail: Option<usize>,
    small: bool,
}

/// An image by the places of its prompt and model, and its seed.
type Key = (usize, usize, i64);
type Thumbnails = HashMap<Key, Option<Thumbnail>>;

/// An image in base64.
struct Thumbnail {
    data: String,
    small: bool,
}

impl<'a> Gallery<'a> {
    /// Chooses prompts and images and reads them; `folder` is that of the scores.
    pub(super) fn new(index: &'a ScoresIndex<'a>, folder: &Path) -> Self {
        let models = index.models.len().max(1);
        let limit = MOST_PROMPTS.min((MOST_IMAGES / models).max(1));
        let mut prompts = choose_prompts(index, limit);
        let mut choices = vec![None];
        let mut wanted = keys(index, &prompts, &choices);
        let mut thumbnails = read(index, folder, &wanted, &Thumbnails::new());
        let bytes: usize = thumbnails.values().flatten().map(|shown| shown.data.len()).sum();
        if bytes > MOST_BYTES {
            // The most extreme prompts come first, and stay.
            prompts.truncate((prompts.len() * MOST_BYTES / bytes).max(1));
            wanted = keys(index, &prompts, &choices);
        }
        let each = bytes / thumbnails.len().max(1);
        for metric in 0..index.metrics.len() {
            choices.push(Some(metric));
            let more = keys(index, &prompts, &choices);
            if more.len() > MOST_IMAGES || more.len() * each > MOST_BYTES {
                choices.pop();
                break;
            }
            wanted = more;
        }
        thumbnails.retain(|key, _| wanted.contains(key));
        thumbnails.extend(read(index, folder, &wanted, &thumbnails));
        prompts.sort_by_key(|&prompt| index.prompts[prompt].position);
        Self::with(index, &prompts, choices, thumbnails)
    }

    fn with(
        index: &'a ScoresIndex<'a>,
        prompts: &[usize],
        choices: Vec<Option<usize>>,
        mut thumbnails: Thumbnails,
    ) -> Self {
        let mut gallery = Self {
            models: &index.models,
            metrics: &index.metrics,
            letters: letters(&index.metrics),
            sets: &index.sets,
            categories: Vec::new(),
            choices,
            prompts: Vec::new(),
            thumbnails: Vec::new(),
        };
        for &place in prompts {
            let prompt = &index.prompts[place];
            let category = prompt.category.map(|name| {
                let known = gallery.categories.iter().position(|category| *category == name);
                known.unwrap_or_else(|| {
                    gallery.categories.push(name);
                    gallery.categories.len() - 1
                })
            });
            let columns = (0..index.models.len())
                .map(|model| gallery.column(index, (place, model), &mut thumbnails))
                .collect();
            gallery.prompts.push(Card {
                set: prompt.set,
                id: prompt.id,
                text: prompt.text,
                category,
                models: columns,
            });
        }
        gallery
    }

    fn column(
        &mut self,
        index: &ScoresIndex<'_>,
        (place, model): (usize, usize),
        thumbnails: &mut Thumbnails,
    ) -> Column {
        let prompt = &index.prompts[place];
        let mut images: Vec<Shown> = Vec::new();
        let mut chosen = Vec::new();
        for &choice in &self.choices {
            let image = prompt.chosen(model, as_choice(choice));
            chosen.push(image.map(|image| {
                let known = images.iter().position(|shown| shown.seed == image.seed);
                known.unwrap_or_else(|| {
                    let read = thumbnails.remove(&(place, model, image.seed)).flatten();
                    let small = read.as_ref().is_some_and(|read| read.small);
                    let thumbnail = read.map(|read| {
                        self.thumbnails.push(read.data);
                        self.thumbnails.len() - 1
                    });
                    let scores = image.scores.clone();
                    images.push(Shown { seed: image.seed, scores, thumbnail, small });
                    images.len() - 1
                })
            }));
        }
        let best = (0..index.metrics.len()).map(|metric| prompt.best(model, metric)).collect();
        Column { best, chosen, images }
    }

    /// How many prompts are shown.
    pub(super) fn len(&self) -> usize {
        self.prompts.len()
    }

    /// The data as JSON that can stand inside a script element: no `<` is in it.
    pub(super) fn to_json(&self) -> serde_json::Result<String> {
        Ok(serde_json::to_string(self)?.replace('<', "\\u003c"))
    }
}

fn as_choice(choice: Option<usize>) -> Choice {
    choice.map_or(Choice::MeanRank, Choice::Metric)
}

/// The places of the prompts that are shown: all of them where they are few; else one half those
/// with the largest margins, by each pair of models and metric in turn, the others evenly spread.
/// The extreme ones come first.
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
        let margin = |(place, prompt): (usize, &IndexedPrompt<'_>)| {
            Some((prompt.margin(pair, metric)?, place))
        };
        let mut margins: Vec<(f32, usize)> =
            index.prompts.iter().enumerate().filter_map(margin).collect();
        margins.sort_by(|one, two| two.0.total_cmp(&one.0).then(one.1.cmp(&two.1)));
        let places: Vec<usize> = margins.into_iter().map(|(_, place)| place).collect();
        extremes.push(places.iter().rev().take(limit).copied().collect::<Vec<_>>().into_iter());
        extremes.push(places.into_iter().take(limit).collect::<Vec<_>>().into_iter());
    }
    let mut chosen = Vec::new();
    while chosen.len() < limit / 2 {
        let next: Vec<usize> = extremes.iter_mut().filter_map(Iterator::next).collect();
        if next.is_empty() {
            break;
        }
        for place in next {
            if chosen.len() < limit / 2 && !chosen.contains(&place) {
                chosen.push(place);
            }
        }
    }
    let others: Vec<usize> =
        index.listed().into_iter().filter(|place| !chosen.contains(place)).collect();
    let spread = limit - chosen.len();
    chosen.extend((0..spread).map(|index| others[index * others.len() / spread]));
    chosen
}

/// The images that these prompts and choices show.
fn keys(index: &ScoresIndex<'_>, prompts: &[usize], choices: &[Option<usize>]) -> BTreeSet<Key> {
    let mut keys = BTreeSet::new();
    for &place in prompts {
        for model in 0..index.models.len() {
            let images = choices
                .iter()
                .filter_map(|choice| index.prompts[place].chosen(model, as_choice(*choice)));
            keys.extend(images.map(|image| (place, model, image.seed)));
        }
    }
    keys
}

/// Reads and shrinks the images that are not there yet, on all cores.
fn read(
    index: &ScoresIndex<'_>,
    folder: &Path,
    wanted: &BTreeSet<Key>,
    there: &Thumbnails,
) -> Thumbnails {
    let missing: Vec<&Key> = wanted.iter().filter(|key| !there.contains_key(key)).collect();
    let thumbnail = |key: &&Key| {
        let (place, model, seed) = **key;
        let images = index.prompts[place].images[model].iter();
        let read = images
            .clone()
            .find(|image| image.seed == seed)
            .and_then(|image| read_one(image, folder));
        (**key, read)
    };
    missing.par_iter().map(thumbnail).collect()
}

fn read_one(image: &ScoredImage<'_>, folder: &Path) -> Option<Thumbnail> {
    let image = match Bitmap::read(&folder.join(image.image)) {
        Ok(image) => image,
        Err(error) => {
            let shown = runkit::logging::escape_for_terminal(&error.to_string()).into_owned();
            tracing::warn!("the gallery lacks an image: {shown}");
            return None;
        }
    };
    // A page enlarges small images itself.
    let small = image.width.max(image.height) <= SMALL_SIDE;
    let (image, quality) =
        if small { (image, SMALL_QUALITY) } else { (image.fitted(SIDE), LARGE_QUALITY) };
    Some(Thumbnail { data: BASE64.encode(image.jpeg(quality)?), small })
}

#[cfg(test)]
mod tests {
    use schemas::scores::ScoreRow;

    use super::*;
    use crate::scores_index::Selection;

    /// `count` prompts; model b is better than a by the place of the prompt, modulo 997.
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
        let margin = |place: usize| index.prompts[place].margin([1, 0], 0).unwrap();
        let mut all: Vec<f32> = (0..500).map(margin).collect();
        all.sort_by(f32::total_cmp);
        let shown: Vec<f32> = chosen.iter().map(|&place| margin(place)).collect();
        assert!(all[..10].iter().chain(&all[490..]).all(|margin| shown.contains(margin)));
        // The others lie in every part of the list.
        for part in 0..10 {
            assert!(chosen.iter().any(|place| place / 50 == part), "{chosen:?}");
        }
    }

    #[test]
    fn the_data_cannot_end_its_script() {
        let rows = rows(3);
        let index = ScoresIndex::new(&rows, Selection::default()).unwrap();
        let gallery = Gallery::new(&index, Path::new("nowhere"));
        let json = gallery.to_json().unwrap();
        assert!(!json.contains('<'), "{json}");
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(value["prompts"][2]["text"], "</script><b>2");
        let column = &value["prompts"][2]["models"][1];
        assert_eq!(column["best"][0], 14.0);
        assert_eq!(column["images"][0]["thumbnail"], serde_json::Value::Null);
    }
}
