//! What a reader looks at: the report, its figures, and contact sheets.
//!
//! | what | module |
//! |---|---|
//! | the page with all results | [`report`] |
//! | plots of win rates, scores and labels | [`figures`] |
//! | contact sheets of images | [`grid`] |
//! | the scores below an image | `captions` |
//! | templates and SVG to pixels | [`render`] |
//! | RGB images in memory and as files | [`bitmap`] |

pub mod bitmap;
mod captions;
pub mod figures;
pub mod grid;
pub mod render;
pub mod report;
