//! Fills in templates, turns SVG into pixels and measures text.
//!
//! All text is DejaVu Sans Condensed, which is part of the program: a figure looks the same on
//! every machine. Templates escape their values; [`text::clean`] removes what XML cannot hold.

pub mod text;

use std::sync::Arc;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, UndefinedBehavior, Value};
use resvg::tiny_skia::{Color, Pixmap, Transform};
use resvg::usvg;
use serde::Serialize;

use crate::present::bitmap::Bitmap;

/// The templates by name. The ending decides how values are escaped.
const TEMPLATES: [(&str, &str); 6] = [
    ("figure.svg", include_str!("figure.svg")),
    ("forest.svg", include_str!("../figures/forest.svg")),
    ("ridges.svg", include_str!("../figures/ridges.svg")),
    ("heatmap.svg", include_str!("../figures/heatmap.svg")),
    ("sheet.svg", include_str!("../grid/sheet.svg")),
    ("report.html", include_str!("../report/report.html")),
];

/// Far above every figure that anybody reads, in pixels a side.
const LARGEST_SIDE: u32 = 20_000;

/// A figure or page cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum RenderError {
    /// A template cannot be filled in.
    #[error("a template cannot be filled in: {0:#}")]
    Template(#[from] minijinja::Error),
    /// The SVG is not valid.
    #[error("a figure is not valid SVG: {0}")]
    Svg(#[from] usvg::Error),
    /// The SVG is too large to be turned into pixels.
    #[error(
        "an image of {width}x{height} pixels is too large: expected at most {LARGEST_SIDE} a side; hint: choose fewer models or prompts"
    )]
    TooLarge {
        /// Its width.
        width: u32,
        /// Its height.
        height: u32,
    },
}

/// Fills in templates and renders SVG.
#[derive(Debug)]
pub struct Renderer {
    templates: Environment<'static>,
    options: usvg::Options<'static>,
}

impl Renderer {
    /// With all templates and fonts of the program.
    ///
    /// # Errors
    /// When a template does not parse, which its test would have found.
    pub fn new() -> Result<Self, RenderError> {
        let mut templates = Environment::new();
        templates.set_undefined_behavior(UndefinedBehavior::Strict);
        let whole_lines = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?;
        templates.set_syntax(whole_lines);
        // SVG is XML: the same five characters as in HTML are escaped.
        templates.set_auto_escape_callback(|_| AutoEscape::Html);
        for (name, source) in TEMPLATES {
            templates.add_template(name, source)?;
        }
        let mut fonts = usvg::fontdb::Database::new();
        for weight in [text::Weight::Regular, text::Weight::Bold] {
            fonts.load_font_data(weight.font().to_vec());
        }
        let options = usvg::Options {
            font_family: text::FAMILY.to_owned(),
            fontdb: Arc::new(fonts),
            ..usvg::Options::default()
        };
        Ok(Self { templates, options })
    }

    /// The template with these values filled in.
    ///
    /// # Errors
    /// When the template asks for a value that is not there.
    pub fn fill<T: Serialize>(&self, template: &str, values: &T) -> Result<String, RenderError> {
        let values = Value::from(Serde(values));
        Ok(self.templates.get_template(template)?.render(values)?)
    }

    /// The SVG on white, enlarged by `scale`.
    ///
    /// # Errors
    /// When it is not valid SVG, or larger than 20,000 pixels a side.
    pub fn pixels(&self, svg: &str, scale: f32) -> Result<Bitmap, RenderError> {
        let tree = usvg::Tree::from_str(svg, &self.options)?;
        let [width, height] =
            [tree.size().width(), tree.size().height()].map(|side| (side * scale).ceil() as u32);
        let too_large = RenderError::TooLarge { width, height };
        if width.max(height) > LARGEST_SIDE {
            return Err(too_large);
        }
        let mut pixmap = Pixmap::new(width, height).ok_or(too_large)?;
        pixmap.fill(Color::WHITE);
        resvg::render(&tree, Transform::from_scale(scale, scale), &mut pixmap.as_mut());
        let pixels = pixmap.pixels().iter().flat_map(|of| [of.red(), of.green(), of.blue()]);
        Ok(Bitmap { width, height, pixels: pixels.collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize)]
    struct Values {
        width: u32,
        height: u32,
        title: &'static str,
        subtitle: Vec<String>,
    }

    #[test]
    fn templates_parse_and_text_is_rendered_without_fonts_of_the_system() {
        let renderer = Renderer::new().unwrap();
        let svg = |words: &str| {
            format!(
                "<svg xmlns='http://www.w3.org/2000/svg' width='60' height='20' \
                 font-family='{}'><text x='2' y='15'>{words}</text></svg>",
                text::FAMILY
            )
        };
        let dark = |words: &str| {
            let pixels = renderer.pixels(&svg(words), 2.0).unwrap();
            assert_eq!((pixels.width, pixels.height), (120, 40));
            pixels.pixels.iter().filter(|&&level| level < 128).count()
        };
        assert_eq!(dark(""), 0);
        assert!(dark("wins") > 100, "{}", dark("wins"));
        assert!(dark("\u{1f98a}") > 0, "a character without a glyph is a box");
    }

    #[test]
    fn values_are_escaped_in_every_template() {
        let renderer = Renderer::new().unwrap();
        let values = Values { width: 10, height: 10, title: "<script>\"'&", subtitle: vec![] };
        let filled = renderer.fill("figure.svg", &values).unwrap();
        assert!(filled.contains("&lt;script&gt;&quot;&#x27;&amp;"), "{filled}");
    }

    #[test]
    fn an_svg_that_is_too_large_is_rejected() {
        let svg = "<svg xmlns='http://www.w3.org/2000/svg' width='9000' height='20'/>";
        let error = Renderer::new().unwrap().pixels(svg, 3.0).unwrap_err().to_string();
        assert!(error.contains("27000x60") && error.contains("hint"), "{error}");
    }
}
