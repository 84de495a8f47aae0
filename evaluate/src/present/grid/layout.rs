//! Where everything on a sheet stands.

use serde::Serialize;

use super::{LARGE_SIDE, SMALL_SIDE, Thumbnails};
use crate::present::bitmap::Bitmap;
use crate::present::captions::Captions;
use crate::present::render::text::{Ruler, Weight, clean};
use crate::present::render::{RenderError, Renderer};
use crate::scores_index::{Choice, IndexedPrompt, ScoredImage, ScoresIndex};

/// Space around the sheet and between images, in pixels.
const MARGIN: u32 = 14;
const GAP: u32 = 10;
/// The width of the words before each row.
const HEADS: u32 = 150;
/// Sizes of letters, and the height of their lines.
const HEADING: f32 = 13.0;
const TEXT: f32 = 12.0;
const CAPTION: f32 = 11.0;
const LINE: u32 = 15;
/// Lines of a prompt above the images of all seeds.
const TITLE_LINES: usize = 3;

/// A table of images.
pub(super) struct Block {
    /// Its title.
    title: String,
    columns: Vec<String>,
    rows: Vec<Row>,
}

struct Row {
    head: String,
    /// For each column the image and its caption, if there is one.
    images: Vec<Option<Shown>>,
}

struct Shown {
    image: String,
    caption: String,
}

impl Block {
    /// A row for each prompt, a column for each model.
    pub(super) fn of_models(
        index: &ScoresIndex<'_>,
        prompts: &[&IndexedPrompt<'_>],
        choice: Choice,
        captions: &Captions,
    ) -> Self {
        let row = |prompt: &&IndexedPrompt<'_>| Row {
            head: prompt.text.to_owned(),
            images: (0..index.models.len())
                .map(|model| Some(shown(prompt.chosen(model, choice)?, captions)))
                .collect(),
        };
        Self {
            title: String::new(),
            columns: index.models.iter().map(|&model| model.to_owned()).collect(),
            rows: prompts.iter().map(row).collect(),
        }
    }

    /// A row for each model, a column for each seed of any of them.
    pub(super) fn of_seeds(
        index: &ScoresIndex<'_>,
        prompt: &IndexedPrompt<'_>,
        captions: &Captions,
    ) -> Self {
        let mut seeds: Vec<i64> = prompt.images.iter().flatten().map(|image| image.seed).collect();
        seeds.sort_unstable();
        seeds.dedup();
        let row = |(&model, images): (&&str, &Vec<ScoredImage<'_>>)| Row {
            head: model.to_owned(),
            images: seeds
                .iter()
                .map(|seed| images.iter().find(|image| image.seed == *seed))
                .map(|image| image.map(|image| shown(image, captions)))
                .collect(),
        };
        Self {
            title: prompt.text.to_owned(),
            columns: seeds.iter().map(|seed| format!("seed {seed}")).collect(),
            rows: index.models.iter().zip(&prompt.images).map(row).collect(),
        }
    }
}

fn shown(image: &ScoredImage<'_>, captions: &Captions) -> Shown {
    Shown { image: image.image.to_owned(), caption: captions.of(&image.scores) }
}

/// A sheet, laid out.
#[derive(Serialize)]
pub(super) struct Sheet {
    width: u32,
    height: u32,
    lines: Vec<Line>,
    frames: Vec<Frame>,
    #[serde(skip)]
    pasted: Vec<Pasted>,
}

#[derive(Serialize)]
struct Line {
    x: u32,
    y: u32,
    size: f32,
    bold: bool,
    muted: bool,
    anchor: &'static str,
    text: String,
}

#[derive(Serialize)]
struct Frame {
    x: u32,
    y: u32,
    side: u32,
    label: &'static str,
}

struct Pasted {
    x: u32,
    y: u32,
    image: Bitmap,
}

impl Sheet {
    /// Lays out blocks one below the other, with images of `side` pixels.
    pub(super) fn new(blocks: Vec<Block>, images: &Thumbnails, side: Option<u32>) -> Self {
        let mut sheet = Self {
            width: 0,
            height: MARGIN,
            lines: Vec::new(),
            frames: Vec::new(),
            pasted: Vec::new(),
        };
        let side = side.unwrap_or_else(|| usual_side(&blocks, images));
        for block in blocks {
            sheet.add(block, images, side);
        }
        sheet.height += MARGIN - GAP.min(MARGIN);
        sheet
    }

    fn add(&mut self, block: Block, images: &Thumbnails, side: u32) {
        let left = MARGIN + HEADS + GAP;
        let columns = block.columns.len() as u32;
        self.width =
            self.width.max(left + columns * (side + GAP) - GAP.min(columns * GAP) + MARGIN);
        let whole = (self.width - 2 * MARGIN) as f32;
        let title =
            Ruler::new(Weight::Bold, HEADING).wrap(&clean(&block.title), whole, TITLE_LINES);
        for text in title {
            self.line(MARGIN, HEADING, Weight::Bold, "start", text);
        }
        let bold = Ruler::new(Weight::Bold, HEADING);
        let heads = self.height;
        for (column, name) in block.columns.iter().enumerate() {
            self.height = heads;
            let middle = left + column as u32 * (side + GAP) + side / 2;
            let text = bold.fit(&clean(name), side as f32);
            self.line(middle, HEADING, Weight::Bold, "middle", text);
        }
        self.height = heads + LINE + 6;
        for row in block.rows {
            self.add_row(row, images, left, side);
        }
    }

    fn add_row(&mut self, row: Row, images: &Thumbnails, left: u32, side: u32) {
        let top = self.height;
        let lines = (side / LINE).max(1) as usize;
        let head = Ruler::new(Weight::Regular, TEXT).wrap(&clean(&row.head), HEADS as f32, lines);
        for text in head {
            self.line(MARGIN, TEXT, Weight::Regular, "start", text);
        }
        let mut bottom = self.height.max(top + side);
        let small = Ruler::new(Weight::Regular, CAPTION);
        for (column, shown) in row.images.into_iter().enumerate() {
            let x = left + column as u32 * (side + GAP);
            let image = shown.as_ref().map_or(Err("no image"), |shown| {
                images.read(&shown.image).map(|image| image.fitted(side))
            });
            match image {
                Ok(image) => self.pasted.push(Pasted {
                    x: x + side.saturating_sub(image.width) / 2,
                    y: top + side.saturating_sub(image.height) / 2,
                    image,
                }),
                Err(label) => self.frames.push(Frame { x, y: top, side, label }),
            }
            self.height = top + side + 3;
            let caption = shown.map_or_else(String::new, |shown| shown.caption);
            for text in even_lines(&small, &caption, (side + GAP - 2) as f32, lines) {
                self.line(x + side / 2, CAPTION, Weight::Regular, "middle", text);
            }
            bottom = bottom.max(self.height);
        }
        self.height = bottom + GAP;
    }

    /// Adds a line of text and moves below it.
    fn line(&mut self, x: u32, size: f32, weight: Weight, anchor: &'static str, text: String) {
        let y = self.height + size as u32;
        let (bold, muted) = (weight == Weight::Bold, size < TEXT);
        self.lines.push(Line { x, y, size, bold, muted, anchor, text });
        self.height += LINE;
    }

    /// The sheet as pixels: words and frames, and the images laid over.
    pub(super) fn render(&self, renderer: &Renderer) -> Result<Bitmap, RenderError> {
        let mut sheet = renderer.pixels(&renderer.fill("sheet.svg", self)?, 1.0)?;
        for pasted in &self.pasted {
            sheet.paste(&pasted.image, pasted.x, pasted.y);
        }
        Ok(sheet)
    }
}

/// The scores of a caption, in lines of equally many if they do not fit on one.
fn even_lines(ruler: &Ruler, caption: &str, width: f32, lines: usize) -> Vec<String> {
    let wrapped = ruler.wrap(caption, width, lines);
    let scores: Vec<&str> = caption.split(' ').collect();
    let each = scores.len().div_ceil(wrapped.len().max(1)).max(1);
    let even: Vec<String> = scores.chunks(each).map(|scores| scores.join(" ")).collect();
    if even.iter().all(|line| ruler.width(line) <= width) { even } else { wrapped }
}

/// The side that suits the first image that can be read: small images are enlarged by the largest
/// whole factor, large ones shrunk.
fn usual_side(blocks: &[Block], images: &Thumbnails) -> u32 {
    let shown = blocks.iter().flat_map(|block| &block.rows).flat_map(|row| &row.images);
    let first =
        shown.flatten().find_map(|shown| Bitmap::read(&images.folder.join(&shown.image)).ok());
    first.map_or(SMALL_SIDE, |image| {
        let longest = image.width.max(image.height);
        if longest <= SMALL_SIDE { SMALL_SIDE / longest * longest } else { longest.min(LARGE_SIDE) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn captions_break_in_the_middle() {
        let ruler = Ruler::new(Weight::Regular, CAPTION);
        let caption = "P:0.20 H:0.25 C:0.21 A:4.57";
        let lines = |width| even_lines(&ruler, caption, width, 4);
        assert_eq!(lines(400.0), [caption]);
        assert_eq!(lines(136.0), ["P:0.20 H:0.25", "C:0.21 A:4.57"]);
        assert_eq!(lines(50.0), ["P:0.20", "H:0.25", "C:0.21", "A:4.57"]);
    }
}
