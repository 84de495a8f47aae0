//! Text in figures: what a font can show, how wide it is, where it breaks.
//!
//! DejaVu 2.37 is under the licence of Bitstream Vera, which lets programs embed it.

use skrifa::instance::{LocationRef, Size};
use skrifa::{FontRef, MetadataProvider as _};

/// The name of the font in SVG: the condensed letters are the only ones of the family.
pub const FAMILY: &str = "DejaVu Sans";
/// The end of a text that was truncated.
const ELLIPSIS: char = '…';
/// The width of a character that the font does not know, in ems.
const UNKNOWN_WIDTH: f32 = 0.6;

/// How heavy the letters are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weight {
    /// Body text.
    Regular,
    /// Headings.
    Bold,
}

impl Weight {
    /// The font file.
    pub(super) fn font(self) -> &'static [u8] {
        match self {
            Self::Regular => dejavu::sans_condensed::regular(),
            Self::Bold => dejavu::sans_condensed::bold(),
        }
    }
}

/// Letters of one weight and size, measured without kerning.
pub struct Ruler {
    font: Option<FontRef<'static>>,
    size: f32,
}

impl Ruler {
    /// For letters of `size` pixels.
    pub fn new(weight: Weight, size: f32) -> Self {
        Self { font: FontRef::new(weight.font()).ok(), size }
    }

    /// How wide `text` is on one line, in pixels.
    pub fn width(&self, text: &str) -> f32 {
        let Some(font) = &self.font else {
            return text.chars().count() as f32 * self.size * UNKNOWN_WIDTH;
        };
        let metrics = font.glyph_metrics(Size::new(self.size), LocationRef::default());
        let glyphs = font.charmap();
        let advance = |character: char| {
            let glyph = glyphs.map(character).unwrap_or_default();
            metrics.advance_width(glyph).unwrap_or(self.size * UNKNOWN_WIDTH)
        };
        text.chars().map(advance).sum()
    }

    /// `text`, truncated and ended with `…` if it is wider than `width` pixels.
    pub fn fit(&self, text: &str, width: f32) -> String {
        if self.width(text) <= width {
            return text.to_owned();
        }
        self.fit_open(text, width)
    }

    /// The longest beginning of `text` that fits together with `…`.
    fn fit_open(&self, text: &str, width: f32) -> String {
        let mut left = width - self.width(ELLIPSIS.encode_utf8(&mut [0; 4]));
        let mut kept = String::new();
        for character in text.chars() {
            left -= self.width(character.encode_utf8(&mut [0; 4]));
            if left < 0.0 {
                break;
            }
            kept.push(character);
        }
        kept.truncate(kept.trim_end().len());
        kept.push(ELLIPSIS);
        kept
    }

    /// `text` in lines of at most `width` pixels, broken at spaces that allow it, a word that is
    /// longer than a line within; at most `lines` of them, the last ended with `…` if there is more
    /// text.
    pub fn wrap(&self, text: &str, width: f32, lines: usize) -> Vec<String> {
        let mut wrapped: Vec<String> = Vec::new();
        let mut line = String::new();
        let mut words: Vec<&str> = text.split_ascii_whitespace().rev().collect();
        while let Some(word) = words.pop() {
            let longer = if line.is_empty() { word.to_owned() } else { format!("{line} {word}") };
            if self.width(&longer) <= width {
                line = longer;
                continue;
            }
            if line.is_empty() {
                let end = self.end_of_line(word, width);
                line = word[..end].to_owned();
                words.push(&word[end..]);
            } else {
                words.push(word);
            }
            if wrapped.len() + 1 == lines {
                // There is more text: the last line ends with dots.
                line = self.fit_open(&format!("{line} {}", words.pop().unwrap_or("")), width);
                words.clear();
            }
            wrapped.push(std::mem::take(&mut line));
        }
        if !line.is_empty() {
            wrapped.push(line);
        }
        wrapped
    }

    /// Where a word that is longer than a line is broken: after one character at least.
    fn end_of_line(&self, word: &str, width: f32) -> usize {
        let mut left = width;
        let fits = |(_, character): &(usize, char)| {
            left -= self.width(character.encode_utf8(&mut [0; 4]));
            left >= 0.0
        };
        let fitting = word.char_indices().take_while(fits).count().max(1);
        word.char_indices().nth(fitting).map_or(word.len(), |(end, _)| end)
    }
}

/// Text of unknown origin as a figure can hold it: line ends become spaces, characters without
/// width are dropped, and control characters and those that turn the direction of the text become
/// `�`.
pub fn clean(text: &str) -> String {
    let shown = text.chars().filter_map(|character| match character {
        '\n' | '\r' | '\t' | '\u{2028}' | '\u{2029}' => Some(' '),
        '\u{200b}'..='\u{200d}' | '\u{2060}' | '\u{feff}' | '\u{fe00}'..='\u{fe0f}' => None,
        '\u{200e}' | '\u{200f}' | '\u{061c}' | '\u{202a}'..='\u{202e}' => Some('\u{fffd}'),
        '\u{2061}'..='\u{2069}' | '\u{fff9}'..='\u{fffb}' => Some('\u{fffd}'),
        '\u{fffe}' | '\u{ffff}' => Some('\u{fffd}'),
        character if character.is_control() => Some('\u{fffd}'),
        character => Some(character),
    });
    shown.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widths_follow_the_font() {
        let ruler = Ruler::new(Weight::Regular, 10.0);
        assert_eq!(ruler.width(""), 0.0);
        assert!(ruler.width("iii") < ruler.width("mmm"));
        // A digit of DejaVu Sans Condensed is 1172 of 2048 units wide.
        assert!((ruler.width("0123456789") - 10.0 * 10.0 * 1172.0 / 2048.0).abs() < 0.1);
        assert!(Ruler::new(Weight::Bold, 10.0).width("fox") > ruler.width("fox"));
        assert!(ruler.width("\u{1f98a}") > 0.0);
    }

    #[test]
    fn what_does_not_fit_ends_with_dots() {
        let ruler = Ruler::new(Weight::Regular, 10.0);
        assert_eq!(ruler.fit("a fox", 100.0), "a fox");
        let fitted = ruler.fit("a fox in the snow", 50.0);
        assert!(
            fitted.starts_with("a fo") && fitted.ends_with('…') && ruler.width(&fitted) <= 50.0,
            "{fitted}"
        );
        assert_eq!(ruler.fit("a fox", 0.0), "…");
    }

    #[test]
    fn lines_break_between_words_and_within_long_ones() {
        let ruler = Ruler::new(Weight::Regular, 10.0);
        assert!(ruler.wrap(" \n", 50.0, 3).is_empty());
        assert_eq!(ruler.wrap("a fox  in\nthe snow", 500.0, 3), ["a fox in the snow"]);
        let text = format!("a fox {} {}", "x".repeat(40), "and more of it ".repeat(9));
        let lines = ruler.wrap(&text, 60.0, 5);
        assert_eq!(lines.len(), 5);
        assert!(lines.iter().all(|line| ruler.width(line) <= 60.0), "{lines:?}");
        assert!(lines[0] == "a fox" && lines[1].starts_with("xxx"), "{lines:?}");
        assert!(lines[4].ends_with('…'), "{lines:?}");
        // Nothing is lost if there is room.
        let all: String = ruler.wrap(&text, 60.0, 99).concat();
        let letters = |text: &str| text.chars().filter(|letter| *letter != ' ').collect::<String>();
        assert_eq!(letters(&all), letters(&text));
        assert_eq!(ruler.wrap("wide", 1.0, 9), ["w", "i", "d", "e"]);
    }

    #[test]
    fn nothing_that_xml_forbids_remains() {
        assert_eq!(clean("a\u{0}b\u{1b}[31m\nc\u{202e}d\u{200b}e\u{ffff}"), "a�b�[31m c�de�");
        assert_eq!(clean("<a> & 'é' 猫 🦊"), "<a> & 'é' 猫 🦊");
    }
}
